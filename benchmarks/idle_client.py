"""A client that trains nothing: what is left is what asking it costs."""

import roundelay.client as fl

fl.init()
while fl.is_running():
    model = fl.receive()
    fl.send(fl.FLModel(params=model.params, num_examples=1))

"""The data: 5,000 real handwritten digits, until you put in your own."""

import roundelay as rd


def load(num_test: int = 1000) -> rd.Data:
    """Return what [partition] in job.toml splits among the clients (train), and what the server measures on (test).

    Your own: return rd.Data(train=..., test=...). Each is a pair of tensors or arrays (inputs, targets), or any data
    set of such pairs, torchvision's for example. Where every client has a data set already, return
    rd.FederatedData.from_datasets({"client-1": ..., "client-2": ...}, held_out=...) and leave [partition] out.
    """
    return rd.data.digits(num_test)

"""A training script in the manner of NVFlare's that sends numpy arrays: what it added to the model it received."""

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import roundelay.client as flare

from network import Net, points_of


def main():
    flare.init()
    dataset = TensorDataset(*points_of(flare.get_site_name()))
    net = Net()
    while flare.is_running():
        input_model = flare.receive()
        before = {name: torch.as_tensor(value).numpy().copy() for name, value in input_model.params.items()}
        net.load_state_dict({name: torch.as_tensor(value) for name, value in before.items()})
        net.train()
        optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for batch, targets in DataLoader(dataset, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), targets).backward()
            optimizer.step()
        difference = {name: value.numpy() - before[name] for name, value in net.state_dict().items()}
        flare.send(flare.FLModel(params_type=flare.ParamsType.DIFF, params=difference))


if __name__ == "__main__":
    main()

"""An ordinary training script; the lines that say ``fl`` make it a client."""

import argparse

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import roundelay.client as fl

from data import load
from model import Net

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="", help="folder of CIFAR-10's binary files; without one, digits")
parser.add_argument("--limit", type=int, help="use so many examples only")
parser.add_argument("--lr", type=float, default=0.02)
args = parser.parse_args()

net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)

fl.init()
train_set, _ = load(fl.get_config()["partition"], args.data, args.limit)

while fl.is_running():
    net.load_state_dict(fl.receive().params)
    net.train()
    for images, labels in DataLoader(train_set, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    print(f"trained on {len(train_set)} examples, loss of the last batch {loss.item():.3f}")
    fl.send(fl.FLModel(params=net.state_dict(), metrics={"loss": loss.item()}, num_examples=len(train_set)))

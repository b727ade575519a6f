"""What every client runs: an ordinary training script, and five lines that make it part of a federation (fl....)."""

import argparse

import torch
from torch import nn

import roundelay as rd
import roundelay.client as fl

from model import Net

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--epochs", type=int, default=1)
args = parser.parse_args()

fl.init()

# Your own data goes here: a client reads what lies beside it, through a DataLoader or however it likes. These clients
# all have the same digits at hand; each takes its part of them, and holds every fifth out.
part = fl.get_config()["partition"]  # {"client": "site-1", "number": 0, "num_clients": 2}
digits = rd.data.digits().train
if "file" in part:  # job.py says partition=...
    positions = rd.Split.load(part["file"])[part["client"]]
else:
    positions = torch.arange(part["number"], len(digits), part["num_clients"])
held_out = torch.arange(len(positions)) % 5 == 0
train, test = digits.select(positions[~held_out]), digits.select(positions[held_out])

net, loss_of = Net(), nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=args.lr)

while fl.is_running():
    received = fl.receive()
    net.load_state_dict(received.params)

    net.eval()  # the model that came, on this client's own test data: by this the best one is chosen
    with torch.no_grad():
        hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in test.batches(torch.arange(len(test)), 256))

    net.train()
    for epoch in range(args.epochs):
        for x, y in train.batches(torch.randperm(len(train)), 16):
            optimizer.zero_grad()
            loss = loss_of(net(x), y)
            loss.backward()
            optimizer.step()
        print(f"round {received.current_round}, epoch {epoch}: loss {loss.item():.4f}")

    fl.send(fl.FLModel(params=net.state_dict(), num_examples=len(train), metrics={"accuracy": hits / len(test)}))

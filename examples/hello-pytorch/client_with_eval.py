"""A client that does all that it can be asked for: trains, evaluates, and hands out its own best model.

It evaluates each model before it trains on it, so that the server knows which of its models was the best.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import roundelay.client as fl

from data import load
from model import Net

BEST = "best_local.pt"
"""Every client has a working directory of its own, and so its own such file."""


def main() -> None:
    args = arguments()
    fl.init()
    train_set, test_set = load(fl.get_config()["partition"], args.data, args.limit)
    net, writer = Net(), fl.SummaryWriter()
    while fl.is_running():
        received = fl.receive()
        if fl.is_submit_model():
            fl.send(fl.FLModel(params=torch.load(BEST)))
            continue
        net.load_state_dict(received.params)
        accuracy = evaluate(net, test_set)
        if fl.is_evaluate():
            fl.send(fl.FLModel(metrics={"accuracy": accuracy}, num_examples=len(test_set)))
            continue
        print(f"round {received.current_round} of {received.total_rounds}: the model received has {accuracy:.3f}")
        writer.add_scalar("accuracy_received", accuracy, received.current_round)
        loss = train(net, train_set, args, writer, received.current_round)
        keep_best(net, test_set)
        metrics = {"accuracy": accuracy, "loss": loss}
        fl.send(fl.FLModel(params=net.state_dict(), metrics=metrics, num_examples=len(train_set)))


def train(net: nn.Module, data: TensorDataset, args: argparse.Namespace, writer: fl.SummaryWriter, round: int) -> float:
    """Train in place; return the mean loss over the steps."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
    fl.patch(optimizer)  # for algorithms that correct gradients; with FedAvg it changes nothing
    loader = DataLoader(data, batch_size=32, shuffle=True)
    total, num_steps = 0.0, args.epochs * len(loader)
    for epoch in range(args.epochs):
        for step, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            if step % 20 == 0:
                writer.add_scalar("loss", loss.item(), round * num_steps + epoch * len(loader) + step)
    return total / num_steps


@torch.no_grad()
def evaluate(net: nn.Module, data: TensorDataset) -> float:
    """Return the fraction of images that the model names right."""
    net.eval()
    right: list[Tensor] = [net(images).argmax(1) == labels for images, labels in DataLoader(data, batch_size=256)]
    return torch.cat(right).float().mean().item()


def keep_best(net: nn.Module, test_set: TensorDataset) -> None:
    accuracy = evaluate(net, test_set)
    if accuracy >= fl.state.get("best_accuracy", 0.0):
        fl.state["best_accuracy"] = accuracy  # lasts, even if this process does not
        torch.save(net.state_dict(), BEST)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="", help="folder of CIFAR-10's binary files; without one, digits")
    parser.add_argument("--limit", type=int, help="use so many examples only")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

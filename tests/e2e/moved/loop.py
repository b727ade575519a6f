"""A training script in the manner of NVFlare's: a loop that trains, evaluates and hands out its model."""

import argparse

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import roundelay.client as flare

from network import Net, points_of

CHECKPOINT = "local_model.pt"


def evaluate(net, points, labels):
    net.eval()
    with torch.no_grad():
        return float((net(points).argmax(1) == labels).float().mean())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()

    flare.init()
    site_name = flare.system_info()["site_name"]
    points, labels = points_of(site_name)
    loader = DataLoader(TensorDataset(points, labels), batch_size=args.batch_size, shuffle=True)
    net = Net()
    criterion = nn.CrossEntropyLoss()
    summary_writer = flare.SummaryWriter()

    while flare.is_running():
        input_model = flare.receive()
        print(f"site={site_name} round={input_model.current_round}")

        if flare.is_submit_model():
            flare.send(flare.FLModel(params=torch.load(CHECKPOINT, weights_only=True)))
            continue

        net.load_state_dict(input_model.params)
        accuracy = evaluate(net, points, labels)
        if flare.is_evaluate():
            flare.send(flare.FLModel(metrics={"accuracy": accuracy}))
            continue

        net.train()
        optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        steps = 0
        running_loss = 0.0
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = criterion(net(batch), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            steps += 1
        global_step = (input_model.current_round + 1) * len(loader)
        summary_writer.add_scalar(tag="train_loss", scalar=running_loss / steps, global_step=global_step)

        if input_model.current_round == input_model.total_rounds - 1:
            torch.save(net.cpu().state_dict(), CHECKPOINT)
            print("last round, local model saved")

        output_model = flare.FLModel(
            params=net.cpu().state_dict(),
            metrics={"accuracy": accuracy},
            meta={"NUM_STEPS_CURRENT_ROUND": steps},
        )
        flare.send(output_model)


if __name__ == "__main__":
    main()

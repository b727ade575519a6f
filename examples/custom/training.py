"""Your own local training: a function that trains the model in place on one client's data."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

import roundelay as rd


def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, targets in DataLoader(data, batch_size=16, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs + 0.05 * torch.randn_like(inputs)), targets)
        loss.backward()
        optimizer.step()
    return len(data), {"last_loss": loss}


def main(num_rounds: int = 10) -> rd.History:
    job = rd.Job(
        model=rd.models.SmallCNN,
        data=rd.data.digits,
        partition=rd.Shards(num_clients=20, shards_per_client=4),
        learner=train,
        num_rounds=num_rounds,
        clients_per_round=10,
    )
    return job.run()


if __name__ == "__main__":
    print(f"accuracy {main(*map(int, sys.argv[1:])).metrics['accuracy']:.3f}")

"""Your own network: any function or class that returns a torch.nn.Module."""

import sys

import torch
from torch import Tensor, nn

import roundelay as rd


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(784, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(x.flatten(1))))


def main(num_rounds: int = 10) -> rd.History:
    job = rd.Job(
        model=Net,
        data=rd.data.digits,
        partition=rd.IID(num_clients=20),
        learner=rd.LocalSGD(lr=0.1, batch_size=10, local_epochs=1),
        num_rounds=num_rounds,
        clients_per_round=0.5,
    )
    return job.run()


if __name__ == "__main__":
    history = main(*map(int, sys.argv[1:]))
    print(f"accuracy {history.metrics['accuracy']:.3f} in {history.run_folder}")

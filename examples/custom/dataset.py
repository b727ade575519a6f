"""Your own data: one map-style data set per client, here sensors that each see another stretch of a curve."""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import roundelay as rd


class Sensor(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, start: float, num_readings: int = 64) -> None:
        self.x = torch.linspace(start, start + 1, num_readings)[:, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], torch.sin(3 * self.x[index])


def main(num_rounds: int = 30) -> rd.History:
    sensors = {f"sensor-{i}": Sensor(i / 2 - 1) for i in range(4)}
    job = rd.Job(
        model=lambda: nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)),
        data=rd.FederatedData.from_datasets(sensors, held_out=Sensor(-1, 200)),
        learner=rd.LocalSGD(lr=0.03, batch_size=16, local_epochs=5, loss=nn.functional.mse_loss),
        evaluation=rd.Evaluation(measures=()),
        num_rounds=num_rounds,
        clients_per_round=4,
    )
    return job.run()


if __name__ == "__main__":
    print(f"held-out squared error {main(*map(int, sys.argv[1:])).metrics['loss']:.4f}")

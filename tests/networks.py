"""Small networks and data that are awkward on purpose: BatchNorm, dropout, odd sizes, tied weights."""

import torch
from torch import Tensor, nn

import roundelay as rd
from roundelay.data import TensorExamples


class Plain(nn.Module):
    """Sizes that are no multiples of anything, so that tensors laid end to end would be misaligned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 13), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Awkward(nn.Module):
    """BatchNorm's buffers and counters, and dropout's random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(7, 13), nn.BatchNorm1d(13), nn.Dropout(0.3)
        self.second = nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(torch.relu(self.norm(self.first(x)))))


class Tied(nn.Module):
    """An output layer that shares its weight with the input layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(7, 7, bias=False), nn.Linear(7, 7, bias=False)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(torch.relu(self.encode(x))))


class Twins(nn.Module):
    """Two layers of one shape: nothing but their values tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def examples(num_examples: int, seed: int = 5) -> TensorExamples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 7, generator=generator)
    return TensorExamples(inputs, torch.randint(0, 3, (num_examples,), generator=generator))


def federated(num_clients: int = 6) -> rd.FederatedData:
    """Clients of unequal size, whose last batches of 4 hold 2 or 4 examples (BatchNorm refuses a batch of 1)."""
    parts = {f"c{i}": examples(10 + 2 * i, seed=i) for i in range(num_clients)}
    return rd.FederatedData.from_datasets(parts, held_out=examples(30, seed=99))


def small_job(**changes: object) -> rd.Job:
    settings: dict[str, object] = {
        "model": Awkward,
        "data": federated,
        "learner": rd.LocalSGD(lr=0.1, batch_size=4, local_epochs=2),
        "num_rounds": 3,
        "clients_per_round": 4,
        "seed": 7,
        "simulation": rd.Simulation(executor="serial"),
        "tracking": None,
    }
    return rd.Job(**{**settings, **changes})  # type: ignore[arg-type]

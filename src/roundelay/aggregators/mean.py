"""The plain mean, for what comes after another rule."""

from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import weighted
from roundelay.aggregators.protocol import Updates


@dataclass(frozen=True, slots=True)
class Mean:
    """The plain mean over clients, each counted once: no protection by itself, but what may follow a first step."""

    def __call__(self, updates: Updates) -> Tensor:
        n = len(updates.points)
        return weighted(updates, torch.full((n,), 1 / n, dtype=torch.float64))

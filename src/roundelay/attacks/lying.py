"""Attacks of one client for itself, which sends what it did not reach.

Sources: M. Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020;
E. Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020 (scaling).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.attacks.protocol import Hostile


@dataclass(frozen=True, slots=True)
class SignFlip(Hostile):
    """Send the step backwards, ``scale`` times as far."""

    scale: float = 1.0

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return -self.scale * step


@dataclass(frozen=True, slots=True)
class Scaling(Hostile):
    """Send ``factor`` times the step; n / f replaces the mean by the hostile clients' model, and below 0 ruins it."""

    factor: float

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return self.factor * step


@dataclass(frozen=True, slots=True)
class GaussianNoise(Hostile):
    """Add Gaussian noise of standard deviation ``std`` to each value."""

    std: float

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return step + self.std * torch.randn(step.shape, generator=draw, dtype=step.dtype)

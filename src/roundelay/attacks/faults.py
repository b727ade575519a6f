"""What befalls clients that mean well."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.attacks.protocol import Hostile
from roundelay.errors import ConfigError
from roundelay.messages import Task


@dataclass(frozen=True, slots=True)
class NaN(Hostile):
    """Send values that are not numbers, as a client does whose training diverged."""

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return torch.full_like(step, math.nan)


@dataclass(frozen=True, slots=True)
class Drop(Hostile):
    """Lose the answer to a task with probability ``p``; the server hears so at the moment when it was due."""

    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


@dataclass(frozen=True, slots=True)
class Slow(Hostile):
    """Take ``factor`` times as long, and ``seconds`` more, in virtual time."""

    factor: float = 1.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.factor < math.inf and 0 <= self.seconds < math.inf):
            raise ConfigError(f"Slow: factor and seconds must be at least 0, got {self.factor}, {self.seconds}")


@dataclass(frozen=True, slots=True)
class Crash(Hostile):
    """Raise at the end of local training with probability ``p``, again when the task is tried again."""

    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


FAULTS = (NaN, Drop, Slow, Crash)


def strikes(fault: Drop | Crash, seed: int, task: Task) -> bool:
    """Draw whether a fault strikes a task."""
    drawn = seeds.uniform(seed, task.round, task.attempt, task.client, type(fault).__name__.lower())
    return drawn < fault.p


def _check_probability(fault: Hostile, p: float) -> None:
    if not 0 < p <= 1:
        raise ConfigError(f"{type(fault).__name__}: p must be a probability in (0, 1], got {p!r}")

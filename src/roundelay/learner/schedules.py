"""How the learning rate changes from round to round; rounds count from 1."""

import math
from dataclasses import dataclass

from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Constant:
    """The same learning rate in every round."""

    def __call__(self, round: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Cosine:
    """Fall from 1 to ``final`` along half a cosine over ``num_rounds`` rounds, and stay there."""

    num_rounds: int
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.num_rounds < 1:
            raise ConfigError(f"schedule Cosine: num_rounds must be at least 1, got {self.num_rounds!r}")

    def __call__(self, round: int) -> float:
        done = min(round - 1, self.num_rounds) / self.num_rounds
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True)
class Step:
    """Multiply by ``factor`` after every ``every`` rounds."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"schedule Step: every must be at least 1, got {self.every!r}")

    def __call__(self, round: int) -> float:
        return float(self.factor ** ((round - 1) // self.every))

"""How busy simulated clients are: functions of the client and the moment in virtual time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.load import IDLE, Load

__all__ = ["Busy"]


@dataclass(frozen=True, slots=True)
class When:
    """Before which attempt at which round a client is asked, at ``at_s`` of virtual time."""

    seed: int
    round: int
    attempt: int
    at_s: float


LoadModel = Callable[[str, When], Load | None]
"""``load(client, when)``, None where the client does not answer; of the same arguments always the same, so that a run
can be repeated.
"""


def idle(client: str, when: When) -> Load:
    """Nobody has anything else to do."""
    return IDLE


@dataclass(frozen=True, slots=True)
class Busy:
    """Each client is busy for about a ``share`` of the time, in stretches of ``every_s`` seconds that are drawn by
    themselves; then its processors are at ``cpu_percent``, else at 0.
    """

    share: float
    every_s: float = 60.0
    cpu_percent: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"busy share must be from 0 to 1, got {self.share!r}")
        if not (self.every_s > 0 and math.isfinite(self.every_s)):
            raise ConfigError(f"busy every_s must be a positive number of seconds, got {self.every_s!r}")
        if not 0 <= self.cpu_percent <= 100:
            raise ConfigError(f"busy cpu_percent must be from 0 to 100, got {self.cpu_percent!r}")

    def __call__(self, client: str, when: When) -> Load:
        stretch = int(when.at_s // self.every_s)
        is_busy = seeds.uniform(when.seed, stretch, 0, client, "load") < self.share
        return Load(self.cpu_percent, 0.0, 0.0, 100.0) if is_busy else IDLE

"""Where a run's clients are: simulated on this machine, or real. A run is the same in every world."""

import math
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from typing import Protocol

from roundelay.bookkeeping import Given
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Version


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a run on real devices waits: ``heartbeat_s`` is how often a device that is at work shows that it lives; after
    20 heartbeats of silence its client is lost in the rounds that wait for it, until it comes back.
    ``wait_for_clients_s`` is how long a run that begins waits for all of its clients to join; then it goes on with
    those that have. The third time there is, a round's deadline, is the workflow's.

    ``max_connections`` may be open at once, strangers' among them, where the system allows for so many files.
    """

    heartbeat_s: float = 15.0
    wait_for_clients_s: float = 3_600.0
    max_connections: int = 4_096

    def __post_init__(self) -> None:
        for name in ("heartbeat_s", "wait_for_clients_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"deployment {name} must be a positive number of seconds, got {value!r}")
        if self.max_connections < 1:
            raise ConfigError(f"deployment max_connections must be at least 1, got {self.max_connections!r}")


class Inhabited(Federation, Protocol):
    """A federation, and how to wait until its clients are there."""

    async def gather(self) -> None:
        """Wait until enough of the clients are there to begin."""


class World(Protocol):
    """Used by the one thread in which a run trains, except for ``interrupt``."""

    def open(self) -> None:
        """Start what clients need."""

    def loop(self) -> AbstractEventLoop:
        """Return the loop in which the workflow runs, made now."""
        ...

    def federation(self, given: Given) -> Inhabited:
        """Return what the workflow talks to; called once, in the loop's thread."""
        ...

    def now_ns(self) -> int:
        """Return this world's own time, which a checkpoint keeps."""
        ...

    def checkpointed(self, version: Version) -> None:
        """Hear that this version is on disk, with all that a resumed run needs."""

    def interrupt(self) -> None:
        """Make what waits for clients raise KeyboardInterrupt, or CancelledError; called from another thread."""

    def close(self) -> None:
        """Give back what ``open`` took."""

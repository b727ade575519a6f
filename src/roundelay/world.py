"""Where a run's clients are: simulated on this machine, or real. A run is the same in every world."""

from asyncio import AbstractEventLoop
from typing import Protocol

from roundelay.bookkeeping import Given
from roundelay.federation import Federation, Version


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
        """Make what waits for clients raise KeyboardInterrupt; called from another thread."""

    def close(self) -> None:
        """Give back what ``open`` took."""

"""The world of real devices: their answers come when they come, and what they have done outlives the server."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from roundelay.bookkeeping import Given
from roundelay.deployment.board import Board
from roundelay.deployment.running.calls import Calls
from roundelay.deployment.running.federation import DeployedFederation
from roundelay.errors import JournalMismatch
from roundelay.federation import Flight, Version

log = logging.getLogger(__name__)
NS = 1_000_000_000


@dataclass(slots=True)
class Deployed:
    """``flights`` were under way, and ``past_ns`` of the run had passed, when it was last kept; ``sha256`` gives the
    hash of a version's model.
    """

    board: Board
    flights: Sequence[tuple[Flight, int]]
    past_ns: int
    wait_s: float
    sha256: Callable[[Version], str]
    _began_ns: int = field(default_factory=time.monotonic_ns)
    _calls: Calls | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _interrupted: bool = False

    def open(self) -> None:
        """There is nothing to start: devices come by themselves."""

    def loop(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        return self._loop

    def federation(self, given: Given) -> DeployedFederation:
        """Raises:
        JournalMismatch: the run folder's checkpoint is older than the journal's: updates between are gone.
        """
        assert self._loop is not None
        kept, done = self.board.journal.checkpoint(), given.restored.number if given.restored else 0
        if kept is not None and kept.round > done:
            raise JournalMismatch(
                f"{self.board.journal.folder} has let go of the updates up to round {kept.round}, but the run folder's "
                f"checkpoint.pt is that of round {done}; was it replaced? Bring the whole folder back from a copy"
            )
        self._calls = Calls(self.board, self._loop)
        if self._interrupted:  # before there was anybody to hear it
            self._calls.interrupt()
        return DeployedFederation(
            given, board=self.board, calls=self._calls, flights=self.flights, wait_s=self.wait_s, now_s=self._now_s
        )

    def now_ns(self) -> int:
        return self.past_ns + time.monotonic_ns() - self._began_ns

    def _now_s(self) -> float:
        return self.now_ns() / NS

    def checkpointed(self, version: Version) -> None:
        journal = self.board.journal
        content = {"round": version.number, "sha256": self.sha256(version)}
        journal.save_checkpoint(version.number, journal.blobs.put(json.dumps(content).encode()))
        journal.collect()

    def interrupt(self) -> None:
        self._interrupted = True
        if self._calls is not None:
            self._calls.interrupt()

    def close(self) -> None:
        """There is nothing to give back: the board belongs to whoever made it."""

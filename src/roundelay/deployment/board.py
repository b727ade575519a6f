"""What the front and the run share: who is there, what hangs out to be done, and what has come in.

The run lives in a thread with its own loop, the front in another. Both work on one journal; the board only says that
there is something new in it, and keeps what is not worth writing down. Its methods may be called from any thread.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import KeptTask
from roundelay.deployment.protocol import GONE_AFTER

log = logging.getLogger(__name__)


class Phase(StrEnum):
    WAITING = "waiting for clients to join"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "about to stop"
    ENDED = "ended"


class Board:
    def __init__(self, journal: Journal, heartbeat_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """``now_s`` must be monotonic: nothing here asks what time of day it is."""
        self.journal, self.heartbeat_s = journal, heartbeat_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}
        self._forgotten: set[str] = set()
        self._begun = now_s()
        self._phase, self._reason = Phase.WAITING, ""
        self._on_posted: Callable[[Collection[str] | None], None] = _nobody_listens
        self._on_news: Callable[[int | None], None] = _nobody_listens

    # ---- the front --------------------------------------------------------------------------------------------------

    def listen_for_posts(self, on_posted: Callable[[Collection[str] | None], None]) -> None:
        """``on_posted(clients)`` is called in the poster's thread; None: the phase changed."""
        self._on_posted = on_posted

    def saw(self, client: str) -> None:
        """Note that a client has shown itself, by a request whose signature was good."""
        with self._lock:
            now, before = self._now_s(), self._seen.get(client)
            self._seen[client] = now
            self._forgotten.discard(client)
        if before is None or now - before > self.gone_after_s:
            self._on_news(None)

    def forget(self, client: str) -> None:
        """Note that a client is not one any more: until it is seen again, it counts as silent for ever."""
        with self._lock:
            self._seen.pop(client, None)
            self._forgotten.add(client)

    def next_task(self, client: str, doing: Collection[int]) -> KeptTask | None:
        """Return the client's first open task that it does not have yet."""
        if self._phase is not Phase.RUNNING:
            return None
        return next((task for task in self.journal.tasks.open_of(client) if task.task.id not in doing), None)

    def came(self, task_id: int) -> None:
        """Say that a task was answered, or lost; the journal has it."""
        self._on_news(task_id)

    # ---- the run ----------------------------------------------------------------------------------------------------

    def listen_for_news(self, on_news: Callable[[int | None], None]) -> None:
        """``on_news(task id)`` is called in one of the front's threads; None: somebody is there who was not before."""
        self._on_news = on_news

    def post(self, clients: Collection[str]) -> None:
        """Say that the journal has new tasks for these clients, or has closed some of theirs."""
        self._on_posted(clients)

    def turn(self, phase: Phase, reason: str = "") -> None:
        with self._lock:
            self._phase, self._reason = phase, reason
        self._on_posted(None)

    # ---- both -------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def reason(self) -> str:
        """Why the phase is what it is, where that needs saying."""
        return self._reason

    def silent_s(self, client: str) -> float:
        """Return for how long a client has not been heard of, at most since the server started."""
        with self._lock:
            if client in self._forgotten:
                return math.inf
            return self._now_s() - self._seen.get(client, self._begun)

    def is_present(self, client: str) -> bool:
        """Whether it was heard of since the start, and not too long ago."""
        with self._lock:
            seen = self._seen.get(client)
        return seen is not None and self._now_s() - seen <= self.gone_after_s

    @property
    def gone_after_s(self) -> float:
        return GONE_AFTER * self.heartbeat_s

    def presence(self) -> Mapping[str, float]:
        """Return how long ago each client was heard of, for all that were since the start."""
        with self._lock:
            return {client: self._now_s() - seen for client, seen in self._seen.items()}


def _nobody_listens(_: object) -> None: ...

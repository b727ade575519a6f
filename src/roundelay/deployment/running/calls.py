"""How a run waits for its clients: for answers, for a deadline, for those who are not there. All in the run's loop."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from roundelay.deployment.board import Board, Phase
from roundelay.deployment.journal.records import TaskState
from roundelay.errors import RoundelayError
from roundelay.messages import Task

log = logging.getLogger(__name__)

REMIND_S = 60.0
"""How often we say for whom we wait."""

PATIENCE = 4
"""So many heartbeats a paused run waits, where enough clients are there, before it tries again."""

OVERDUE_AFTER, LOOKED_OUT_FOR = 16, 3
"""After so many heartbeats of silence a client is missed, and only one that was missed for so many more is ever lost: a
server that stood still itself has heard nobody, and first gives all of them the time to be heard of again.
"""


class Expected(NamedTuple):
    """A task that somebody waits for, and since when its client may have been silent."""

    task: Task
    land: Callable[[int], None]
    since_s: float


class Calls:
    """``interrupt`` may be called from any thread, the rest from the loop's own."""

    def __init__(self, board: Board, loop: asyncio.AbstractEventLoop) -> None:
        self._board, self._loop, self._journal = board, loop, board.journal
        self._expected: dict[int, Expected] = {}  # tasks that are waited for, by id
        self._missed: dict[str, float] = {}  # since when, on the loop's clock
        self._interrupted = False
        self._run: asyncio.Task[object] | None = None
        self._change = loop.create_future()
        board.listen_for_news(self._hear)

    def now_s(self) -> float:
        """Return the time on the loop's clock, which is monotonic."""
        return self._loop.time()

    def begin(self) -> None:
        """Called by the task that is the run, before it waits for anything."""
        self._run = asyncio.current_task()
        if self._interrupted:
            raise asyncio.CancelledError

    def interrupt(self) -> None:
        """Cancel the run, and with it all that waits on its behalf; it may have begun or not."""
        self._interrupted = True
        with suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(self._cancel)

    # ---- answers ----------------------------------------------------------------------------------------------------

    def expect(self, tasks: Sequence[Task], land: Callable[[int], None], *, patient: bool = False) -> None:
        """Call ``land(task id)`` once for each task, as soon as it was answered or lost: for those that were already,
        now, in the order in which they came. Who is ``patient`` gives clients that are silent as much time from now on
        as those that fall silent later: a workflow that asks anew whenever somebody is lost would ask without end.
        """
        since_s = self.now_s() if patient else -math.inf
        self._expected |= {task.id: Expected(task, land, since_s) for task in tasks}
        here = []
        for task in tasks:
            kept = self._journal.tasks.get(task.id)
            update = self._journal.update(task.id)
            if update is not None or (kept is not None and kept.state is TaskState.LOST):
                here.append((float("inf") if update is None else update.number, task.id))
        for _, task_id in sorted(here):
            self._settle(task_id)

    async def answers(
        self, tasks: Sequence[Task], until_s: float | None, tick_s: float | None
    ) -> AsyncGenerator[int | None, None]:
        """Yield the tasks as they are answered or lost, until all of them are, or it is ``until_s``; and None about
        every ``tick_s``. What has come by the deadline is in time.
        """
        came: deque[int] = deque()
        left, ticked = len(tasks), self.now_s()
        self.expect(tasks, came.append)
        try:
            while left:
                while came:
                    left -= 1
                    yield came.popleft()
                if not left or (until_s is not None and self.now_s() >= until_s):
                    return
                if tick_s is not None and self.now_s() - ticked >= tick_s:
                    ticked = self.now_s()
                    yield None
                if not came:
                    next_tick = None if tick_s is None else ticked + tick_s
                    await self._rest(min((at for at in (until_s, next_tick) if at is not None), default=None))
        finally:
            for task in tasks:
                self._expected.pop(task.id, None)

    async def rest(self, seconds: float) -> None:
        until_s = self.now_s() + seconds
        while self.now_s() < until_s:
            await self._rest(until_s)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._rest(None)

    # ---- clients ----------------------------------------------------------------------------------------------------

    async def gathered(self, clients: Sequence[str], wait_s: float) -> None:
        """Wait until all clients are there; after ``wait_s``, go on with those that are.

        Raises:
            RoundelayError: nobody came.
        """
        until_s, said_s = self.now_s() + wait_s, self.now_s()
        while absent := self._absent(clients):
            self._board.turn(Phase.WAITING, f"{len(absent)} of {len(clients)} are missing: {_some(absent)}")
            if self.now_s() >= until_s:
                break
            if self.now_s() - said_s >= REMIND_S:
                said_s = self.now_s()
                log.warning("still waiting for %s", _some(absent))
            await self._rest(min(until_s, said_s + REMIND_S))
        if len(absent) == len(clients):
            raise RoundelayError(
                f"none of the {len(clients)} clients came within {wait_s:g} s ({_some(absent)}): did they get the join "
                "line, and does their network let them out to this server? `roundelay doctor` at a site tells"
            )
        if absent:
            log.warning("going on without %s, who did not come within %g s", _some(absent), wait_s)

    async def pause(self, why: str, clients: Sequence[str], needed: int) -> None:
        """Wait until as many are there as are needed, and somebody is back, or a while is over."""
        absent = self._absent(clients)
        missing = f"missing: {_some(absent)}" if absent else "nobody is missing"
        log.warning("paused: %s; %s", why, missing)
        self._board.turn(Phase.PAUSED, f"{why}; {missing}")
        began_s = said_s = self.now_s()
        while True:
            now = self._absent(clients)
            back, tired = set(absent) - set(now), self.now_s() - began_s >= PATIENCE * self._board.heartbeat_s
            if len(clients) - len(now) >= needed and (back or tired):
                return
            if self.now_s() - said_s >= REMIND_S:
                said_s = self.now_s()
                log.warning("still paused: %s; missing: %s", why, _some(now))
            await self._rest(said_s + REMIND_S)

    def _absent(self, clients: Sequence[str]) -> list[str]:
        return [client for client in clients if not self._board.is_present(client)]

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _hear(self, task_id: int | None) -> None:
        """Called in any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._note, task_id)

    def _cancel(self) -> None:
        if self._run is not None:
            self._run.cancel()

    def _note(self, task_id: int | None) -> None:
        if task_id is not None:
            self._settle(task_id)
        changed, self._change = self._change, self._loop.create_future()
        changed.set_result(None)

    def _settle(self, task_id: int) -> None:
        expected = self._expected.pop(task_id, None)
        if expected is not None:
            expected.land(task_id)

    async def _rest(self, until_s: float | None) -> None:
        """Wait for news, or for a moment of the loop's clock; look after the silent at least once a heartbeat."""
        now_s = self.now_s()
        left_s = self._board.heartbeat_s if until_s is None else min(self._board.heartbeat_s, until_s - now_s)
        await asyncio.wait([self._change], timeout=max(0.0, left_s))
        self._lose_the_silent()

    def _lose_the_silent(self) -> None:
        heartbeat_s, gone_after_s = self._board.heartbeat_s, self._board.gone_after_s
        for task, _, since_s in list(self._expected.values()):
            now_s, silent_s = self.now_s(), self._board.silent_s(task.client)
            waited_s = min(silent_s, now_s - since_s)
            if waited_s < OVERDUE_AFTER * heartbeat_s:
                continue
            if self._missed.get(task.client, -math.inf) < now_s - silent_s:  # not since it was last heard of
                self._missed[task.client] = now_s
            missed_s = now_s - self._missed.get(task.client, -math.inf)
            if waited_s > gone_after_s and missed_s >= LOOKED_OUT_FOR * heartbeat_s:
                self._journal.tasks.lose(task.id, f"client {task.client!r} was silent for {gone_after_s:g} s")
                self._settle(task.id)


def _some(clients: Sequence[str]) -> str:
    return ", ".join(clients[:8]) + (f" and {len(clients) - 8} more" if len(clients) > 8 else "")

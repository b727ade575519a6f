"""A device's signs of life: heartbeats while it is busy, numbers that its scripts log, the thread in which it works."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from roundelay.client.exchange import Scalar
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.trouble import Refusal
from roundelay.deployment.patience import TRIES, TROUBLE, UNSIGNED, Patience, Sleep
from roundelay.deployment.protocol import LoggedScalar

MAX_SHOWN = 1_000
MAX_LOGGED = 10_000
"""Numbers that wait to be sent; of more than these the oldest are forgotten."""

_END_S = 0.05
_T = TypeVar("_T")


class TaskOver(Exception):
    """Nobody waits for a task any more."""


class Pulse:
    """``doing`` are the tasks that this device has, in whatever stage. ``over`` are those that nobody waits for."""

    def __init__(
        self,
        link: Link,
        patience: Patience,
        sleep: Sleep,
        now_s: Callable[[], float],
        draw: Callable[[], float],
    ) -> None:
        self.doing: set[int] = set()
        self.over: set[int] = set()
        self.heartbeat_s = 5.0
        self._link, self._patience = link, patience
        self._sleep, self._now_s, self._draw = sleep, now_s, draw
        self._due_s = now_s()
        self._num_unsigned = 0
        self._logged: deque[tuple[int, LoggedScalar]] = deque(maxlen=MAX_LOGGED)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="task")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def log(self, round: int, scalar: Scalar) -> None:
        """Have a number sent soon. May be called from any thread."""
        self._logged.append((round, LoggedScalar(name=scalar.name[:512], value=float(scalar.value), step=scalar.step)))

    @property
    def shown(self) -> list[int]:
        """What a server is told of ``doing``."""
        return sorted(self.doing)[-MAX_SHOWN:]

    # ---- heartbeats -------------------------------------------------------------------------------------------------

    async def check(self, task: int) -> None:
        """Send a heartbeat if it is time.

        Raises:
            TaskOver: nobody waits for ``task`` any more.
        """
        if self._now_s() >= self._due_s:
            await self.beat()
        if task in self.over:
            raise TaskOver

    async def beat(self) -> None:
        """Send a heartbeat, once: the next one will do as well.

        Raises:
            Refusal: the server turns this device away.
        """
        self._due_s = self._now_s() + self.heartbeat_s * (0.75 + self._draw() / 2)
        try:
            self.over.update(self.doing.intersection((await self._link.beat(self.shown)).over))
            await self._flush()
        except TROUBLE as trouble:
            self._patience.mention(trouble)
        except Refusal as refusal:
            self._num_unsigned += 1
            if refusal.status != UNSIGNED or self._num_unsigned >= TRIES:
                raise
        else:
            self._num_unsigned = 0

    async def send_logged(self) -> None:
        """Send the numbers that were logged, if the server takes them now; what it does not is sent later."""
        try:
            await self._flush()
        except TROUBLE as trouble:
            self._patience.mention(trouble)

    async def _flush(self) -> None:
        while self._logged:
            batch = [self._logged.popleft()]
            while self._logged and self._logged[0][0] == batch[0][0] and len(batch) < MAX_SHOWN:
                batch.append(self._logged.popleft())  # only here: other threads add to it meanwhile
            try:
                await self._link.scalars(batch[0][0], [scalar for _, scalar in batch])
            except BaseException as error:
                if isinstance(error, Refusal) and error.problem.error in ("message", "too_large", "not_found"):
                    continue  # these numbers it will never take
                self._logged.extendleft(reversed(batch))
                raise

    # ---- work -------------------------------------------------------------------------------------------------------

    async def in_thread(
        self, work: Callable[[], _T], task: int | None = None, interrupt: Callable[[], None] = lambda: None
    ) -> _T:
        """Do ``work`` in the one thread for it, and send heartbeats meanwhile. ``interrupt`` makes it end early, where
        it is not over soon anyway; the thread is waited for whatever happens.

        Raises:
            TaskOver: nobody waits for ``task`` any more; what came of the work, and what it raised, is dropped.
        """
        job = self._pool.submit(work)
        future, left = asyncio.wrap_future(job), False
        try:
            while not future.done():
                await self._nap(future)
                if not future.done() and self._now_s() >= self._due_s:
                    await self.beat()
                    if task in self.over and not future.done():
                        left = True
                        interrupt()
        except BaseException:
            while not job.cancel() and not job.done():
                interrupt()  # again and again: it may be about to begin
                await asyncio.wait({future}, timeout=_END_S)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, so that nobody is told that it was not
            raise
        if left:
            future.exception()
            raise TaskOver
        return future.result()

    async def finish(self, work: Callable[[], None]) -> None:
        """Do a last piece of work in that thread, without a word to the server."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        await asyncio.wait({future})
        future.result()

    async def _nap(self, future: "asyncio.Future[Any]") -> None:  # Any: whatever the work returns
        """Wait until the next heartbeat is due, or the work is done."""
        nap = asyncio.ensure_future(self._sleep(max(0.0, self._due_s - self._now_s())))
        try:
            await asyncio.wait([future, nap], return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
            await asyncio.gather(nap, return_exceptions=True)

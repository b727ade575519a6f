"""Virtual time for asyncio: models say when things happen, Python's own run time never does.

One heap of integer nanoseconds, ordered (time, kind, sequence), holds every event. The loop runs what is ready until
nothing is, and only then jumps to the next event. An exception in a callback ends the run: asyncio alone would log it.
"""

import asyncio
import heapq
import selectors
from collections.abc import Callable
from contextvars import Context
from enum import IntEnum
from typing import Any, NoReturn

from roundelay.errors import RoundelayError, VirtualDeadlock

NS = 1_000_000_000


class Order(IntEnum):
    """What happens first among events of the same nanosecond: an answer that arrives at the deadline is in time."""

    ARRIVAL = 0
    TIMER = 1
    AFTER_ALL = 2


class Event:
    """A callback in the heap. asyncio asks of its timers no more than these methods."""

    __slots__ = ("_cancelled", "args", "callback", "context", "ns")

    def __init__(
        self, ns: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.ns, self.callback, self.args, self.context = ns, callback, args, context
        self._cancelled = False

    def cancel(self) -> None:
        """Forget the callback too: a cancelled event may lie in the heap for long."""
        self._cancelled, self.callback, self.args, self.context = True, _nothing, (), None

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self.ns / NS


def _nothing() -> None: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, start_ns: int = 0) -> None:
        self._ns, self._sequence = start_ns, 0
        self._failure: BaseException | None = None
        self._heap: list[tuple[int, Order, int, Event]] = []
        super().__init__(_Jump(self))
        self.set_exception_handler(self._remember_failure)

    @property
    def now_ns(self) -> int:
        return self._ns

    def time(self) -> float:
        return self._ns / NS

    def at(
        self,
        ns: int,
        callback: Callable[..., object],
        *args: Any,
        order: Order = Order.ARRIVAL,
        context: Context | None = None,
    ) -> Event:  # Any: asyncio's own callback arguments
        """Call ``callback(*args)`` at virtual nanosecond ``ns``, or now where that is past."""
        event = Event(max(ns, self._ns), callback, args, context)
        self._sequence += 1
        heapq.heappush(self._heap, (event.ns, order, self._sequence, event))
        return event

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Event:
        return self.at(round(when * NS), callback, *args, order=Order.TIMER, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Event:
        return self.at(self._ns + round(delay * NS), callback, *args, order=Order.TIMER, context=context)

    def call_soon_threadsafe(self, *args: object, **kwargs: object) -> NoReturn:
        raise RoundelayError("no thread may reach into virtual time: its moment of calling would be real time")

    def run_in_executor(self, *args: object, **kwargs: object) -> NoReturn:
        raise RoundelayError("a thread's run time is real time, which cannot be awaited in virtual time")

    def advance(self) -> None:
        """Jump to the next event. Called when nothing is ready.

        Raises:
            VirtualDeadlock: no event is left, so whatever the workflow waits for will never come.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        while self._heap:
            self._ns, _, _, event = heapq.heappop(self._heap)
            if not event.cancelled():
                self.call_soon(event.callback, *event.args, context=event.context)
                return
        raise VirtualDeadlock(
            "the workflow waits, but no event is scheduled and nothing is ready: nothing will ever wake it"
        )

    def _remember_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RoundelayError(context["message"])


class _Jump(selectors.DefaultSelector):
    """The point where asyncio would wait for real time: there, virtual time moves instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0:  # asyncio passes 0 while callbacks are ready
            self._loop.advance()
        return []

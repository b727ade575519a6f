"""The moments at which something happens in a modelled network, as one event of the virtual loop at a time."""

import heapq
from collections.abc import Callable, Container, Mapping
from typing import Any

from roundelay.simulation.cells import Cells
from roundelay.simulation.loop import Event, Order, VirtualLoop
from roundelay.simulation.network.cell import Flown


class Clockwork:
    """At one moment flows end, cell by cell; then what is due happens, by its kind, and in the order of foresight."""

    def __init__(
        self, loop: VirtualLoop, cells: Cells, flown: Callable[[int, Flown], None], due: Callable[[int, int], None],
        settled: Callable[[], None],
    ) -> None:  # fmt: skip
        """``flown(cell, flow)`` hears of a flow that is over, ``due(kind, task)`` of what was announced by ``at``,
        ``settled()`` of the end of a moment at which something happened.
        """
        self._loop, self._cells = loop, cells
        self._flown, self._due, self._settled = flown, due, settled
        self._heap: list[tuple[int, int, int, int]] = []  # nanosecond, kind, sequence, task
        self._sequence = 0
        self._pending: tuple[int, Event] | None = None
        self._soon: Event | None = None

    def at(self, ns: int, kind: int, task_id: int) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (ns, kind, self._sequence, task_id))

    def changed(self) -> None:
        """Say that the next moment may be another one: it is looked for when all else of this moment has happened."""
        if self._soon is None:
            self._soon = self._loop.at(self._loop.now_ns, self._arm, order=Order.AFTER_ALL)

    def _arm(self) -> None:
        self._soon = None
        times = [ns for ns in (self._cells.next_ns(), self._heap[0][0] if self._heap else None) if ns is not None]
        next_ns = min(times, default=None)
        if self._pending is not None:
            if self._pending[0] == next_ns:
                return
            self._pending[1].cancel()
        self._pending = None if next_ns is None else (next_ns, self._loop.at(next_ns, self._pump))

    def _pump(self) -> None:
        now_ns, self._pending = self._loop.now_ns, None
        while True:
            over = self._cells.advance(now_ns)
            for cell, flown in over:
                self._flown(cell, flown)
            if not over and not (self._heap and self._heap[0][0] <= now_ns):
                break
            while self._heap and self._heap[0][0] <= now_ns:
                _, kind, _, task_id = heapq.heappop(self._heap)
                self._due(kind, task_id)
        self._settled()
        self._arm()

    def snapshot(self, tasks: Container[int]) -> dict[str, Any]:  # Any: numbers, and lists of them
        """Return what is announced for these tasks."""
        return {"heap": [list(entry) for entry in sorted(self._heap) if entry[3] in tasks], "sequence": self._sequence}

    def restore(self, kept: Mapping[str, Any], tasks: Container[int]) -> None:
        self._heap = [(ns, kind, sequence, task) for ns, kind, sequence, task in kept["heap"] if task in tasks]
        self._sequence = kept["sequence"]
        self.changed()

"""Several cells as one machine: when something happens next in any of them, asked anew only of those that changed."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from roundelay.simulation.network.cell import Cell, Flown


class Cells:
    """They are known by their place in the sequence, and flows of one moment end in that order."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells
        self._next: list[int | None] = [None] * len(cells)
        self._changed = set(range(len(cells)))

    def start(self, cell: int, flow: int, clients: Sequence[int], bits: int, now_ns: int) -> None:
        self._cells[cell].start(flow, clients, bits, now_ns)
        self._changed.add(cell)

    def expect(self, cell: int, flow: int, client: int, bits: int, ready_ns: int, now_ns: int) -> None:
        self._cells[cell].expect(flow, client, bits, ready_ns, now_ns)
        self._changed.add(cell)

    def cancel(self, cell: int, flow: int, now_ns: int) -> Flown | None:
        self._changed.add(cell)
        return self._cells[cell].cancel(flow, now_ns)

    def next_ns(self) -> int | None:
        for cell in self._changed:
            self._next[cell] = self._cells[cell].next_event_ns()
        self._changed.clear()
        return min((ns for ns in self._next if ns is not None), default=None)

    def advance(self, now_ns: int) -> list[tuple[int, Flown]]:
        """Return the flows that are over by now, each with its cell."""
        self.next_ns()
        over: list[tuple[int, Flown]] = []
        for number, next_ns in enumerate(self._next):
            if next_ns is not None and next_ns <= now_ns:
                over += [(number, flown) for flown in self._cells[number].advance(now_ns)]
                self._changed.add(number)
        return over

    def snapshot(self) -> list[Mapping[str, Any]]:  # Any: see Cell.snapshot
        return [cell.snapshot() for cell in self._cells]

    def restore(self, kept: Sequence[Mapping[str, Any]], flows: Collection[int]) -> None:
        """Go on from ``snapshot``, with those ``flows`` alone: nobody waits for the others any more."""
        for cell, one in zip(self._cells, kept, strict=True):
            cell.restore(one)
            for flow in [flow for flow in cell.flows if flow not in flows]:
                cell.cancel(flow, cell.now_ns)
        self._changed = set(range(len(self._cells)))

"""What each flow on the air has still to send, to the last nanosecond exactly.

A rate is a whole number of 64ths of a bit per second, rounded down, and time is whole nanoseconds. What is sent is then
a whole number of *grains*, of which a bit has 64e9, and nothing is ever rounded while a flow is under way. int64 holds
144 Mbit in grains: of a flow above 72 a part is loaded, and the rest stands by in bits until there is room.
"""

from collections.abc import Sequence

import numpy as np

from roundelay.errors import RoundelayError
from roundelay.simulation.network.cell.rates import NS, Floats, Ints

PER_BPS = 64
GRAINS_PER_BIT = PER_BPS * NS
_FULL, _LOW = 2**62, 2**61  # grains: what is loaded at most, and where more is loaded
_AT_ONCE_BITS = _FULL // GRAINS_PER_BIT
_FASTEST_BPS = 1e15  # a nanosecond of it is far below _LOW

_SEQUENCE, _CLIENT, _LOADED, _RESERVE, _RATE, _FIRST_NS, _SILENT_NS = range(7)


class OnAir:
    """The flows on the air, one a column, in no order that means anything.

    ``sequence`` numbers them in the order in which they were asked for; ``client`` is a row of the rates' vectors.
    """

    def __init__(self) -> None:
        self._table = np.zeros((7, 16), dtype=np.int64)
        self._size, self._reserves, self._silence = 0, False, False

    def __len__(self) -> int:
        return self._size

    @property
    def sequence(self) -> Ints:
        return self._row(_SEQUENCE)

    @property
    def client(self) -> Ints:
        return self._row(_CLIENT)

    def bits(self) -> Floats:
        """Return what is left of each flow, for those who plan by it."""
        return self._row(_LOADED) / GRAINS_PER_BIT + self._row(_RESERVE)

    def enter(self, flows: Sequence[tuple[int, int, int]], now_ns: int) -> None:
        """Take in flows, each (sequence, client, bits)."""
        first, self._size = self._size, self._size + len(flows)
        if self._size > self._table.shape[1]:
            wider = np.zeros((7, max(self._size, 2 * self._table.shape[1])), dtype=np.int64)
            wider[:, :first] = self._table[:, :first]
            self._table = wider
        new = self._table[:, first : self._size]
        new[:] = 0
        new[[_SEQUENCE, _CLIENT, _RESERVE]] = np.array(flows, dtype=np.int64).T
        new[_FIRST_NS] = now_ns
        if self._reserves or max(bits for _, _, bits in flows) > _AT_ONCE_BITS:
            self._load()
        else:
            new[_LOADED], new[_RESERVE] = new[_RESERVE] * GRAINS_PER_BIT, 0

    def set_rates(self, bps: Floats) -> None:
        """Give each flow its rate.

        Raises:
            RoundelayError: a rate is none.
        """
        if not (bps.min() >= 0 and bps.max() <= _FASTEST_BPS):  # NaN is neither
            wrong = int(np.flatnonzero(~((bps >= 0) & (bps <= _FASTEST_BPS)))[0])
            raise RoundelayError(f"the rates give client {int(self.client[wrong])} {bps[wrong]!r} bits per second; "
                                 f"expected 0 to {_FASTEST_BPS:g}")  # fmt: skip
        rate = self._row(_RATE)
        rate[:] = bps * PER_BPS  # down, so that shares of a band never come to more than the whole
        self._silence = not rate.all()

    def due_ns(self, now_ns: int) -> int | None:
        """Return when something runs empty first, at these rates, in whole nanoseconds rounded up."""
        loaded, rate = self._row(_LOADED), self._row(_RATE)
        if self._silence:
            talking = rate > 0
            loaded, rate = loaded[talking], rate[talking]
        if not len(rate):
            return None
        about = loaded / rate  # a few units in the last place off: the nearest few are then divided exactly
        least = about.min()
        nearest = np.flatnonzero(about <= least + abs(least) * 1e-14)
        return now_ns + int((-(-loaded[nearest] // rate[nearest])).min())

    def patience_ns(self, patience_ns: int) -> int | None:
        """Return for how long everybody's patience still lasts, where nothing changes."""
        silent_ns = self._row(_SILENT_NS)[self._row(_RATE) == 0] if self._silence else ()
        return max(0, patience_ns - int(np.max(silent_ns))) if len(silent_ns) else None

    def silent(self, ns: int) -> Ints:
        """Return the sequences of the flows that have no rate now and had none for so long in all."""
        silent: Ints = np.sort(self.sequence[(self._row(_RATE) == 0) & (self._row(_SILENT_NS) >= ns)])
        return silent

    def pass_time(self, ns: int) -> None:
        """Send for so long, at most until something is due."""
        self._row(_LOADED)[:] -= self._row(_RATE) * ns
        if self._silence:
            self._row(_SILENT_NS)[:] += (self._row(_RATE) == 0) * ns
        if self._reserves:
            self._load()

    def ended(self) -> Ints:
        """Return the sequences of the flows that are through, in their order."""
        through: Ints = np.sort(self.sequence[self._row(_LOADED) <= 0])
        return through

    def leave(self, sequence: int) -> tuple[int, int, int]:
        """Take a flow off the air. Return its first nanosecond, how many it had no rate, and the grains left of it."""
        at, last = int(np.flatnonzero(self.sequence == sequence)[0]), self._size - 1
        first_ns, silent_ns = int(self._row(_FIRST_NS)[at]), int(self._row(_SILENT_NS)[at])
        left = int(self._row(_LOADED)[at]) + int(self._row(_RESERVE)[at]) * GRAINS_PER_BIT
        self._table[:, at] = self._table[:, last]
        self._size = last
        return first_ns, silent_ns, left

    def snapshot(self) -> list[list[int]]:
        """Return every column, the rates among them: a flow that goes on from it needs no new ones."""
        columns: list[list[int]] = self._table[:, : self._size].T.tolist()
        return columns

    def restore(self, columns: Sequence[Sequence[int]]) -> None:
        self._size = len(columns)
        self._table = np.zeros((7, max(16, self._size)), dtype=np.int64)
        if columns:
            self._table[:, : self._size] = np.array(columns, dtype=np.int64).T
        self._reserves = bool(self._row(_RESERVE).any())
        self._silence = not self._row(_RATE).all()

    def _load(self) -> None:
        loaded, reserve = self._row(_LOADED), self._row(_RESERVE)
        more = np.where(loaded < _LOW, np.minimum(reserve, (_FULL - loaded) // GRAINS_PER_BIT), 0)
        loaded += more * GRAINS_PER_BIT
        reserve -= more
        self._reserves = bool(reserve.any())

    def _row(self, which: int) -> Ints:
        return self._table[which, : self._size]

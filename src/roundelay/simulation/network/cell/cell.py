"""One cell in one direction, flow by flow, as a machine that is told what time it is.

Nothing here waits, draws or asks for the time: whoever drives it asks when something happens next, and tells it when
that time has come. What it comes to depends on what was started when, never on how often it was asked.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from roundelay.errors import ConfigError, RoundelayError
from roundelay.simulation.network.cell.flows import GRAINS_PER_BIT, OnAir
from roundelay.simulation.network.cell.rates import Band, Direction, Floats, Ints, Invertible, Rates
from roundelay.simulation.network.cell.sharing import Air, Expected, Sharing


@dataclass(frozen=True, slots=True)
class Flown:
    """A flow that is over: ``through``, or else cancelled or given up.

    ``sent_bits`` is what went out. ``first_bit_ns`` is when it came on the air, None where it never did;
    ``last_bit_ns`` is when it ended, rounded up. ``airtime_ns`` lies between them, less the time in which there was no
    rate at all and nothing was sent.
    """

    flow: int
    clients: tuple[int, ...]
    bits: int
    sent_bits: int
    queued_ns: int
    first_bit_ns: int | None
    last_bit_ns: int
    airtime_ns: int
    through: bool


@dataclass(frozen=True, slots=True)
class _Flow:
    id: int
    clients: tuple[int, ...]
    bits: int
    queued_ns: int


class Cell:
    """Flows that share a band in one direction.

    ``delay_ns`` passes between asking and the first bit: a grant, or a link's latency (the same for every flow, so that
    it comes to the same whether it passes before the bits or after them). A flow that is on the air and has had no
    rate at all for ``patience_ns``, taken together, is given up; without that, whoever is out of reach stays for ever,
    and in a discipline that queues so do those behind it. A discipline that plans goes by the ``outlook``, which where
    the channel fades should be the same links without fading: whoever plans by the moment gives the band to those who
    are just then in a fade.
    """

    def __init__(
        self,
        sharing: Sharing,
        rates: Rates,
        *,
        bandwidth_hz: float = 1.0,
        outlook: Rates | None = None,
        direction: Direction = "up",
        delay_ns: int = 0,
        patience_ns: int | None = None,
        now_ns: int = 0,
    ) -> None:
        if not 0 < bandwidth_hz < float("inf"):
            raise ConfigError(f"a cell needs a bandwidth_hz above 0, got {bandwidth_hz!r}")
        if delay_ns < 0 or (patience_ns is not None and patience_ns < 1):
            raise ConfigError(f"a cell needs a delay_ns of at least 0 and a patience_ns above it, got {delay_ns!r} and "
                              f"{patience_ns!r}")  # fmt: skip
        self._sharing, self._rates, self._bandwidth_hz = sharing, rates, float(bandwidth_hz)
        self._direction: Direction = direction
        self._delay_ns, self._patience_ns, self._now_ns = delay_ns, patience_ns, now_ns
        self._sequence = 0
        self._flows: dict[int, _Flow] = {}  # by sequence
        self._sequences: dict[int, int] = {}  # by flow
        self._granted: list[tuple[int, int]] = []  # a heap of (first nanosecond, sequence)
        self._queue: deque[int] = deque()
        self._air = OnAir()
        self._groups = 0  # flows under way with several receivers
        self._expected: dict[int, Expected] = {}
        self._stale, self._untimed, self._block = False, False, 0
        self._due_ns: int | None = None
        self._next: tuple[int | None] | None = None  # the next event, as long as nothing has changed since
        self._outlook = rates if outlook is None else outlook
        self._block_ns, self._outlook_block_ns = self._rates.block_ns or 0, self._outlook.block_ns or 0
        self._inverse = self._outlook.band_hz if isinstance(self._outlook, Invertible) else None

    @property
    def now_ns(self) -> int:
        return self._now_ns

    @property
    def flows(self) -> Sequence[int]:
        """The flows under way, in the order in which they were asked for."""
        return list(self._sequences)

    def expect(self, flow: int, client: int, bits: int, ready_ns: int, now_ns: int) -> None:
        """Announce a flow that will be started, for disciplines that plan ahead; to start it, or to cancel it, ends
        that.
        """
        self._pass_to(now_ns)
        self._expected[flow] = Expected(client, bits, ready_ns)
        self._stale, self._next = True, None

    def start(self, flow: int, clients: int | Sequence[int], bits: int, now_ns: int) -> None:
        """Ask for the band. Several ``clients`` receive one broadcast, at the rate of the slowest of them.

        Raises:
            RoundelayError: something is due before ``now_ns``, which ``advance`` has to tell first.
        """
        receivers = tuple(map(int, clients)) if isinstance(clients, Sequence) else (int(clients),)
        if flow in self._sequences or not receivers or bits < 1:
            raise RoundelayError(f"flow {flow} of {bits} bits to {len(receivers)} clients cannot start: it needs an id "
                                 "that is not under way, a client and a bit at least")  # fmt: skip
        self._pass_to(now_ns)
        self._next = None
        self._expected.pop(flow, None)
        self._sequence += 1
        self._flows[self._sequence] = _Flow(flow, receivers, int(bits), now_ns)
        self._sequences[flow] = self._sequence
        self._groups += len(receivers) > 1
        heapq.heappush(self._granted, (now_ns + self._delay_ns, self._sequence))

    def next_event_ns(self) -> int | None:
        """Return when to call ``advance`` next, or None while nothing is under way.

        That is the next end of a flow, end of a delay or end of a fading block: not every one of them ends a flow.
        """
        if self._next is None:
            self._next = (self._find_next_ns(),)
        return self._next[0]

    def advance(self, to_ns: int) -> list[Flown]:
        """Let time pass; return the flows that are through by then, in the order in which they ended."""
        over: list[Flown] = []
        while (event_ns := self.next_event_ns()) is not None and event_ns <= to_ns:
            self._move_to(event_ns)
            if self._due_ns is not None and self._due_ns <= event_ns:
                over += [self._end(int(sequence), through=True) for sequence in self._air.ended()]
                self._due_ns, self._untimed = None, True
            if self._patience_ns is not None:
                over += [self._end(int(sequence)) for sequence in self._air.silent(self._patience_ns)]
        self._pass_to(to_ns)
        return over

    def cancel(self, flow: int, now_ns: int) -> Flown | None:
        """Take back a flow; return how far it came, or None where it was announced at most.

        Raises:
            RoundelayError: something is due before ``now_ns``, which ``advance`` has to tell first.
        """
        self._pass_to(now_ns)
        self._next = None
        if self._expected.pop(flow, None) is not None:
            self._stale = True
        sequence = self._sequences.get(flow)
        if sequence is None:
            return None
        if sequence in self._queue:
            self._queue.remove(sequence)
        elif (waiting := [entry for entry in self._granted if entry[1] != sequence]) != self._granted:
            heapq.heapify(waiting)
            self._granted = waiting
        else:
            return self._end(sequence)
        return self._forget(sequence, None, 0, 0, False)

    def snapshot(self) -> dict[str, Any]:  # Any: numbers, and lists of them
        """Return all that a cell of the same settings goes on from, to the same nanoseconds."""
        return {
            "now_ns": self._now_ns, "sequence": self._sequence, "block": self._block, "due_ns": self._due_ns,
            "stale": self._stale, "untimed": self._untimed,
            "flows": [[s, f.id, list(f.clients), f.bits, f.queued_ns] for s, f in self._flows.items()],
            "granted": [list(entry) for entry in self._granted], "queue": list(self._queue),
            "air": self._air.snapshot(), "expected": [[flow, *e] for flow, e in self._expected.items()],
        }  # fmt: skip

    def restore(self, kept: Mapping[str, Any]) -> None:  # Any: see snapshot
        self._now_ns, self._sequence, self._next = kept["now_ns"], kept["sequence"], None
        self._block, self._due_ns = kept["block"], kept["due_ns"]
        self._stale, self._untimed = kept["stale"], kept["untimed"]
        self._flows = {s: _Flow(flow, tuple(clients), bits, at) for s, flow, clients, bits, at in kept["flows"]}
        self._sequences = {flow.id: sequence for sequence, flow in self._flows.items()}
        self._groups = sum(len(flow.clients) > 1 for flow in self._flows.values())
        self._granted = [(ns, sequence) for ns, sequence in kept["granted"]]
        self._queue = deque(kept["queue"])
        self._air.restore(kept["air"])
        self._expected = {flow: Expected(*rest) for flow, *rest in kept["expected"]}

    def _find_next_ns(self) -> int | None:
        if self._due_ns is not None and self._due_ns <= self._now_ns:
            return self._now_ns
        self._settle()
        times = [time for time in (self._due_ns, self._boundary_ns()) if time is not None]
        if self._granted:
            times.append(self._granted[0][0])
        if self._patience_ns is not None and (left_ns := self._air.patience_ns(self._patience_ns)) is not None:
            times.append(self._now_ns + left_ns)
        return min(times, default=None)

    def _pass_to(self, to_ns: int) -> None:
        if to_ns == self._now_ns:
            return
        event_ns = self.next_event_ns()
        if to_ns < self._now_ns or (event_ns is not None and event_ns < to_ns):
            raise RoundelayError(f"the cell stands at {self._now_ns} ns and something is due at {event_ns} ns: it "
                                 f"cannot pass to {to_ns} ns; advance it first")  # fmt: skip
        self._move_to(to_ns)

    def _move_to(self, to_ns: int) -> None:
        """Send until then; rates stand still up to there."""
        if len(self._air):
            self._air.pass_time(to_ns - self._now_ns)
        self._now_ns, self._next = to_ns, None

    def _settle(self) -> None:
        """Let in who may come on the air by now, and give new rates where anything changed."""
        while self._granted and self._granted[0][0] <= self._now_ns:
            self._queue.append(heapq.heappop(self._granted)[1])
        places = self._sharing.places
        free = len(self._queue) if places is None else min(len(self._queue), places - len(self._air))
        if free:
            entering = [self._queue.popleft() for _ in range(free)]
            self._air.enter([(s, self._flows[s].clients[0], self._flows[s].bits) for s in entering], self._now_ns)
            self._stale = True
        block = self._now_ns // self._block_ns if self._block_ns else 0
        if len(self._air) and (self._stale or block != self._block):
            self._block, self._stale, self._untimed = block, False, True
            self._air.set_rates(self._rate())
        if self._untimed:
            self._due_ns, self._untimed = self._air.due_ns(self._now_ns) if len(self._air) else None, False

    def _rate(self) -> Floats:
        clients, inverse = self._air.client, self._inverse
        block = self._now_ns // self._outlook_block_ns if self._outlook_block_ns else 0
        if inverse is not None:
            inverse = partial(inverse, block=block, direction=self._direction)
        air = Air(
            self._now_ns, self._bandwidth_hz, clients, self._air.bits, tuple(self._expected.values()),
            partial(self._outlook.bps, block=block, direction=self._direction), inverse,
        )  # fmt: skip
        bands = self._sharing.bands_hz(air)
        if not self._groups:
            return self._bps(clients, bands)
        receivers = [self._flows[int(sequence)].clients for sequence in self._air.sequence]
        counts = np.array([len(group) for group in receivers])
        everybody = np.array([client for group in receivers for client in group], dtype=np.int64)
        each = np.repeat(np.broadcast_to(np.asarray(bands, dtype=np.float64), counts.shape), counts)
        slowest: Floats = np.minimum.reduceat(self._bps(everybody, each), np.cumsum(counts) - counts)
        return slowest

    def _bps(self, clients: Ints, bands: Band) -> Floats:
        return self._rates.bps(clients, bands, self._block, self._direction)

    def _boundary_ns(self) -> int | None:
        if not self._block_ns or not len(self._air):
            return None
        return (self._block + 1) * self._block_ns

    def _end(self, sequence: int, *, through: bool = False) -> Flown:
        first_ns, silent_ns, left = self._air.leave(sequence)
        self._stale, self._untimed = self._stale or self._sharing.resplits, True
        return self._forget(sequence, first_ns, silent_ns, max(0, left), through)

    def _forget(self, sequence: int, first_ns: int | None, silent_ns: int, left: int, through: bool) -> Flown:
        flow = self._flows.pop(sequence)
        del self._sequences[flow.id]
        self._groups -= len(flow.clients) > 1
        sent = 0 if first_ns is None else (flow.bits * GRAINS_PER_BIT - left) // GRAINS_PER_BIT
        airtime = 0 if first_ns is None else self._now_ns - first_ns - silent_ns
        return Flown(flow.id, flow.clients, flow.bits, sent, flow.queued_ns, first_ns, self._now_ns, airtime, through)

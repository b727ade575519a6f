"""Every message and every computation of a run, with what it took: the account that all comparisons are made from.

Rows are frozen, in the order in which they ended, and chained: after each, the ledger's hash is SHA-256 of the hash
before it and the row. So two runs have the same hash if they have the same rows in the same order, and a resumed run
goes on from a hash that was kept.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from operator import add
from typing import Any, Literal

from roundelay.errors import ConfigError
from roundelay.simulation.network.cell.rates import NS, Direction
from roundelay.simulation.network.checks import check_number

MessageKind = Literal["model", "update", "skip", "control", "haul"]
"""A "haul" went over the wire behind the cell: no bits of the air."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What went over a link. ``round`` is the one that was under way when it ended, by which a resumed run cuts its
    tables; ``task`` says to which task it belongs.

    ``why`` says why it was sent or not (what a trigger found). ``bits`` is all that went out, ``retransmitted_bits`` of
    them again. ``first_bit_ns`` is None where it never came on the air. ``outcome`` is "arrived", or what became of it.
    """

    round: int
    task: int
    client: str
    direction: Direction
    kind: MessageKind
    why: str = ""
    queued_ns: int
    first_bit_ns: int | None
    last_bit_ns: int
    bits: int
    retransmitted_bits: int = 0
    energy_j: float = 0.0
    outcome: str = "arrived"

    @property
    def end_ns(self) -> int:
        return self.last_bit_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """A client's work on a task."""

    round: int
    task: int
    client: str
    start_ns: int
    end_ns: int
    energy_j: float = 0.0


Row = Message | Computation


@dataclass(slots=True)
class Totals:
    """What a round came to, or all rounds up to it. ``until_ns`` is when it was over. Those in a ledger grow with its
    rows; a ledger hands out copies.

    ``computing_ns``, ``queueing_ns`` and ``on_air_ns`` are sums over clients, who do these things side by side.
    """

    until_ns: int = 0
    uplink_bits: int = 0
    downlink_bits: int = 0
    retransmitted_bits: int = 0
    updates: int = 0
    skips: int = 0
    lost: int = 0
    radio_j: float = 0.0
    compute_j: float = 0.0
    computing_ns: int = 0
    queueing_ns: int = 0
    on_air_ns: int = 0

    @property
    def energy_j(self) -> float:
        return self.radio_j + self.compute_j

    def and_then(self, later: "Totals") -> "Totals":
        """Return both together."""
        until_ns = max(self.until_ns, later.until_ns)
        return Totals(until_ns, *map(add, astuple(self)[1:], astuple(later)[1:]))

    def count(self, row: Row) -> None:
        self.until_ns = max(self.until_ns, row.end_ns)
        if isinstance(row, Computation):
            self.compute_j += row.energy_j
            self.computing_ns += row.end_ns - row.start_ns
        elif row.kind != "haul":
            self._count_on_air(row)

    def _count_on_air(self, row: Message) -> None:
        if row.direction == "up":
            self.uplink_bits += row.bits
        else:
            self.downlink_bits += row.bits
        self.retransmitted_bits += row.retransmitted_bits
        self.radio_j += row.energy_j
        if row.outcome != "arrived":
            self.lost += 1
        elif row.kind == "update":
            self.updates += 1
        elif row.kind == "skip":
            self.skips += 1
        first_ns = row.last_bit_ns if row.first_bit_ns is None else row.first_bit_ns
        self.queueing_ns += first_ns - row.queued_ns
        self.on_air_ns += row.last_bit_ns - first_ns


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to reach a target: the round that did, and everything up to its end."""

    round: int
    time_s: float
    uplink_bits: int
    downlink_bits: int
    energy_j: float


class Ledger:
    """``rows`` are those that were not taken yet; totals and hash are of all there ever were."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.num_rows = 0
        self._totals: dict[int, Totals] = {}
        self._digest = bytes(32)

    def add(self, row: Row) -> None:
        self._digest = hashlib.sha256(self._digest + canonical(row)).digest()
        self.rows.append(row)
        self.num_rows += 1
        self._totals.setdefault(row.round, Totals()).count(row)

    def take(self) -> list[dict[str, Any]]:  # Any: text and numbers
        """Return the rows that were not taken yet, as they go into a table; forget them."""
        taken, self.rows = list(map(as_dict, self.rows)), []
        return taken

    def finish_round(self, round: int, now_ns: int) -> None:
        """Say when a round was over: a deadline may be later than its last message."""
        self._totals.setdefault(round, Totals()).until_ns = now_ns

    def of_round(self, round: int) -> Totals:
        return replace(self._totals.get(round, Totals()))

    def up_to(self, round: int) -> Totals:
        """Return what all rounds up to this one came to."""
        total = Totals()
        for number in sorted(self._totals):
            if number <= round:
                total = total.and_then(self._totals[number])
        return total

    def cost_of(self, target: float, curve: Iterable[tuple[int, float]], *, higher: bool = True) -> Cost | None:
        """Return what it took until a metric first reached ``target``, given (round, value); None if it never did."""
        for number, value in sorted(curve):
            if value >= target if higher else value <= target:
                total = self.up_to(number)
                return Cost(
                    number, total.until_ns / NS, total.uplink_bits, total.downlink_bits, total.energy_j
                )  # fmt: skip
        return None

    def trace_hash(self) -> str:
        """Return 64 hexadecimal digits that any change of any row, or of their order, changes."""
        return self._digest.hex()

    def snapshot(self) -> dict[str, Any]:  # Any: numbers and text
        """Return what a resumed run's ledger goes on from; the rows themselves are in its tables."""
        totals = [[number, *asdict(total).values()] for number, total in self._totals.items()]
        return {"digest": self.trace_hash(), "num_rows": self.num_rows, "totals": totals}

    def restore(self, kept: Mapping[str, Any]) -> None:  # Any: see snapshot
        self._digest, self.num_rows, self.rows = bytes.fromhex(kept["digest"]), kept["num_rows"], []
        self._totals = {number: Totals(*values) for number, *values in kept["totals"]}


_MESSAGE, _COMPUTATION = (tuple(f.name for f in fields(kind)) for kind in (Message, Computation))


def as_dict(row: Row) -> dict[str, Any]:  # Any: text and numbers
    kind, names = ("message", _MESSAGE) if isinstance(row, Message) else ("computation", _COMPUTATION)
    return {"row": kind, **{name: getattr(row, name) for name in names}}


def canonical(row: Row) -> bytes:
    """Return a row's bytes for hashing: JSON with sorted keys, no spaces, and floats as Python writes them, which reads
    back to the same bits.
    """
    return _ENCODER.encode(as_dict(row)).encode()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def trace_hash(rows: Sequence[Row], before: str = "00" * 32) -> str:
    """Return the hash of rows that follow those with the hash ``before``."""
    digest = bytes.fromhex(before)
    for row in rows:
        digest = hashlib.sha256(digest + canonical(row)).digest()
    return digest.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmitter:
    """What sending takes: the radiated power over the amplifier's ``efficiency``, and the circuit's power beside it."""

    power_dbm: float = 23.0
    efficiency: float = 1.0
    circuit_w: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "power_dbm")
        check_number(self, "efficiency", above=0, most=1)
        check_number(self, "circuit_w", least=0)
        if self.power_dbm > 100:
            raise ConfigError(f"Transmitter: power_dbm must be in dBm, 23 for 0.2 W, got {self.power_dbm!r}")

    def energy_j(self, airtime_ns: int) -> float:
        power_w = 10 ** ((self.power_dbm - 30) / 10)
        return (power_w / self.efficiency + self.circuit_w) * (airtime_ns / NS)

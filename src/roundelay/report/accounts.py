"""What a run's network did and cost, from the rows of its ledger: whole nanoseconds and bits in, seconds out.

A *journey* is one task from the moment at which its client was asked to that at which the client is free again, cut
into stretches. The rest are sums over them.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

from roundelay.simulation.network.cell.rates import NS
from roundelay.tracking.run_folder import Row

Doing = Literal["receiving", "computing", "queueing", "sending", "waiting"]

EVERYBODY = "*"
"""The client of a broadcast, in the ledger."""


@dataclass(frozen=True, slots=True)
class Stretch:
    doing: Doing
    start_ns: int
    end_ns: int

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class Journey:
    """``stretches`` follow each other without a gap. ``kind`` is what the client sent, "" where it sent nothing;
    ``outcome`` is "arrived" or what became of that. ``asked_ns`` is when the model was sent to it, ``done_ns`` when the
    last bit of its answer was there.
    """

    task: int
    client: str
    round: int
    kind: str
    outcome: str
    asked_ns: int
    done_ns: int
    stretches: tuple[Stretch, ...]

    def spent_ns(self, *doings: Doing) -> int:
        return sum(stretch.length_ns for stretch in self.stretches if stretch.doing in doings)

    @property
    def uploading_ns(self) -> int:
        """From the end of computing to the last bit: what shorter messages shorten, waiting for the band included."""
        ends = [stretch.end_ns for stretch in self.stretches if stretch.doing in ("receiving", "computing")]
        return self.done_ns - max(ends, default=self.asked_ns)


@dataclass(frozen=True, slots=True)
class Split:
    """How long computing and sending took in a row: what bounds every codec's speed-up (Amdahl).

    In synchronous rounds, computing is the slowest client's of each round, and sending what the round lasted beyond
    that; so with one client they are its own. In buffered rounds nobody waits, and they are the sums over all.
    """

    computing_ns: int
    sending_ns: int

    @property
    def bound(self) -> float:
        """1 + T_tx / T_comp: how much sooner rounds could end if nothing were sent at all."""
        return 1 + self.sending_ns / self.computing_ns if self.computing_ns else float("inf")

    def and_also(self, other: "Split") -> "Split":
        return Split(self.computing_ns + other.computing_ns, self.sending_ns + other.sending_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A run's report. Medians are over tasks, in seconds, None of none: of computing, of being on the air with an
    update, and of what passes between these two. ``shares`` are of all the time that clients spent on tasks; they sum
    to one. ``fired`` are the updates that were sent, ``lost`` those of them that did not arrive, ``skipped`` the tasks
    whose trigger found nothing worth sending. ``splits`` are by round. Computing was scaled by ``calibration``.
    """

    computing_s: float | None
    sending_s: float | None
    queueing_s: float | None
    shares: Mapping[str, float]
    staleness: Mapping[int, int]
    fired: int
    skipped: int
    lost: int
    splits: Mapping[int, Split]
    calibration: float | None = None

    def split(self, until: int | None = None) -> Split:
        """Return that of all rounds, or of those up to one, together."""
        known = (split for round, split in self.splits.items() if until is None or round <= until)
        return reduce(Split.and_also, known, Split(0, 0))


def account(
    journeys: Sequence[Journey], staleness: Mapping[int, int], *, buffered: bool, calibration: float | None = None
) -> Account:
    sent = [journey for journey in journeys if journey.kind == "update"]
    arrived = [journey for journey in sent if journey.outcome == "arrived"]
    computed = [ns for journey in journeys if (ns := journey.spent_ns("computing"))]
    return Account(
        computing_s=_median_s(computed),
        sending_s=_median_s([journey.spent_ns("sending") for journey in arrived]),
        queueing_s=_median_s([journey.uploading_ns - journey.spent_ns("sending") for journey in arrived]),
        shares=shares(journeys),
        staleness=staleness,
        fired=len(sent),
        skipped=sum(journey.kind == "skip" for journey in journeys),
        lost=len(sent) - len(arrived),
        splits=splits_of(journeys, buffered=buffered),
        calibration=calibration,
    )


def journeys_of(ledger: Iterable[Row], ends_ns: Mapping[int, int]) -> list[Journey]:
    """Read journeys from a ledger's rows; ``ends_ns`` says when each round was over.

    After its last bit, a client waits for the end of the round, or until it is asked again, whichever comes first.
    """
    computations: dict[int, Row] = {}
    downs: dict[int, Row] = {}
    ups: dict[int, Row] = {}
    casts: dict[int, list[Row]] = {}  # broadcasts, by the nanosecond in which they were there
    for row in ledger:
        if row["row"] == "computation":
            computations[row["task"]] = row
        elif row["direction"] == "up" and row["kind"] in ("update", "skip"):
            ups[row["task"]] = row
        elif row["direction"] == "down" and row["kind"] == "model":
            if row["client"] == EVERYBODY:
                casts.setdefault(row["last_bit_ns"], []).append(row)
            else:
                downs[row["task"]] = row
    began = []
    for task in sorted({*computations, *ups, *downs}):
        computing, up, down = computations.get(task), ups.get(task), downs.get(task)
        if computing is not None and computing["start_ns"] in casts:
            heard = [cast for cast in casts[computing["start_ns"]] if cast["task"] <= task]
            down = max(heard, key=lambda cast: int(cast["task"]), default=down)
        began.append(_journey(task, down, computing, up))
    return list(_waited(began, ends_ns))


def _journey(task: int, down: Row | None, computing: Row | None, up: Row | None) -> Journey:
    parts = [*_crossing(down, "receiving")]
    if computing is not None:
        parts.append(Stretch("computing", computing["start_ns"], computing["end_ns"]))
    parts += _crossing(up, "sending")
    known = up or computing or down
    assert known is not None
    client = next(row["client"] for row in (up, computing, down) if row is not None)
    last = parts[-1].end_ns
    return Journey(
        task, client, known["round"], "" if up is None else up["kind"],
        "arrived" if up is None else up["outcome"], parts[0].start_ns, last, tuple(_without_gaps(parts, last)),
    )  # fmt: skip


def _crossing(message: Row | None, doing: Doing) -> Iterator[Stretch]:
    if message is None:
        return
    queued_ns, last_ns = message["queued_ns"], message["last_bit_ns"]
    first_ns = last_ns if message["first_bit_ns"] is None else message["first_bit_ns"]
    yield Stretch("queueing", queued_ns, first_ns)
    yield Stretch(doing, first_ns, last_ns)


def _without_gaps(parts: Iterable[Stretch], until_ns: int) -> Iterator[Stretch]:
    """Fill what lies between them, and up to the end, with waiting; leave out what took no time."""
    now_ns = None
    for part in parts:
        if now_ns is not None and part.start_ns > now_ns:
            yield Stretch("waiting", now_ns, part.start_ns)
        if part.length_ns:
            yield part
        now_ns = part.end_ns
    if now_ns is not None and until_ns > now_ns:
        yield Stretch("waiting", now_ns, until_ns)


def _waited(began: Iterable[Journey], ends_ns: Mapping[int, int]) -> Iterator[Journey]:
    of_client: dict[str, list[Journey]] = {}
    for journey in began:
        of_client.setdefault(journey.client, []).append(journey)
    whole = []
    for theirs in of_client.values():
        theirs.sort(key=lambda journey: (journey.asked_ns, journey.task))
        for number, journey in enumerate(theirs):
            free_ns = ends_ns.get(journey.round, journey.done_ns)
            if number + 1 < len(theirs):
                free_ns = min(free_ns, theirs[number + 1].asked_ns)
            stretches = tuple(_without_gaps(journey.stretches, max(free_ns, journey.done_ns)))
            whole.append(
                Journey(journey.task, journey.client, journey.round, journey.kind, journey.outcome,
                        journey.asked_ns, journey.done_ns, stretches)
            )  # fmt: skip
    yield from sorted(whole, key=lambda journey: journey.task)


def shares(journeys: Iterable[Journey]) -> dict[str, float]:
    """Return which share of the clients' time went into what; being on the air is receiving and sending."""
    spent = Counter[str]()
    for journey in journeys:
        for stretch in journey.stretches:
            on_air = stretch.doing in ("receiving", "sending")
            spent["on air" if on_air else stretch.doing] += stretch.length_ns
    total = spent.total()
    return {name: spent[name] / total if total else 0.0 for name in ("computing", "queueing", "on air", "waiting")}


def splits_of(journeys: Iterable[Journey], *, buffered: bool) -> dict[int, Split]:
    rounds: dict[int, list[tuple[int, int]]] = {}
    for journey in journeys:
        rounds.setdefault(journey.round, []).append((journey.spent_ns("computing"), journey.uploading_ns))
    return {number: _split(together, buffered) for number, together in sorted(rounds.items())}


def _split(together: Sequence[tuple[int, int]], buffered: bool) -> Split:
    """Take (computing, uploading) of a round's tasks."""
    if buffered:
        return Split(sum(computing for computing, _ in together), sum(uploading for _, uploading in together))
    slowest = max(computing for computing, _ in together)
    return Split(slowest, max(computing + uploading for computing, uploading in together) - slowest)


def staleness_of(journeys: Iterable[Journey], ends_ns: Mapping[int, int]) -> dict[int, int]:
    """Return how many updates were how many versions old when they landed.

    A round's update meets the version of the round before; it began from that of the last round that was over
    when its client was asked.
    """
    over = sorted(ends_ns.values())
    counts = Counter[int]()
    for journey in journeys:
        if journey.kind == "update" and journey.outcome == "arrived":
            counts[journey.round - 1 - sum(end_ns <= journey.asked_ns for end_ns in over)] += 1
    return dict(sorted(counts.items()))


def staleness_told(clients: Iterable[Row]) -> dict[int, int]:
    """Return the same from a table of clients in which a workflow wrote it down; empty where none did."""
    told = (row.get("staleness") for row in clients if row.get("status") == "admitted")
    return dict(sorted(Counter(int(value) for value in told if value is not None).items()))


def ends_of(rows: Iterable[Row]) -> dict[int, int]:
    """Return the nanosecond at which each round was over."""
    return {row["round"]: round(row["virtual_s"] * NS) for row in rows}


def _median_s(values_ns: Sequence[int]) -> float | None:
    return statistics.median(values_ns) / NS if values_ns else None

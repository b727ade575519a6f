"""The cell against closed forms, and the bugs that these must catch: each check fails on each bug of its table."""

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from roundelay.simulation.network import cell as network
from roundelay.simulation.network.cell import (
    Cell,
    Dedicated,
    EqualShare,
    Fifo,
    Flown,
    Links,
    MinMax,
    PerHertz,
    ResourceBlocks,
    Sharing,
    min_max_bands,
)
from roundelay.simulation.network.cell.flows import OnAir
from roundelay.simulation.network.cell.rates import Band, Direction, Floats, Ints

Planting = Callable[[pytest.MonkeyPatch], None]
NS = 1_000_000_000


def drive(cell: Cell) -> list[Flown]:
    """Run until nothing is under way."""
    over: list[Flown] = []
    while (event_ns := cell.next_event_ns()) is not None:
        over += cell.advance(event_ns)
    return over


def pipe(sharing: Sharing, bps: float) -> Cell:
    return Cell(sharing, PerHertz(), bandwidth_hz=bps)


def ends(flown: Sequence[Flown]) -> dict[int, int]:
    return {one.flow: one.last_bit_ns for one in flown}


@cache
def fading(client: int, block: int) -> float:
    return random.Random(f"{client} {block}").expovariate(1)


@dataclass
class Faded:
    """Shannon rates of a power-limited uplink, over gains that are a function of client and block."""

    snr: Floats
    block_ns: int | None = 20_000_000
    bandwidth_hz: float = 1e6
    last: Floats | None = None

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        luck = np.array([fading(int(client), block) for client in clients])
        if self.block_ns is None:
            luck[:] = 1
        self.last = band_hz * np.log2(1 + self.snr[clients] * luck * self.bandwidth_hz / band_hz)
        return self.last


# ---- processor sharing: T_k = (sum of the sizes up to k + (n - k) s_k) / C ------------------------------------------


def check_sharing() -> None:
    sizes = sorted(63 * size for size in (10, 40, 40, 75, 100, 230, 999, 20_000))  # moments in whole nanoseconds
    cell, n = pipe(EqualShare(), 2_520e6), len(sizes)
    for flow in random.Random(1).sample(range(n), n):
        cell.start(flow, flow, sizes[flow], 0)
    expected = {k: 25 * (sum(sizes[: k + 1]) + (n - k - 1) * sizes[k]) // 63 for k in range(n)}
    assert ends(drive(cell)) == expected


def bits_are_bytes(patch: pytest.MonkeyPatch) -> None:
    start = Cell.start
    patch.setattr(Cell, "start", lambda self, flow, clients, bits, now: start(self, flow, clients, 8 * bits, now))


def binary_megabits(patch: pytest.MonkeyPatch) -> None:
    bps = PerHertz.bps
    patch.setattr(PerHertz, "bps", lambda self, *args: bps(self, *args) * (2**20 / 1e6))


def shares_that_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EqualShare, "resplits", False)


def whole_band_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EqualShare, "bands_hz", lambda self, air: air.bandwidth_hz)


def microseconds(patch: pytest.MonkeyPatch) -> None:
    due = OnAir.due_ns

    def rounded(self: OnAir, now_ns: int) -> int | None:
        at = due(self, now_ns)
        return None if at is None else -(-at // 1000) * 1000

    patch.setattr(OnAir, "due_ns", rounded)


def drifting(patch: pytest.MonkeyPatch) -> None:
    pass_time = OnAir.pass_time

    def drift(self: OnAir, ns: int) -> None:
        pass_time(self, ns)
        self._table[2, : len(self)] -= 64 * NS  # grains: a bit at every event

    patch.setattr(OnAir, "pass_time", drift)


def the_first_to_come_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network.cell, "deque", type("Stack", (deque,), {"popleft": deque.pop}))


SHARINGS: dict[str, Planting] = {
    "bits taken for bytes": bits_are_bytes,
    "megabits of 2^20": binary_megabits,
    "shares that stay when one leaves": shares_that_stay,
    "the whole band for everybody": whole_band_for_all,
    "whole microseconds": microseconds,
    "drift": drifting,
}


def test_equal_shares_end_when_the_closed_form_says() -> None:
    check_sharing()


@pytest.mark.parametrize("plant", SHARINGS.values(), ids=SHARINGS)
def test_the_check_of_sharing_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_sharing()


# ---- queues: prefix sums, and N servers -----------------------------------------------------------------------------


def check_queue() -> None:
    draw = random.Random(3)
    sizes = [draw.randrange(1, 3_000_000) for _ in range(12)]
    cell = pipe(Fifo(), 7_000_000)
    for flow, size in enumerate(sizes):
        cell.start(flow, 0, size, 0)
    alone_ns = [-(-size * NS // 7_000_000) for size in sizes]
    over = drive(cell)
    assert [one.flow for one in over] == list(range(12))
    assert [one.last_bit_ns for one in over] == list(itertools.accumulate(alone_ns))
    assert [one.airtime_ns for one in over] == alone_ns
    assert all(one.first_bit_ns == one.last_bit_ns - one.airtime_ns for one in over)
    blocks = pipe(ResourceBlocks(num_blocks=3), 21_000_000)
    for flow, size in enumerate(sizes):
        blocks.start(flow, 0, size, 0)
    free = [0, 0, 0]
    for flow, took in enumerate(alone_ns):  # each takes the block that is free first
        free.sort()
        free[0] += took
        alone_ns[flow] = free[0]
    assert ends(drive(blocks)) == dict(enumerate(alone_ns))


def one_place_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fifo, "places", 2)


def all_blocks_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ResourceBlocks, "resplits", True)
    patch.setattr(ResourceBlocks, "bands_hz", lambda self, air: air.bandwidth_hz / air.num_flows)


QUEUES: dict[str, Planting] = {
    "bits taken for bytes": bits_are_bytes,
    "the last to come is the first to go": the_first_to_come_last,
    "two at a time": one_place_more,
    "free blocks given to the others": all_blocks_for_all,
    "whole microseconds": microseconds,
}


def test_queues_end_at_prefix_sums() -> None:
    check_queue()


@pytest.mark.parametrize("plant", QUEUES.values(), ids=QUEUES)
def test_the_check_of_queues_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_queue()


# ---- work conservation: the bits that went out are the integral of the rate -----------------------------------------


def check_conservation() -> None:
    """Rates are recorded where they are given, so that what is integrated is not what the cell keeps."""
    rates, draw, now = Faded(np.array([0.3, 1, 10, 50, 100, 1000])), random.Random(5), 0
    cell = Cell(EqualShare(), rates, bandwidth_hz=1e6)
    starts = [(draw.randrange(300_000_000), flow) for flow in range(30)]
    pending, sizes = deque(sorted(starts)), [draw.randrange(1, 200_000) for _ in range(30)]
    integral, slack, sent, clock = Fraction(0), Fraction(0), 0, 0
    while pending or cell.flows:
        event_ns = cell.next_event_ns()
        now = min(time for time in (event_ns, pending[0][0] if pending else None) if time is not None)
        grains = np.floor(rates.last * 64) if cell.flows else np.zeros(0)
        integral += Fraction(int(grains.sum()), 64) * Fraction(now - clock, NS)
        over, clock = cell.advance(now), now
        sent += sum(one.sent_bits for one in over)
        slack += len(over) * Fraction(int(grains.max(initial=0)), 64 * NS)  # of the nanosecond in which each ended
        while pending and pending[0][0] == now:
            flow = pending.popleft()[1]
            cell.start(flow, flow % 6, sizes[flow], now)
    assert sent == sum(sizes)
    assert 0 <= integral - sent <= slack


def no_boundaries(patch: pytest.MonkeyPatch) -> None:
    """A rate that was right at first is kept through every fade; the recorded rates move on with each arrival only."""
    rate = Faded.bps

    def ahead(self: Faded, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        stale = rate(self, clients, band_hz, 0, direction)
        rate(self, clients, band_hz, block, direction)
        return stale

    patch.setattr(Faded, "bps", ahead)


CONSERVATIONS: dict[str, Planting] = {
    "bits taken for bytes": bits_are_bytes,
    "rates of the first block": no_boundaries,
    "shares that stay when one leaves": shares_that_stay,
    "drift": drifting,
}


def test_the_bits_that_went_out_are_the_integral_of_the_rate() -> None:
    check_conservation()


@pytest.mark.parametrize("plant", CONSERVATIONS.values(), ids=CONSERVATIONS)
def test_the_check_of_conservation_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check_conservation()


# ---- fading: each block's rate counts for as long as the block ------------------------------------------------------


@dataclass
class Steps:
    """A thousand bits per second, times one more than the block's number."""

    block_ns: int | None = NS

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        return np.full(len(clients), 1000.0 * (block + 1))


def check_fading() -> None:
    cell = Cell(Dedicated(), Steps())
    cell.start(1, 0, 5000, 500_000_000)  # 500 bits in half a second, 2000 in the next, 2500 of the next one's 3000
    cell.start(2, 0, 500, 500_000_000)
    cell.start(3, 0, 10_000, 500_000_000)
    assert ends(drive(cell)) == {2: NS, 1: 2 * NS + -(-5 * NS // 6), 3: 4 * NS + 100_000_000}


def late_rates(patch: pytest.MonkeyPatch) -> None:
    bps = Steps.bps
    patch.setattr(
        Steps, "bps", lambda self, clients, band, block, way: bps(self, clients, band, max(0, block - 1), way)
    )


FADINGS: dict[str, Planting] = {
    "boundaries missed": lambda patch: patch.setattr(Cell, "_boundary_ns", lambda self: None),
    "the rates of the block before": late_rates,
    "bits taken for bytes": bits_are_bytes,
}


def test_each_block_counts_for_as_long_as_it_lasts() -> None:
    check_fading()


@pytest.mark.parametrize("plant", FADINGS.values(), ids=FADINGS)
def test_the_check_of_fading_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_fading()


# ---- the min-max split ----------------------------------------------------------------------------------------------


def check_min_max() -> None:
    """The contract: never later than equal parts; all end together; the whole band is used; nobody could do better."""
    for trial in range(12):
        draw = np.random.Generator(np.random.Philox(key=trial))
        n = int(draw.integers(1, 9))
        gains, bits, ready_s = draw.lognormal(15, 2, n), draw.lognormal(12, 1, n), draw.uniform(0, 1, n) * (trial % 3)

        def bps(rows: Ints, bands: Floats, gains: Floats = gains) -> Floats:
            return np.where(bands > 0, bands * np.log2(1 + gains[rows] / np.maximum(bands, 1e-9)), 0)

        bands, last_s = min_max_bands(bps, bits, ready_s, 1e6)
        finish = ready_s + bits / bps(np.arange(n), bands)
        equal = ready_s + bits / bps(np.arange(n), np.full(n, 1e6 / n))
        assert bands.sum() == pytest.approx(1e6)
        assert last_s <= equal.max()
        assert finish.max() == pytest.approx(last_s)
        assert finish.min() == pytest.approx(last_s)  # who ended sooner could have lent its band
        rows = np.arange(n)
        same, _ = min_max_bands(bps, bits, ready_s, 1e6, lambda rows, rates, f=bps: inverse(f, rows, rates))
        assert bps(rows, same) == pytest.approx(bps(rows, bands), rel=1e-6)


def inverse(bps: Callable[[Ints, Floats], Floats], rows: Ints, rates: Floats) -> Floats:
    """Find the bands by regula falsi steps that share nothing with the halving under test."""
    low, high = np.full(len(rows), 1e-3), np.full(len(rows), 1e7)
    for _ in range(120):
        middle = np.sqrt(low * high)
        low, high = np.where(bps(rows, middle) < rates, middle, low), np.where(bps(rows, middle) < rates, high, middle)
    return np.where(high > 9.9e6, np.inf, high)


def check_round_in_min_max() -> None:
    """In a cell, all ready at once: not later than processor sharing, and in one moment but for rounding."""
    for trial in range(8):
        draw = np.random.Generator(np.random.Philox(key=100 + trial))
        snr, sizes = draw.lognormal(1, 2, 6), draw.integers(10_000, 400_000, 6)
        last = {}
        for sharing in (EqualShare(), MinMax()):
            cell = Cell(sharing, Faded(snr, None), bandwidth_hz=1e6)
            for flow in range(6):
                cell.start(flow, flow, int(sizes[flow]), 0)
            over = drive(cell)
            last[type(sharing)] = max(ends(over).values())
        assert last[MinMax] <= last[EqualShare] * (1 + 1e-6)  # rates are rounded down to 64ths
        assert last[MinMax] - min(ends(over).values()) <= 1e-4 * last[MinMax]


def ready_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = min_max_bands
    patch.setitem(globals(), "min_max_bands", lambda bps, bits, ready, *rest: right(bps, bits, 0 * ready, *rest))


def in_proportion_to_bits(patch: pytest.MonkeyPatch) -> None:
    def split(bps: object, bits: Floats, ready_s: Floats, band: float, *_: object) -> tuple[Floats, float]:
        return band * bits / bits.sum(), float("inf")

    patch.setitem(globals(), "min_max_bands", split)
    patch.setattr("roundelay.simulation.network.cell.sharing.min_max_bands", split)


def half_the_band(patch: pytest.MonkeyPatch) -> None:
    right = min_max_bands
    patch.setitem(
        globals(), "min_max_bands", lambda bps, bits, ready, band, *rest: right(bps, bits, ready, band / 2, *rest)
    )


MIN_MAXES: dict[str, Planting] = {
    "when they are ready is forgotten": ready_forgotten,
    "bands in proportion to bits": in_proportion_to_bits,
    "half the band": half_the_band,
}


def test_the_min_max_split_is_the_best_one() -> None:
    check_min_max()


@pytest.mark.parametrize("plant", MIN_MAXES.values(), ids=MIN_MAXES)
def test_the_check_of_the_split_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_min_max()


def test_a_round_in_min_max_is_not_later_than_in_equal_shares() -> None:
    check_round_in_min_max()


def test_the_check_of_such_rounds_catches_bands_in_proportion_to_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    in_proportion_to_bits(monkeypatch)
    with pytest.raises(AssertionError):
        check_round_in_min_max()


def test_over_a_fading_channel_the_split_goes_by_its_outlook() -> None:
    """Planned by the moment, the band goes to whoever is in a fade just then, and the round is later than with equal
    parts.
    """
    draw = np.random.Generator(np.random.Philox(key=9))
    snr, last = draw.lognormal(1, 2, 12), {}
    plans = {"equal": EqualShare(), "moment": MinMax(), "outlook": MinMax()}
    for name, sharing in plans.items():
        outlook = Faded(snr, None) if name == "outlook" else None
        cell = Cell(sharing, Faded(snr), bandwidth_hz=1e6, outlook=outlook)
        for flow in range(12):
            cell.start(flow, flow, 100_000, 0)
        last[name] = max(ends(drive(cell)).values())
    assert last["outlook"] < last["equal"] < last["moment"]


def test_announced_flows_have_their_band_kept_and_lent_until_they_come() -> None:
    """Two of one link: with a third announced, the round ends no later than the best split that stands still."""
    snr, sizes, ready = np.array([10.0, 10, 2]), [2_000_000, 1_000_000, 1_500_000], [0, 0, NS // 2]
    cell = Cell(MinMax(), Faded(snr, None), bandwidth_hz=1e6)
    for flow in range(3):
        cell.expect(flow, flow, sizes[flow], ready[flow], 0)
    for flow in range(3):
        cell.advance(ready[flow])
        cell.start(flow, flow, sizes[flow], ready[flow])
    last_s = max(ends(drive(cell)).values()) / NS

    def bps(rows: Ints, bands: Floats) -> Floats:
        return np.where(bands > 0, bands * np.log2(1 + snr[rows] * 1e6 / np.maximum(bands, 1e-9)), 0)

    _, still_s = min_max_bands(bps, np.array(sizes, dtype=float), np.array(ready) / NS, 1e6)
    assert last_s < still_s


# ---- asynchronous rounds: how much comes in between -----------------------------------------------------------------


def check_counting() -> None:
    """At a constant concurrency C, between a dispatch and its return C - 1 others arrive on average, whatever the sizes
    and whoever shares: a counting identity (discrete Little's law, arXiv 2502.08206).
    """
    for sharing, concurrency in ((EqualShare(), 7), (Dedicated(), 10), (ResourceBlocks(num_blocks=3), 5)):
        draw, arrivals, between = random.Random(concurrency), 0, 0
        cell = Cell(sharing, Faded(np.array([1.0, 3, 10, 30]), NS // 10), bandwidth_hz=1e6)
        since: dict[int, int] = {}

        def dispatch(flow: int, now: int, cell: Cell = cell, draw: random.Random = draw) -> None:
            cell.start(flow, flow % 4, 1 + int(draw.lognormvariate(9, 1.5)), now)

        for flow in range(concurrency):
            dispatch(flow, 0)
            since[flow] = 0
        while arrivals < 2000:
            for one in cell.advance(cell.next_event_ns()):
                between += arrivals - since.pop(one.flow)
                arrivals += 1
                since[one.flow + concurrency] = arrivals
                dispatch(one.flow + concurrency, cell.now_ns)
        under_way = sum(arrivals - then for then in since.values())
        assert between + under_way == (concurrency - 1) * arrivals
        assert between / arrivals == pytest.approx(concurrency - 1, rel=0.05)


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """One in a hundred ends as soon as it begins, and ends once more."""
    advance = Cell.advance

    def twice(self: Cell, to_ns: int) -> list[Flown]:
        over = advance(self, to_ns)
        return [one for one in over for _ in range(1 if one.flow % 100 else 2)]

    patch.setattr(Cell, "advance", twice)


def test_between_a_dispatch_and_its_return_all_others_arrive_once() -> None:
    check_counting()


def test_the_check_of_counting_catches_flows_that_end_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        check_counting()


# ---- twice the rate, half the time ----------------------------------------------------------------------------------


def check_halves() -> None:
    sizes = [63 * 80 * size for size in (1, 5, 9, 30)]
    for sharing in (EqualShare(), Fifo(), ResourceBlocks(num_blocks=2), Dedicated()):
        took = []
        for bps in (2_520e6, 5_040e6):
            rates = Links(uplink_bps=bps, downlink_bps=1).rates("abcd") if sharing == Dedicated() else PerHertz()
            cell = Cell(sharing, rates, bandwidth_hz=bps)
            for flow, size in enumerate(sizes):
                cell.start(flow, flow, size, 0)
            took.append(ends(drive(cell)))
        assert took[0] == {flow: 2 * ns for flow, ns in took[1].items()}, sharing


def a_delay_in_everything(patch: pytest.MonkeyPatch) -> None:
    due = OnAir.due_ns
    patch.setattr(OnAir, "due_ns", lambda self, now: None if (at := due(self, now)) is None else at + 1)


HALVES: dict[str, Planting] = {
    "the direction mixed up": lambda patch: patch.setattr(
        network.rates.Fixed, "bps", lambda self, clients, *_: self.downlink_bps[clients]
    ),
    "a nanosecond in every event": a_delay_in_everything,
    "a band that is squared": lambda patch: patch.setattr(
        PerHertz, "bps", lambda self, clients, band, *_: np.full(len(clients), band * band / 1e9)
    ),
}


def test_twice_the_rate_is_half_the_time() -> None:
    check_halves()


@pytest.mark.parametrize("plant", HALVES.values(), ids=HALVES)
def test_the_check_of_halves_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_halves()

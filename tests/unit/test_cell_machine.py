"""The cell as a machine: what is asked how often, snapshots, cancelling, broadcasts, who is out of reach."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay.errors import ConfigError, RoundelayError
from roundelay.simulation.network.cell import (
    Backhaul,
    Cell,
    Dedicated,
    EqualShare,
    Fifo,
    Fixed,
    Flown,
    Links,
    MinMax,
    PerHertz,
    ResourceBlocks,
    Sharing,
)
from roundelay.simulation.network.cell.rates import Band, Direction, Floats, Ints

NS = 1_000_000_000


@dataclass(frozen=True)
class Sawtooth:
    """Rates that go up and down with the block, differ by client, and are zero for some of them at times."""

    block_ns: int | None
    base_bps: float
    outages: bool = False

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        factor = (clients * 7 + block * 3) % 5 + (0 if self.outages else 1)
        return self.base_bps * factor * (band_hz * np.ones(len(clients))) ** 0.8


@dataclass(frozen=True)
class Start:
    at_ns: int
    client: int
    bits: int


def reference(sharing: Sharing, rates: Sawtooth, starts: Sequence[Start], delay_ns: int) -> dict[int, tuple[int, int]]:
    """Simulate with Python's own integers, one step after another; return first and last nanosecond of each flow."""
    places = sharing.places or len(starts)
    coming = sorted((start.at_ns + delay_ns, flow) for flow, start in enumerate(starts))
    queue: list[int] = []
    left: dict[int, int] = {}
    first: dict[int, int] = {}
    over: dict[int, tuple[int, int]] = {}
    now = 0
    while coming or queue or left:
        while coming and coming[0][0] <= now:
            queue.append(coming.pop(0)[1])
        while queue and len(left) < places:
            flow = queue.pop(0)
            left[flow], first[flow] = starts[flow].bits * 64 * NS, now
        block = now // rates.block_ns if rates.block_ns else 0
        share = {Fifo: 1, Dedicated: 1, EqualShare: max(1, len(left))}.get(type(sharing), places)
        speed = {}
        for flow in left:
            bps = rates.bps(np.array([starts[flow].client]), 1e6 / share, block, "up")[0]
            speed[flow] = math.floor(bps * 64)
        times = [now - (-left[flow] // speed[flow]) for flow in left if speed[flow]]
        times += [coming[0][0]] if coming else []
        times += [(block + 1) * rates.block_ns] if left and rates.block_ns else []
        until = min(times)
        for flow in list(left):
            left[flow] -= speed[flow] * (until - now)
            if left[flow] <= 0:
                over[flow] = (first[flow], until)
                del left[flow]
        now = until
    return over


SHARINGS = (Fifo(), EqualShare(), Dedicated(), ResourceBlocks(num_blocks=3))
starts = st.lists(
    st.builds(Start, st.integers(0, 3 * NS), st.integers(0, 5), st.integers(1, 10**6)),
    min_size=1, max_size=7,
)  # fmt: skip
rates = st.builds(Sawtooth, st.sampled_from([None, 3 * 10**8, 7 * 10**8]), st.floats(5, 100), st.booleans())


def run(cell: Cell, starts: Sequence[Start], polls: Sequence[int] = ()) -> list[Flown]:
    """Drive a cell, and look at it at other moments than it asks for."""
    coming, over = sorted((start.at_ns, flow) for flow, start in enumerate(starts)), list[Flown]()
    looks = sorted(polls)
    while coming or cell.flows:
        times = [time for time in (cell.next_event_ns(), *(t for t, _ in coming[:1]), *looks[:1]) if time is not None]
        over += cell.advance(max(cell.now_ns, min(times)))
        looks = [look for look in looks if look > cell.now_ns]
        while coming and coming[0][0] <= cell.now_ns:
            flow = coming.pop(0)[1]
            cell.start(flow, starts[flow].client, starts[flow].bits, cell.now_ns)
            if polls:
                cell.next_event_ns()
    return over


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHARINGS), rates, starts, st.sampled_from([0, 5, 10**8]), st.lists(st.integers(0, 5 * NS)))
def test_a_cell_does_what_a_straight_line_simulation_does_however_often_it_is_asked(
    sharing: Sharing, rates: Sawtooth, starts: list[Start], delay_ns: int, polls: list[int]
) -> None:
    if rates.block_ns is None:
        rates = replace(rates, outages=False)  # or some would never end
    expected = reference(sharing, rates, starts, delay_ns)
    for looks in ((), polls):
        over = run(Cell(sharing, rates, bandwidth_hz=1e6, delay_ns=delay_ns), starts, looks)
        assert {one.flow: (one.first_bit_ns, one.last_bit_ns) for one in over} == expected
        assert [one.last_bit_ns for one in over] == sorted(one.last_bit_ns for one in over)
        for one in over:
            assert one.through
            assert one.sent_bits == one.bits == starts[one.flow].bits
            assert 0 <= one.airtime_ns <= one.last_bit_ns - one.first_bit_ns
            assert rates.outages or one.airtime_ns == one.last_bit_ns - one.first_bit_ns


@settings(max_examples=25, deadline=None)
@given(st.sampled_from((*SHARINGS, MinMax())), rates, starts, st.integers(0, 4 * NS))
def test_a_snapshot_in_mid_flow_goes_on_to_the_same_nanoseconds(
    sharing: Sharing, rates: Sawtooth, starts: list[Start], cut_ns: int
) -> None:
    rates = replace(rates, outages=rates.outages and rates.block_ns is not None)

    def fresh() -> Cell:
        return Cell(sharing, rates, bandwidth_hz=1e6, delay_ns=1000)

    def begun(cell: Cell) -> list[Flown]:
        over = []
        for flow, start in sorted(enumerate(starts), key=lambda pair: pair[1].at_ns):
            over += cell.advance(start.at_ns)
            cell.start(flow, start.client, start.bits, start.at_ns)
        return over + cell.advance(max(cut_ns, cell.now_ns))

    whole = fresh()
    begun(whole)
    resumed = fresh()
    resumed.restore(json.loads(json.dumps(whole.snapshot())))
    assert resumed.flows == whole.flows
    assert run(resumed, []) == run(whole, [])


def test_what_was_sent_of_a_cancelled_flow_is_counted_to_the_bit() -> None:
    cell = Cell(Fifo(), PerHertz(), bandwidth_hz=3000, delay_ns=10)
    cell.expect(8, 0, 5, 0, 0)
    for flow in (1, 2):
        cell.start(flow, 0, 6000, 0)
    assert cell.cancel(7, 0) is None
    assert cell.cancel(8, 0) is None
    second = cell.cancel(2, 5)
    assert second is not None
    assert (second.sent_bits, second.first_bit_ns, second.airtime_ns, second.through) == (0, None, 0, False)
    assert cell.advance(20) == []
    cell.start(3, 0, 30, 20)
    assert cell.advance(40) == []
    assert cell.cancel(3, 40) == replace(second, flow=3, bits=30, queued_ns=20, last_bit_ns=40)  # it stood in the queue
    first = cell.cancel(1, NS // 2 + 10)
    assert first is not None
    assert (first.sent_bits, first.first_bit_ns, first.airtime_ns, first.through) == (1500, 10, NS // 2, False)
    assert cell.flows == []
    assert cell.next_event_ns() is None


def test_when_somebody_gives_up_the_others_have_the_band() -> None:
    cell = Cell(EqualShare(), PerHertz(), bandwidth_hz=2000)
    cell.start(1, 0, 2000, 0)
    cell.start(2, 0, 2000, 0)
    cell.cancel(2, NS)
    assert [one.last_bit_ns for one in run(cell, [])] == [3 * NS // 2]


def test_a_broadcast_goes_at_the_rate_of_its_slowest_receiver_and_a_unicast_beside_it_at_its_own() -> None:
    rates = Fixed(np.zeros(3), np.array([1000.0, 250.0, 2000.0]))
    cell = Cell(Dedicated(), rates, direction="down")
    cell.start(1, [0, 1, 2], 1000, 0)
    cell.start(2, np.int64(2), np.int64(1000), 0)  # as vectors of clients and of lengths hand them out
    json.dumps(cell.snapshot())
    over = run(cell, [])
    assert [(one.flow, one.clients, one.last_bit_ns) for one in over] == [(2, (2,), NS // 2), (1, (0, 1, 2), 4 * NS)]


def test_who_is_out_of_reach_is_given_up_after_a_while_and_the_queue_goes_on() -> None:
    cell = Cell(Fifo(), Fixed(np.array([0.0, 1000.0]), np.ones(2)), patience_ns=3 * NS)
    cell.start(1, 0, 10, 0)
    cell.start(2, 1, 1000, 0)
    first, second = run(cell, [])
    assert (first.flow, first.through, first.last_bit_ns, first.sent_bits, first.airtime_ns) == (1, False, 3 * NS, 0, 0)
    assert (second.flow, second.through, second.last_bit_ns) == (2, True, 4 * NS)
    for_ever = Cell(Fifo(), Fixed(np.array([0.0]), np.ones(1)))
    for_ever.start(1, 0, 10, 0)
    assert for_ever.next_event_ns() is None
    assert for_ever.flows == [1]


def test_silence_between_the_bits_is_no_airtime() -> None:
    @dataclass(frozen=True)
    class OnOff:
        block_ns: int | None = NS

        def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
            return np.full(len(clients), 1000.0 * (1 - block % 2))

    cell = Cell(Dedicated(), OnOff(), patience_ns=2 * NS)
    cell.start(1, 0, 2500, 0)
    cell.start(2, 0, 5000, 0)
    first, second = run(cell, [])
    assert (first.through, first.last_bit_ns, first.airtime_ns) == (False, 4 * NS, 2 * NS)  # two silent seconds in all
    assert (second.through, second.sent_bits) == (False, 2000)


def test_a_wire_behind_the_cell_adds_its_latency_and_its_own_queueing() -> None:
    for shared, last_ns in ((True, 2 * NS + NS // 100), (False, NS + NS // 100)):
        line = Backhaul(rate_bps=1e6, latency_s=0.01, shared=shared).line()
        for flow in (1, 2):
            line.start(flow, 0, 1_000_000, 0)
        assert {one.last_bit_ns for one in run(line, [])} == {last_ns}


def test_a_flow_of_many_gigabits_is_exact_too() -> None:
    cell = Cell(EqualShare(), PerHertz(), bandwidth_hz=3e9)
    for flow, bits in enumerate((10**12, 10**12 + 1, 7)):
        cell.start(flow, 0, bits, 0)
    assert [(one.flow, one.last_bit_ns) for one in run(cell, [])] == [
        (2, 7), (0, 666_666_666_669), (1, 666_666_666_670)
    ]  # fmt: skip


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda sharing: type(sharing).__name__)
def test_what_is_loaded_in_parts_is_exact_through_fades(sharing: Sharing) -> None:
    rates, flows = Sawtooth(NS, 2000.0), [Start(i * 10**7, i, 3 * 10**8 + 10**7 * i) for i in range(4)]
    over = run(Cell(sharing, rates, bandwidth_hz=1e6), flows)
    assert {one.flow: (one.first_bit_ns, one.last_bit_ns) for one in over} == reference(sharing, rates, flows, 0)


def test_the_page_on_the_cell_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cell.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(block, {})
    assert all(f"`{line}`" in page for line in capsys.readouterr().out.splitlines())


def test_time_does_not_pass_over_what_is_due() -> None:
    cell = Cell(Fifo(), PerHertz(), bandwidth_hz=1000)
    cell.start(1, 0, 1000, 0)
    with pytest.raises(RoundelayError, match="something is due at 1000000000 ns"):
        cell.start(2, 0, 1000, NS + 1)
    with pytest.raises(RoundelayError, match="cannot start"):
        cell.start(1, 0, 1000, 0)
    with pytest.raises(RoundelayError, match="a bit at least"):
        cell.start(2, 0, 0, 0)
    cell.advance(5)
    with pytest.raises(RoundelayError, match="cannot pass to 4 ns"):
        cell.advance(4)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_rates_that_are_none_are_named(wrong: float) -> None:
    cell = Cell(Dedicated(), Fixed(np.array([1.0, wrong]), np.ones(2)))
    for client in (0, 1):
        cell.start(client, client, 10, 0)
    with pytest.raises(RoundelayError, match=f"the rates give client 1 .*{wrong}.* bits per second"):
        cell.next_event_ns()


def test_settings_that_cannot_mean_anything_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks must be a whole number of at least 1, got 0"):
        ResourceBlocks(num_blocks=0)
    with pytest.raises(ConfigError, match="uplink_bps of client 'b' must be bits per second, above 0, got 0"):
        Links(uplink_bps={"a": 1.0, "b": 0}, downlink_bps=1)
    with pytest.raises(ConfigError, match="uplink_bps names no rate for client 'b'"):
        Links(uplink_bps={"a": 1.0}, downlink_bps=1).rates(["a", "b"])
    with pytest.raises(ConfigError, match="rate_bps must be above 0, got 0"):
        Backhaul(rate_bps=0)
    with pytest.raises(ConfigError, match="bandwidth_hz above 0, got 0"):
        Cell(Fifo(), PerHertz(), bandwidth_hz=0)
    with pytest.raises(ConfigError, match="patience_ns above it, got 0 and 0"):
        Cell(Fifo(), PerHertz(), patience_ns=0)
    assert Links(uplink_bps={"b": 2, "a": 1}, downlink_bps=3).rates(["a", "b"]).uplink_bps.tolist() == [1, 2]

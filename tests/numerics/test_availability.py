"""When clients are there: a function of the moment, with the shares, dwell times and stretches that it says."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from roundelay import seeds
from roundelay.components import build, describe, namespace
from roundelay.errors import ConfigError, DataError
from roundelay.simulation.network import availability
from roundelay.simulation.network.availability import (
    NS,
    Always,
    Availability,
    Diurnal,
    OnOff,
    TracedAvailability,
)

Planting = Callable[[pytest.MonkeyPatch], None]
CLIENTS = [f"c{n}" for n in range(1000)]
HOUR_NS = 3600 * NS


def share(model: Availability, at_ns: int) -> float:
    return float(np.mean([model.is_available(3, client, at_ns) for client in CLIENTS]))


def near(got: float, expected: float, num: int = len(CLIENTS)) -> bool:
    return abs(got - expected) <= 4.5 * math.sqrt(expected * (1 - expected) / num) + 1e-12


def dwells(model: Availability, client: str, number: int) -> tuple[list[int], list[int]]:
    """Return how long a client is there, and how long away, over its next changes."""
    moments = [0]
    while len(moments) < number + 2:
        following = model.next_change_ns(3, client, moments[-1])
        assert following is not None
        moments.append(following)
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for start, end in pairwise(moments[1:]):
        lengths[model.is_available(3, client, start)].append(end - start)
    return lengths[True], lengths[False]


# ---- one contract for all -------------------------------------------------------------------------------------------


def check_changes(model: Availability) -> None:
    """The contract: between a moment and its next change nothing changes, and there it does; in any order of asking."""
    rng = np.random.default_rng(1)
    for client in CLIENTS[:12]:
        for at_ns in rng.integers(0, 40 * HOUR_NS, 4).tolist():
            now, change = model.is_available(3, client, at_ns), model.next_change_ns(3, client, at_ns)
            if change is None:
                later = rng.integers(at_ns, 400 * HOUR_NS, 30).tolist()
                assert all(model.is_available(3, client, moment) == now for moment in later)
                continue
            assert change > at_ns
            assert model.is_available(3, client, change) != now
            inside = [change - 1, *rng.integers(at_ns, change, 10).tolist()]
            assert all(model.is_available(3, client, moment) == now for moment in inside)
            assert all(model.next_change_ns(3, client, moment) == change for moment in inside)


STRETCHES = "client,start_s,end_s\n" + "".join(
    f"c{n},{start},{start + 9000 + 100 * n}\n" for n in range(12) for start in (7000 * n % 50_000, 60_000, 66_000)
)


@pytest.fixture
def models(tmp_path: Path) -> list[Availability]:
    path = tmp_path / "stretches.csv"
    path.write_text(STRETCHES)
    return [
        Always(), OnOff(mean_on_s=600.0, mean_off_s=1800.0), OnOff(mean_on_s=7200.0, mean_off_s=60.0),
        OnOff(mean_on_s=600.0, mean_off_s=1800.0, slot_s=60.0), Diurnal(), Diurnal(lowest=0.0, highest=1.0),
        Diurnal(phase_spread_s=12 * 3600.0), TracedAvailability(path=str(path)),
        TracedAvailability(path=str(path), repeat_s=86_400.0),
    ]  # fmt: skip


def check_all_changes(models: list[Availability]) -> None:
    for model in models:
        check_changes(model)


def test_changes_are_where_they_are_said_to_be(models: list[Availability]) -> None:
    check_all_changes(models)
    for model in models:
        assert build(describe(model), namespace(availability), "availability") == model


def one_too_late(patch: pytest.MonkeyPatch) -> None:
    for kind in (OnOff, Diurnal, TracedAvailability):
        patch.setattr(kind, "next_change_ns", late(kind.next_change_ns))


def late(right: Callable[..., int | None]) -> Callable[..., int | None]:
    def wrong(self: Availability, seed: int, client: str, at_ns: int) -> int | None:
        change = right(self, seed, client, at_ns)
        return None if change is None else change + 1

    return wrong


def forgets_the_client(patch: pytest.MonkeyPatch) -> None:
    for kind in (OnOff, Diurnal, TracedAvailability):
        there = kind.is_available
        patch.setattr(
            kind, "is_available", lambda self, seed, client, at_ns, there=there: there(self, seed, "c0", at_ns)
        )


def a_return_of_who_is_there_is_a_change(patch: pytest.MonkeyPatch) -> None:
    def following(self: OnOff, seed: int, client: str, at_ns: int) -> int:
        return min(moments.after(seed, client, at_ns) for moments in (self._departures, self._returns))

    patch.setattr(OnOff, "next_change_ns", following)


@pytest.mark.parametrize("plant", [one_too_late, forgets_the_client, a_return_of_who_is_there_is_a_change])
def test_the_check_of_changes_catches(
    plant: Planting, models: list[Availability], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_all_changes(models)


# ---- on and off -----------------------------------------------------------------------------------------------------


def check_on_off() -> None:
    """The contract: steady shares at any moment, exponential dwell times of the given means, a chain without memory."""
    model = OnOff(mean_on_s=600.0, mean_off_s=1800.0)
    for at_ns in (0, 7 * HOUR_NS, 10**6 * HOUR_NS):
        assert near(share(model, at_ns), 0.25)
    lag_ns = 400 * NS
    both = np.mean([model.is_available(3, c, HOUR_NS) and model.is_available(3, c, HOUR_NS + lag_ns) for c in CLIENTS])
    assert near(float(both), 0.25 * (0.25 + 0.75 * math.exp(-400 * (1 / 600 + 1 / 1800))))
    on, off = zip(*(dwells(model, client, 40) for client in CLIENTS[:50]), strict=True)
    for lengths, mean_s in ((on, 600.0), (off, 1800.0)):
        assert stats.kstest(np.concatenate(lengths) / NS, "expon", args=(0, mean_s)).pvalue > 1e-3


def test_on_and_off() -> None:
    check_on_off()


def returns_as_rare_as_departures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OnOff, "_returns", property(lambda self: availability._Moments("return", self.mean_on_s, None, None)))


def one_process_for_both(patch: pytest.MonkeyPatch) -> None:
    """The two share their draws, so that a short time there goes with a short time away."""
    patch.setattr(
        OnOff, "_returns", property(lambda self: availability._Moments("departure", self.mean_off_s, None, None))
    )


def begins_there(patch: pytest.MonkeyPatch) -> None:
    there = OnOff.is_available
    patch.setattr(
        OnOff, "is_available", lambda self, seed, client, at_ns: at_ns < NS or there(self, seed, client, at_ns)
    )


def on_for_off(patch: pytest.MonkeyPatch) -> None:
    there = OnOff.is_available
    patch.setattr(OnOff, "is_available", lambda self, seed, client, at_ns: not there(self, seed, client, at_ns))


def one_moment_a_window(patch: pytest.MonkeyPatch) -> None:
    def drawn(self: availability._Moments, seed: int, client: str, window: int) -> list[int]:
        place = seeds.uniform(seed, window, 0, client, self.purpose)
        return [int((window + place) * self._window_ns)]

    patch.setattr(availability._Moments, "_drawn", drawn)


@pytest.mark.parametrize(
    "plant", [returns_as_rare_as_departures, one_process_for_both, begins_there, on_for_off, one_moment_a_window]
)
def test_the_check_of_on_and_off_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_on_off()


def test_slotted_dwell_times_are_geometric() -> None:
    model = OnOff(mean_on_s=300.0, mean_off_s=600.0, slot_s=60.0)
    on, off = dwells(model, "a", 1500)
    for lengths, mean_s in ((on, 300), (off, 600)):
        slots = np.array(lengths) / (60 * NS)
        assert np.all(slots == np.round(slots))
        p = 60 / mean_s
        assert abs(slots.mean() - 1 / p) < 4.5 * math.sqrt((1 - p) / p**2 / len(slots))
        assert near(float(np.mean(slots == 1)), p, len(slots))
        assert near(float(np.mean(slots <= 3)), 1 - (1 - p) ** 3, len(slots))
    tight = OnOff(mean_on_s=300.0, mean_off_s=600.0, slot_s=200.0)  # each slot has a departure or a return
    assert near(share(tight, 10**15), 1 / 3)
    with pytest.raises(ConfigError, match=r"OnOff: slot_s must be at most 200"):
        OnOff(mean_on_s=300.0, mean_off_s=600.0, slot_s=201.0)


def test_who_is_hardly_ever_away_is_found_as_fast() -> None:
    rare = OnOff(mean_on_s=1e9, mean_off_s=1e-3)
    changes = [rare.next_change_ns(3, client, 0) for client in CLIENTS[:100]]
    assert abs(np.mean(np.array(changes) / NS) / 1e9 - 1) < 0.45
    back = [rare.next_change_ns(3, client, at or 0) for client, at in zip(CLIENTS[:100], changes, strict=True)]
    assert np.max(np.array(back) - np.array(changes)) < 0.01 * NS


# ---- days -----------------------------------------------------------------------------------------------------------


def check_diurnal() -> None:
    """The contract: the share of clients is the sine, and each has one stretch a day."""
    model = Diurnal(lowest=0.1, highest=0.9, peak_s=7200.0)
    for hour in (0, 2, 5, 8, 14, 20, 26, 2 + 24 * 400):
        expected = 0.5 + 0.4 * math.cos(2 * math.pi * (hour - 2) / 24)
        assert near(share(model, hour * HOUR_NS), expected), hour
    changing = [c for c in CLIENTS if model.next_change_ns(3, c, 0) is not None]
    assert near(len(changing) / len(CLIENTS), 0.8)
    on, off = dwells(model, changing[0], 6)
    assert len(set(on)) == len(set(off)) == 1
    assert on[0] + off[0] == 24 * HOUR_NS


def test_days() -> None:
    check_diurnal()
    spread = Diurnal(lowest=0.0, highest=1.0, phase_spread_s=24 * 3600.0)  # all over the world: always half of them
    assert near(share(spread, 2 * HOUR_NS), 0.5)
    assert near(share(spread, 14 * HOUR_NS), 0.5)
    assert share(Diurnal(lowest=1.0, highest=1.0), 0) == 1
    assert share(Diurnal(lowest=0.0, highest=0.0), 0) == 0


def stretch_from_the_peak(patch: pytest.MonkeyPatch) -> None:
    stretch = Diurnal._stretch

    def late(self: Diurnal, seed: int, client: str) -> tuple[int, int]:
        begins_ns, length_ns = stretch(self, seed, client)
        return begins_ns + length_ns // 2, length_ns

    patch.setattr(Diurnal, "_stretch", late)


DAYS: dict[str, Planting] = {
    "the sine's own angle": lambda patch: patch.setattr(availability.math, "acos", math.asin),
    "a stretch from the peak on": stretch_from_the_peak,
    "one threshold for all": lambda patch: patch.setattr(availability.seeds, "uniform", lambda *key: 0.37),
}


@pytest.mark.parametrize("plant", DAYS.values(), ids=DAYS)
def test_the_check_of_days_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        check_diurnal()


# ---- traces ---------------------------------------------------------------------------------------------------------


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("client,start_s,end_s\na,5,10\na,0,2\na,8,12\na,12,13\nb,3,3\n")
    trace = TracedAvailability(path=str(path))
    there = [trace.is_available(1, "a", second * NS) for second in range(15)]
    assert there == [second in (0, 1, *range(5, 13)) for second in range(15)]
    assert not trace.is_available(1, "a", 13 * NS)
    assert trace.is_available(1, "a", 13 * NS - 1)
    assert [trace.next_change_ns(1, "a", second * NS) for second in (0, 2, 6, 13)] == [2 * NS, 5 * NS, 13 * NS, None]
    assert not trace.is_available(1, "b", 3 * NS)
    assert trace.next_change_ns(1, "b", 0) is None
    again = TracedAvailability(path=str(path), repeat_s=13.0)
    assert again.is_available(1, "a", 26 * NS)
    assert again.next_change_ns(1, "a", 6 * NS) == 15 * NS  # its last end is the moment of its first start
    assert again.next_change_ns(1, "a", 1300 * NS) == 1302 * NS
    with pytest.raises(ConfigError, match=r"no trace for client 'x'; unknown = \"draw\""):
        trace.is_available(1, "x", 0)
    drawing = TracedAvailability(path=str(path), unknown="draw")
    assert near(share(drawing, 6 * NS), 0.5)
    path.write_text("client,start_s,end_s\na,0,10\n")
    assert TracedAvailability(path=str(path), repeat_s=10.0).next_change_ns(1, "a", 3) is None


@pytest.mark.parametrize(
    ("text", "repeat_s", "message"),
    [
        ("client,start_s,end_s\na,5,4\n", None, r"client 'a': expected 0 <= start_s <= end_s, got 5.0, 4.0"),
        ("client,start_s,end_s\na,5,40\n", 30.0, r"end_s <= repeat_s = 30, got 5.0, 40.0"),
        ("client,start_s,end_s\n", None, "it holds no stretches"),
        ("client,from,to\na,1,2\n", None, "the heading lacks start_s, end_s"),
    ],
)
def test_files_that_hold_no_trace(text: str, repeat_s: float | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        TracedAvailability(path=str(path), repeat_s=repeat_s)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnOff(mean_on_s=0, mean_off_s=1), "OnOff: mean_on_s must be above 0, got 0"),
        (lambda: Diurnal(lowest=0.5, highest=0.4), "Diurnal: highest must be at least 0.5 and at most 1, got 0.4"),
        (lambda: Diurnal(period_s=0), "Diurnal: period_s must be at least 1e-06, got 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

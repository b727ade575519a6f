"""What a run's network did and cost, against numbers worked out by hand, and the bugs that these must catch."""

from collections.abc import Callable
from typing import Any

import pytest

from roundelay.errors import ConfigError
from roundelay.report import accounts, comparing, units
from roundelay.report.accounts import (
    Account,
    Journey,
    Split,
    Stretch,
    account,
    ends_of,
    journeys_of,
    splits_of,
    staleness_of,
    staleness_told,
)
from roundelay.report.comparing import (
    AXES,
    Cost,
    Point,
    Told,
    best_of_all,
    bound_of,
    compared,
    curve_of,
    line_of,
    parse_target,
    settings_of,
)
from roundelay.simulation.network.ledger import Computation, Ledger, Message

Planting = Callable[[pytest.MonkeyPatch], None]
S = 1_000_000_000


def down(round: int, task: int, queued: float, last: float, client: str = "*") -> Message:
    return Message(round=round, task=task, client=client, direction="down", kind="model", queued_ns=round_ns(queued),
                   first_bit_ns=round_ns(queued), last_bit_ns=round_ns(last), bits=100)  # fmt: skip


def up(round: int, task: int, client: str, queued: float, first: float | None, last: float, **more: Any) -> Message:
    given = {"kind": "update", "bits": 1000, "energy_j": 0.25, **more}
    first_ns = None if first is None else round_ns(first)
    return Message(round=round, task=task, client=client, direction="up", queued_ns=round_ns(queued),
                   first_bit_ns=first_ns, last_bit_ns=round_ns(last), **given)  # fmt: skip


def worked(round: int, task: int, client: str, start: float, end: float) -> Computation:
    return Computation(round=round, task=task, client=client, start_ns=round_ns(start), end_ns=round_ns(end))


def round_ns(seconds: float) -> int:
    return round(seconds * S)


def table(*rows: Message | Computation) -> list[dict[str, Any]]:
    ledger = Ledger()
    for row in rows:
        ledger.add(row)
    return ledger.take()


# Two rounds of two clients. In the second, ann's trigger stays silent, and ben is cut off before he comes on the air.
ROUNDS = [{"round": 1, "virtual_s": 8.0}, {"round": 2, "virtual_s": 13.0}]
LEDGER = table(
    down(1, 1, 0, 2), worked(1, 2, "ben", 2, 4), worked(1, 1, "ann", 2, 5), up(1, 2, "ben", 4, 4, 6),
    up(1, 1, "ann", 5, 6, 8),
    down(2, 3, 8, 9), worked(2, 4, "ben", 9, 10), worked(2, 3, "ann", 9, 11),
    up(2, 3, "ann", 11, 11, 12, kind="skip", bits=8), up(2, 4, "ben", 10, None, 13, outcome="late", bits=0),
)  # fmt: skip


def told() -> tuple[list[Journey], Account]:
    journeys = journeys_of(LEDGER, ends_of(ROUNDS))
    return journeys, account(journeys, staleness_of(journeys, ends_of(ROUNDS)), buffered=False)


def check_journeys() -> None:
    journeys, _ = told()
    spent = {one.task: [(part.doing, part.length_ns / S) for part in one.stretches] for one in journeys}
    assert spent == {
        1: [("receiving", 2), ("computing", 3), ("queueing", 1), ("sending", 2)],
        2: [("receiving", 2), ("computing", 2), ("sending", 2), ("waiting", 2)],
        3: [("receiving", 1), ("computing", 2), ("sending", 1), ("waiting", 1)],
        4: [("receiving", 1), ("computing", 1), ("queueing", 3)],
    }
    for one in journeys:
        ends = [part.end_ns for part in one.stretches]
        assert [part.start_ns for part in one.stretches[1:]] == ends[:-1], "no gaps"
        assert ends[-1] == {1: 8 * S, 2: 13 * S}[one.round]


def check_account() -> None:
    _, found = told()
    assert found.computing_s == pytest.approx(2)  # of 3, 2, 2 and 1
    assert found.sending_s == pytest.approx(2)  # of 2 and 2: a skip is no update, and one did not arrive
    assert found.queueing_s == pytest.approx(0.5)  # of 1 and 0
    whole = 8 + 4 + 11 + 3
    assert found.shares == pytest.approx(
        {"computing": 8 / whole, "queueing": 4 / whole, "on air": 11 / whole, "waiting": 3 / whole}
    )
    assert (found.fired, found.skipped, found.lost) == (3, 1, 1)
    assert found.staleness == {0: 2}


def check_bound() -> None:
    journeys, found = told()
    # Ann computes for 3 s and is there 3 s later; in the second round she computes for 2 s, and ben ends after 4 s.
    assert found.splits == {1: Split(3 * S, 3 * S), 2: Split(2 * S, 2 * S)}
    assert found.split() == Split(5 * S, 5 * S)
    assert found.split().bound == pytest.approx(2)
    assert found.split(until=1) == Split(3 * S, 3 * S)
    assert account(journeys, {}, buffered=True).split().bound == pytest.approx(1 + 9 / 8)  # nobody waits for anybody
    alone = [one for one in journeys if one.task == 1]
    assert splits_of(alone, buffered=False) == splits_of(alone, buffered=True) == {1: Split(3 * S, 3 * S)}
    assert Split(S, 3 * S).bound == pytest.approx(4)  # T_tx / T_comp = 3


def on_air_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journey, "uploading_ns", property(lambda self: self.spent_ns("sending")))


def upside_down(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Split, "bound", property(lambda self: 1 + self.computing_ns / self.sending_ns))


def without_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Split, "bound", property(lambda self: self.sending_ns / self.computing_ns))


def microseconds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts, "NS", 1_000_000)


def binary_giga(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts, "NS", 2**30)


def nobody_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts, "_waited", lambda began, ends_ns: began)


def broadcasts_unheard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accounts, "EVERYBODY", "everybody")


# ---- what a target cost ---------------------------------------------------------------------------------------------


def rows(*values: tuple[float, float, int, float]) -> list[dict[str, Any]]:
    return [
        {"round": number, "accuracy": value, "virtual_s": time_s, "uplink_bits": bits, "joules": joules}
        for number, (value, time_s, bits, joules) in enumerate(values, start=1)
    ]


RAW = rows((0.5, 10.0, 8_000_000, 1.0), (0.7, 20.0, 8_000_000, 1.5), (0.9, 30.0, 8_000_000, 2.0))
CODED = rows((0.4, 6.0, 1_000_000, 0.8), (0.8, 12.0, 1_000_000, 0.6), (0.85, 18.0, 1_000_000, 0.4))


def run(
    name: str, rows: list[dict[str, Any]], seed: int = 1, splits: dict[int, Split] | None = None, **job: Any
) -> Told:
    found = None if splits is None else Account(
        computing_s=None, sending_s=None, queueing_s=None, shares={}, staleness={}, fired=0, skipped=0, lost=0,
        splits=splits,
    )  # fmt: skip
    return Told(name, {"seed": seed, "name": name, **job}, curve_of(rows, "accuracy"), found)


def check_costs() -> None:
    assert curve_of(RAW, "accuracy")[1] == Point(2, 0.7, 20.0, 16_000_000, 2.5)
    splits = {1: Split(S, 2 * S), 2: Split(2 * S, 4 * S), 4: Split(S, S)}  # at the target after three rounds
    runs = [run("raw", RAW, codec="none", splits=splits), run("coded", CODED, codec="qsgd")]
    assert best_of_all(runs, "accuracy") == 0.85
    raw, coded = compared(settings_of(runs), "accuracy", 0.8)
    assert (raw.reached, raw.cost, raw.ratios) == (1, Cost(3, 30.0, 24_000_000, 4.5), {})
    assert (coded.reached, coded.cost) == (1, Cost(2, 12.0, 2_000_000, 1.4))
    assert coded.ratios == pytest.approx({"time_s": 2.5, "uplink_bits": 12.0, "energy_j": 4.5 / 1.4})
    assert coded.bound == pytest.approx(3)
    assert units.quantity(coded.cost.uplink_bits, "bit") == "2 Mbit"
    assert units.quantity(2**20, "bit") == "1.049 Mbit"
    assert [units.prefix_of(value)[0] for value in (5e9, 5e6, 5e3, 5, 5e-3, 0)] == [1e9, 1e6, 1e3, 1, 1e-3, 1]


def bytes_for_bits(patch: pytest.MonkeyPatch) -> None:
    real = curve_of

    def shrunk(rows: Any, metric: str) -> list[Point]:
        return real([{**row, "uplink_bits": row["uplink_bits"] // 8} for row in rows], metric)

    patch.setitem(globals(), "curve_of", shrunk)


def last_round_only(patch: pytest.MonkeyPatch) -> None:
    def each(rows: Any, metric: str) -> list[Point]:
        return [Point(r["round"], r[metric], r["virtual_s"], r["uplink_bits"], r["joules"]) for r in rows]

    patch.setitem(globals(), "curve_of", each)


def binary_mega(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(units, "PREFIXES", ((2.0**30, "G"), (2.0**20, "M"), (2.0**10, "k"), (1.0, ""), (1e-3, "m")))


def bound_of_all_rounds(patch: pytest.MonkeyPatch) -> None:
    real = Account.split
    patch.setattr(Account, "split", lambda self, until=None: real(self))


def slower_for_sooner(patch: pytest.MonkeyPatch) -> None:
    real = comparing._ratios
    patch.setattr(comparing, "_ratios", lambda first, cost: real(cost, first))


CHECKS = {
    check_journeys: (nobody_waits, broadcasts_unheard),
    check_account: (microseconds, binary_giga, nobody_waits),
    check_bound: (on_air_only, upside_down, without_one),
    check_costs: (bytes_for_bits, last_round_only, binary_mega, slower_for_sooner, bound_of_all_rounds),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_accounts_are_those_worked_out_by_hand(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("check", "planting"),
    [(check, planting) for check, plantings in CHECKS.items() for planting in plantings],
    ids=lambda function: function.__name__,
)
def test_each_check_catches_what_it_is_for(
    check: Callable[[], None], planting: Planting, monkeypatch: pytest.MonkeyPatch
) -> None:
    planting(monkeypatch)
    with pytest.raises(AssertionError):
        check()


# ---- further cases --------------------------------------------------------------------------------------------------


def test_a_client_that_is_asked_again_waits_no_longer() -> None:
    rows = table(worked(1, 1, "ann", 0, 1), up(1, 1, "ann", 1, 1, 2), worked(1, 2, "ann", 4, 5))
    first, second = journeys_of(rows, {1: 9 * S})
    assert first.stretches[-1] == Stretch("waiting", 2 * S, 4 * S)
    assert second.stretches[-1] == Stretch("waiting", 5 * S, 9 * S)


def test_a_grant_and_what_lies_behind_the_last_bit_is_waiting() -> None:
    rows = table(worked(1, 1, "ann", 0, 1), up(1, 1, "ann", 1.5, 2, 3))
    (one,) = journeys_of(rows, {1: 4 * S})
    assert [part.doing for part in one.stretches] == ["computing", "waiting", "queueing", "sending", "waiting"]
    assert one.uploading_ns == 2 * S


def test_a_broadcast_belongs_to_whom_it_reached_when_computing_began() -> None:
    rows = table(down(1, 1, 0, 1), down(1, 3, 0.5, 2), worked(1, 1, "ann", 1, 2), worked(1, 2, "ben", 1, 3),
                 worked(1, 3, "col", 2, 3), down(1, 4, 0, 1.5, "dee"), worked(1, 4, "dee", 1.5, 2))  # fmt: skip
    assert {one.client: one.asked_ns / S for one in journeys_of(rows, {})} == {
        "ann": 0, "ben": 0, "col": 0.5, "dee": 0
    }  # fmt: skip


def test_staleness_counts_the_rounds_that_ended_under_way() -> None:
    ends_ns = {1: 5 * S, 2: 8 * S}

    def landed(task: int, asked: float, number: int, **more: Any) -> Journey:
        given = {"kind": "update", "outcome": "arrived", **more}
        return Journey(task=task, client=str(task), round=number, asked_ns=round_ns(asked), done_ns=0, stretches=(),
                       **given)  # fmt: skip

    journeys = [
        landed(1, 0, 1), landed(2, 0, 2), landed(3, 5, 2), landed(4, 4.999, 2), landed(5, 0, 3),
        landed(6, 0, 3, kind="skip"), landed(7, 0, 3, outcome="late"),
    ]  # fmt: skip
    assert staleness_of(journeys, ends_ns) == {0: 2, 1: 2, 2: 1}
    clients = [{"status": "admitted", "staleness": 2.0}, {"status": "lost"}, {"status": "admitted", "staleness": 0.0}]
    assert staleness_told(clients) == {0: 1, 2: 1}
    assert staleness_told([{"status": "admitted"}]) == {}


def test_seeds_of_one_configuration_are_one_setting_and_the_same_seed_twice_is_not() -> None:
    runs = [run("raw-seed1", RAW), run("coded", CODED, codec="q"), run("raw-seed2", RAW, seed=2), run("again", RAW)]
    named = [(one.name, [told.name for told in one.runs]) for one in settings_of(runs)]
    assert named == [("raw (2 seeds)", ["raw-seed1", "raw-seed2"]), ("coded", ["coded"]), ("again", ["again"])]
    assert [one.name for one in settings_of([run("a", RAW), run("a", RAW)])] == ["a", "a [2]"]


def test_a_line_holds_each_value_until_the_next_and_shows_the_range_of_its_seeds() -> None:
    (one,) = settings_of([run("x1", RAW), run("x2", CODED, seed=2)])
    line = line_of(one, "time_s")
    assert line is not None
    assert line.at == (10.0, 12.0, 18.0, 20.0, 30.0)
    assert line.low == (0.4, 0.5, 0.5, 0.7, 0.85)
    assert line.high == (0.5, 0.8, 0.85, 0.85, 0.9)
    assert line.mean == pytest.approx((0.45, 0.65, 0.675, 0.775, 0.875))


def test_costs_of_seeds_are_means_and_a_seed_that_never_gets_there_leaves_none() -> None:
    (one,) = compared(settings_of([run("x1", RAW), run("x2", CODED, seed=2)]), "accuracy", 0.7)
    assert one.cost == Cost(2.0, 16.0, 9_000_000.0, 1.95)
    (one,) = compared(settings_of([run("x1", RAW), run("x2", CODED, seed=2)]), "accuracy", 0.9)
    assert (one.reached, one.cost, one.ratios) == (1, None, {})


def test_lower_losses_are_better() -> None:
    rows = [{"round": 1, "loss": 2.0, "virtual_s": 1.0}, {"round": 2, "loss": 1.0, "virtual_s": 2.0}]
    told = Told("a", {}, curve_of(rows, "loss"))
    worse = Told("b", {"codec": "q"}, curve_of(rows[:1], "loss"))
    assert best_of_all([told, worse], "loss") == 2.0
    first, second = compared(settings_of([told, worse]), "loss", 1.5)
    assert first.cost == Cost(2.0, 2.0, None, None)
    assert (second.cost, first.bound) == (None, None)


def test_what_was_not_modelled_is_not_compared() -> None:
    bare = Told("a", {}, curve_of([{"round": 1, "accuracy": 0.5, "virtual_s": 0.0}], "accuracy"))
    (one,) = settings_of([bare])
    assert [line_of(one, axis) for axis in AXES] == [None, None, None]
    assert bound_of(one, "accuracy", 0.5) is None
    assert best_of_all([bare, Told("b", {}, [])], "accuracy") is None


def test_targets_are_read_or_refused() -> None:
    assert parse_target("accuracy=0.9") == ("accuracy", 0.9)
    for text in ("accuracy", "=0.9", "accuracy=high", "accuracy=nan"):
        with pytest.raises(ConfigError, match=r"such as accuracy=0\.9"):
            parse_target(text)

"""A round begins when enough of its clients are ready: the rule, and what it does to a run in virtual time."""

import asyncio
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from networks import Plain, small_job

import roundelay as rd
from roundelay import config
from roundelay.errors import ConfigError, RoundelayError, VirtualDeadlock
from roundelay.intake import ClientReport
from roundelay.load import IDLE
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.loads import When
from roundelay.simulation.network.cell import Links
from roundelay.workflows import readiness as module
from roundelay.workflows.readiness import Begun, Readiness

LOADED = rd.Load(cpu_percent=97.0)
SERIAL = rd.Simulation(executor="serial")
NOTES = ("ready", "waits", "seconds")
Model = Callable[[str, When], rd.Load]


def loaded_until(moments_s: Mapping[str, float]) -> Model:
    """Clients whose load falls at a moment; who is not named is idle."""
    return lambda client, when: LOADED if when.at_s < moments_s.get(client, 0.0) else IDLE


def job(load: Model | None = None, **changes: object) -> rd.Job:
    workflow = rd.Rounds(readiness=Readiness(first_wait_s=5.0, longest_wait_s=30.0))
    simulation = rd.Simulation(executor="serial", load=load)
    settings: dict[str, object] = {
        "workflow": workflow, "clients_per_round": 1.0, "model": Plain, "simulation": simulation, "num_rounds": 2,
    }  # fmt: skip
    return small_job(**{**settings, **changes})


def asked(load: Model, **changes: object) -> tuple[rd.History, list[float]]:
    """Run a job; return its history, and at which moments the first client was asked."""
    moments: list[float] = []

    def noted(client: str, when: When) -> rd.Load:
        if client == "c0":
            moments.append(when.at_s)
        return load(client, when)

    return job(noted, **changes).run(), moments


def without(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


# ---- in virtual time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "simulation"),
    [({}, SERIAL), ({"algorithm": rd.Scaffold()}, SERIAL), ({}, rd.Simulation(num_workers=2))],
    ids=["fedavg", "scaffold", "processes"],
)
def test_with_idle_clients_a_run_is_the_one_without_readiness_to_the_bit(
    changes: Mapping[str, object], simulation: rd.Simulation
) -> None:
    plain = small_job(clients_per_round=3, **changes).run()
    ready = small_job(
        clients_per_round=3, simulation=simulation, workflow=rd.Rounds(readiness=Readiness()), **changes
    ).run()
    assert ready.sha256 == plain.sha256
    assert without(ready.rows, NOTES) == without(plain.rows, NOTES)
    assert [(row["ready"], row["waits"]) for row in ready.rows] == [(3, 0)] * 3


def check_waiting(*_: object) -> None:
    """Three of six are not more than one half. A fourth is ready from 20 s on, which is heard of at 5 + 10 + 20 s; the
    second round begins at once, for only waiting takes time here.
    """
    history, moments = asked(loaded_until({"c0": 1e9, "c1": 1e9, "c2": 20.0}))
    assert moments == [0.0, 5.0, 15.0, 35.0, 35.0]
    assert [(row["ready"], row["waits"], row["admitted"]) for row in history.rows] == [(4, 3, 4), (4, 0, 4)]
    assert [row["virtual_s"] for row in history.rows] == [35.0, 35.0]


def test_a_round_waits_until_more_than_a_share_is_ready_with_growing_patience() -> None:
    check_waiting()


def test_patience_grows_up_to_the_longest_wait() -> None:
    _, moments = asked(loaded_until({f"c{i}": 130.0 for i in range(6)}), num_rounds=1)
    assert moments == [0.0, 5.0, 15.0, 35.0, 65.0, 95.0, 125.0, 155.0]


@pytest.mark.parametrize("busy", ["skip", "ask"])
def test_who_is_busy_is_left_out_of_the_round_or_asked_like_everybody_else(busy: str) -> None:
    given = job(loaded_until({"c0": 1e9, "c3": 1e9}), workflow=rd.Rounds(readiness=Readiness(busy=busy)))
    idle, loaded = ["c1", "c2", "c4", "c5"], ["c0", "c3"]
    for finished in given.rounds():
        came = {status: [r.client for r in finished.clients if r.status == status] for status in ("admitted", "busy")}
        assert came == ({"admitted": idle, "busy": loaded} if busy == "skip" else
                        {"admitted": sorted(idle + loaded), "busy": []})  # fmt: skip
        assert {r.reason for r in finished.clients} == ({"", "cpu_percent 97"} if busy == "skip" else {""})
    if busy == "ask":
        assert given.run().sha256 == job().run().sha256


def test_a_quorum_is_waited_for_and_other_attempts_ask_anew() -> None:
    history, moments = asked(
        loaded_until({"c0": 20.0}), num_rounds=1, workflow=rd.Rounds(quorum=6, readiness=Readiness())
    )
    assert (moments, history.rows[0]["admitted"]) == ([0.0, 5.0, 15.0, 35.0], 6)
    slow = rd.Simulation(executor="serial", load=loaded_until({"c0": 1.0}), duration=lambda client, task: 10.0)
    again = job(simulation=slow, num_rounds=1,
                workflow=rd.Rounds(quorum=6, attempts=2, deadline_s=4.0, readiness=Readiness()))  # fmt: skip
    (row,) = again.run().rows
    assert (row["attempt"], row["waits"], row["virtual_s"]) == (1, 1, 5.0 + 4.0 + 4.0)


def test_who_does_not_answer_is_waited_for_and_not_ready() -> None:
    readiness = Readiness(answer_s=8.0)
    history, _ = asked(
        lambda client, when: None if client == "c2" and when.round == 1 else IDLE,
        workflow=rd.Rounds(readiness=readiness),
    )
    assert [(row["ready"], row["admitted"], row["virtual_s"]) for row in history.rows] == [(5, 5, 8.0), (6, 6, 8.0)]
    with pytest.raises(ConfigError, match=r"simulation\.load of client 'c0' is 97\.0; expected a Load"):
        job(lambda client, when: 97.0).run()  # type: ignore[arg-type, return-value]


def test_waiting_may_come_to_an_end_and_the_round_then_begins_with_everybody() -> None:
    impatient = Readiness(first_wait_s=5.0, give_up_s=12.0)
    history, moments = asked(
        loaded_until({f"c{i}": 1e9 for i in range(6)}), num_rounds=1, workflow=rd.Rounds(readiness=impatient)
    )
    assert moments == [0.0, 5.0, 15.0], "12 s were not over at 5 s"
    assert (history.rows[0]["ready"], history.rows[0]["admitted"]) == (0, 6)


def test_a_load_that_never_falls_is_an_error_and_not_a_run_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.simulation.federation.MAX_RESTS", 20)
    with pytest.raises(VirtualDeadlock, match=r"round 1: 0 of 6 clients are ready.*c0 \(cpu_percent 97\).*ever fall"):
        job(loaded_until({f"c{i}": 1e9 for i in range(6)})).run()


def test_a_run_that_is_resumed_waits_as_it_would_have(tmp_path: Path) -> None:
    simulation = rd.Simulation(executor="serial", load=rd.Busy(0.5, every_s=7.0), duration=lambda client, task: 3.0)
    given = job(simulation=simulation, num_rounds=6, tracking=rd.Tracking(str(tmp_path), checkpoint_every_s=0.0))
    whole = given.run()
    assert sum(row["waits"] for row in whole.rows) > 2
    stopped = given.start()
    for finished in stopped:
        if finished.number == 3:
            break
    resumed = given.run(resume=stopped.folder)
    assert resumed.sha256 == whole.sha256
    assert without(resumed.rows, ["seconds"]) == without(whole.rows, ["seconds"])
    with pytest.raises(ConfigError, match=r"its simulation\.load is"):
        replace(given, simulation=replace(simulation, load=rd.Busy(0.4))).run(resume=stopped.folder)


def test_waiting_takes_time_over_a_modelled_network_too() -> None:
    network = rd.Network(cell=Links(uplink_bps=1e6, downlink_bps=1e6))
    times = []
    for load in (None, loaded_until({f"c{i}": 12.0 for i in range(6)})):
        given = job(simulation=rd.Simulation(executor="serial", network=network, load=load))
        times.append([row["virtual_s"] for row in given.run().rows])
    assert times[1][0] == pytest.approx(times[0][0] + 15.0, abs=1e-6)


# ---- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (None, "no answer"),
        (rd.Load(), None),
        (IDLE, None),
        (rd.Load(cpu_percent=79.9), None),
        (rd.Load(cpu_percent=80.0), "cpu_percent 80"),
        (rd.Load(cpu_percent=5.0, memory_percent=91.5), "memory_percent 91.5"),
        (rd.Load(gpu_percent=100.0), "gpu_percent 100"),
        (rd.Load(battery_percent=20.0), None),
        (rd.Load(battery_percent=19.0), "battery_percent 19"),
    ],
)
def test_only_readings_that_are_known_are_held_against_the_limits(load: rd.Load | None, why: str | None) -> None:
    assert Readiness().excess(load) == why
    lenient = Readiness(cpu_percent=None, memory_percent=None, gpu_percent=None, battery_percent=None)
    assert lenient.excess(load) == (why if load is None else None)


class Asked:
    """A federation of which only loads and rests are asked: ``loads`` are told one after the other."""

    def __init__(self, *loads: Mapping[str, rd.Load]) -> None:
        self._loads, self.rests, self.whys = list(loads), list[float](), list[str]()

    async def loads(self, number: int, attempt: int, clients: Sequence[str], within_s: float) -> Mapping[str, rd.Load]:
        return self._loads.pop(0)

    async def rest(self, seconds: float, why: str) -> None:
        self.rests.append(seconds)
        self.whys.append(why)


def check_silence(*_: object) -> None:
    """Two of four answer; who is silent is not ready, and is named."""
    fed = Asked({"a": IDLE, "b": IDLE}, {"a": IDLE, "b": IDLE, "d": rd.Load()})
    begun = asyncio.run(Readiness().gathered(fed, 3, 0, ("a", "b", "c", "d"), 1))  # type: ignore[arg-type]
    assert begun == Begun(("a", "b", "d"), (ClientReport("c", "busy", "no answer"),), 3, 1)
    assert fed.whys == ["round 3: 2 of 4 clients are ready, more than 50% are needed; not ready: c (no answer), "
                        "d (no answer)"]  # fmt: skip


def test_a_client_that_does_not_answer_is_not_ready() -> None:
    check_silence()


def check_shares(*_: object) -> None:
    """0.29 of 100 is 29, though a hair less in floats."""
    names = tuple(f"c{i:02}" for i in range(100))
    fed = Asked(dict.fromkeys(names[:29], IDLE), dict.fromkeys(names[:30], IDLE))
    begun = asyncio.run(Readiness(share=0.29).gathered(fed, 1, 0, names, 1))  # type: ignore[arg-type]
    assert (begun.num_ready, begun.num_waits) == (30, 1)


def test_shares_are_those_of_exact_arithmetic() -> None:
    check_shares()


def test_of_nobody_nobody_is_enough() -> None:
    begun = asyncio.run(Readiness().gathered(Asked({}), 1, 0, (), 1))  # type: ignore[arg-type]
    assert begun == Begun((), (), 0, 0)


REST = SimulatedFederation.rest
PLANTED: dict[str, tuple[Callable[..., None], Callable[[pytest.MonkeyPatch], None]]] = {
    "a share is enough": (
        check_waiting,
        lambda patch: patch.setattr(Readiness, "_enough", lambda self, ready, of, quorum: ready >= self.share * of),
    ),
    "patience does not grow": (check_waiting, lambda patch: patch.setattr(module, "GROWTH", 1.0)),
    "waiting takes no time": (
        check_waiting,
        lambda patch: patch.setattr(SimulatedFederation, "rest", lambda self, s, why: REST(self, 0.0, why)),
    ),
    "nobody waits": (check_waiting, lambda patch: patch.setattr(Readiness, "_enough", lambda *_: True)),
    "shares of floats": (
        check_shares,
        lambda patch: patch.setattr(Readiness, "_enough", lambda self, ready, of, quorum: ready > self.share * of),
    ),
    "silence is readiness": (
        check_silence,
        lambda patch: patch.setattr(Readiness, "excess", lambda self, load: None),
    ),
}


@pytest.mark.parametrize(("check", "plant"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_found(
    check: Callable[..., None], plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.simulation.federation.MAX_RESTS", 100)
    plant(monkeypatch)
    with pytest.raises((AssertionError, RoundelayError, IndexError)):
        check()


# ---- models of loads, and what cannot be meant ----------------------------------------------------------------------


def test_busy_clients_are_so_for_their_share_of_the_time_in_stretches() -> None:
    busy = rd.Busy(0.3, every_s=10.0, cpu_percent=90.0)
    seen = [busy("alice", When(7, 1, 0, 10.0 * n + 3)).cpu_percent for n in range(4_000)]
    assert sum(value == 90.0 for value in seen) / 4_000 == pytest.approx(0.3, abs=0.03)
    assert set(seen) == {0.0, 90.0}
    assert all(busy("alice", When(7, 2, 1, 10.0 * n + 9.9)).cpu_percent == seen[n] for n in range(100))
    assert [busy("bob", When(7, 1, 0, 10.0 * n)).cpu_percent for n in range(100)] != seen[:100]


def test_a_job_file_says_so_in_a_table_and_comes_back_as_it_was() -> None:
    text = {
        "use": "rounds", "deadline_s": 60.0, "readiness": {"share": 0.4, "cpu_percent": 40, "longest_wait_s": 10},
    }  # fmt: skip
    parts = config.parts_of({"workflow": text, "simulation": {"load": {"use": "busy", "share": 0.2}}})
    assert parts["workflow"] == rd.Rounds(
        deadline_s=60.0, readiness=Readiness(share=0.4, cpu_percent=40.0, longest_wait_s=10.0)
    )
    assert parts["simulation"].load == rd.Busy(0.2)
    nested = config.parts_of({"workflow": {"use": "cross_site", "then": text | {"use": "rounds"} | NAMED}})
    assert nested["workflow"] == rd.CrossSite(then=rd.Rounds(deadline_s=60.0, readiness=Readiness(share=0.4)))
    with pytest.raises(ConfigError, match=r"workflow\.readiness\.patience.*unknown"):
        config.parts_of({"workflow": {"use": "rounds", "readiness": {"patience": 3}}})
    given = job(workflow=rd.CrossSite(then=parts["workflow"]), simulation=parts["simulation"])
    again = config.parts_of(
        {k: v for k, v in tomllib.loads(given.to_toml()).items() if k in ("workflow", "simulation")}
    )
    assert again["workflow"] == given.workflow
    assert again["simulation"].load == rd.Busy(0.2)


NAMED = {"readiness": {"use": "readiness", "share": 0.4}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"share": 1.0}, "share must be at least 0 and below 1"),
        ({"cpu_percent": 101.0}, "cpu_percent must be from 0 to 100"),
        ({"first_wait_s": 0.0}, "first_wait_s must be a positive number"),
        ({"answer_s": float("inf")}, "answer_s must be a positive number"),
        ({"longest_wait_s": 1.0}, "is below first_wait_s"),
        ({"give_up_s": -1.0}, "give_up_s must be positive"),
        ({"busy": "wait"}, 'busy must be "skip" or "ask"'),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Readiness(**settings)


REFUSED: dict[str, tuple[Mapping[str, object], str]] = {
    "privacy": (
        {"privacy": rd.CentralDP(delta=1e-3, noise_multiplier=1.0, clip_norm=1.0)},
        "readiness lets clients' loads decide",
    ),
    "a root client": ({"aggregator": rd.FLTrust(root="c0")}, "needs its root client 'c0' in every round"),
    "loads that nobody asks for": (
        {"workflow": rd.Rounds(), "simulation": replace(SERIAL, load=rd.Busy(0.1))},
        "nothing asks for it",
    ),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_readiness_does_not_go_together_with_is_refused(changes: Mapping[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        job(**changes).start()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_model_of_loads_has_settings_that_mean_something(share: float) -> None:
    with pytest.raises(ConfigError, match="busy share"):
        rd.Busy(share)
    with pytest.raises(ValueError, match="cpu_percent must be from 0 to 100"):
        partial(rd.Load, cpu_percent=130.0)()

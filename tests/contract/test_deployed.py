"""A run on devices is the run of the simulator: same bits, same rows, whatever is interrupted, late or lost."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from devices import Answering, deployed
from networks import Awkward, small_job

import roundelay as rd
from roundelay.tracking.run_folder import Row

REAL = ("seconds", "virtual_s")
"""What real time decides."""


def job(tmp_path: Path, **changes: object) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=0.0)
    return small_job(tracking=tracking, simulation=rd.Simulation(executor="serial"), **changes)


def rows(history: rd.History) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in REAL} for row in history.rows]


def clients(history: rd.History) -> list[Row]:
    return history.clients()


def served(given: rd.Job, answering: Mapping[str, Answering] = {}) -> rd.History:
    with deployed(given.prepared(), answering=answering) as deployment:
        for _ in deployment.run:
            pass
    return deployment.run.history()


def require_same(one: rd.History, other: rd.History) -> None:
    assert one.sha256 == other.sha256
    assert rows(one) == rows(other)
    assert clients(one) == clients(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": rd.Scaffold(), "clients_per_round": 4},
        {"algorithm": rd.Ditto(strength=0.1), "evaluation": rd.Evaluation(clients_every=1)},
        {"model": Awkward, "keep_local": ["@batch_norm"], "evaluation": rd.Evaluation(clients_every=2)},
        {"aggregator": rd.CoordinateMedian()},
        {"workflow": rd.CrossSite()},
    ],
    ids=["fedavg", "scaffold", "ditto", "fedbn", "median", "cross-site"],
)
def test_devices_end_in_the_bits_of_the_simulation(tmp_path: Path, changes: dict[str, object]) -> None:
    given = job(tmp_path, **changes)
    simulated, real = given.run(), served(given)
    require_same(simulated, real)
    assert real.records == simulated.records


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1e9], ids=["checkpointed", "from the journal alone"])
def test_a_server_that_went_away_is_followed_by_one_that_asks_nothing_twice(
    tmp_path: Path, stop_after: int, checkpoint_every_s: float
) -> None:
    given = job(tmp_path, num_rounds=4, algorithm=rd.Scaffold())
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=checkpoint_every_s))
    undisturbed = given.run()
    memories: dict[str, dict[int, object]] = {}
    asked: list[int] = []
    with deployed(given.prepared(), memories=memories) as deployment:
        rounds = iter(deployment.run)
        for _ in range(stop_after):
            next(rounds)
        folder = deployment.run.folder
        if checkpoint_every_s:  # as after kill -9: what was not checkpointed is lost
            deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        rounds.close()
        asked += [kept.task.id for device in deployment.devices.values() for kept in device.tasks]
    assert folder is not None
    assert (folder / "checkpoint.pt").exists() == (not checkpoint_every_s)
    with deployed(given.prepared(), folder, memories) as deployment:
        for _ in deployment.run:
            pass
        again = [kept.task.id for device in deployment.devices.values() for kept in device.tasks]
    require_same(undisturbed, deployment.run.history())
    assert not set(asked) & set(again)

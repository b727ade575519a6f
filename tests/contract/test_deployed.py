"""A run on devices is the run of the simulator: same bits, same rows, whatever is interrupted, late or lost."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from devices import Answering, deployed, eventually
from networks import Awkward, Plain, federated, small_job
from own_workflows import fedavg

import roundelay as rd
from roundelay.messages import Memory
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


EDGES = {"north": ("c0", "c3", "c4"), "south": ("c1", "c2", "c5")}


def slower_at_first(number: int, client: str) -> dict[str, float]:
    return {"lr": 0.02 * number}


JOBS: dict[str, dict[str, object]] = {
    "fedavg": {},
    "scaffold": {"algorithm": rd.Scaffold(), "clients_per_round": 4},
    "ditto": {"algorithm": rd.Ditto(strength=0.1), "evaluation": rd.Evaluation(clients_every=1)},
    "fedbn": {"model": Awkward, "keep_local": ["@batch_norm"], "evaluation": rd.Evaluation(clients_every=2)},
    "median": {"aggregator": rd.CoordinateMedian()},
    "cross-site": {"workflow": rd.CrossSite(), "evaluation": rd.Evaluation(clients_every=1)},
    "cyclic": {"workflow": rd.Cyclic(), "algorithm": rd.Scaffold()},
    "cyclic in any order": {"workflow": rd.Cyclic(order="random")},
    "hierarchical": {"workflow": rd.Hierarchical(EDGES, edge_rounds=2), "clients_per_round": 2},
    "own workflow": {"workflow": fedavg, "algorithm": rd.Scaffold()},
    "settings by client": {"client_config": slower_at_first},
    "private": {"privacy": rd.CentralDP(delta=1e-3, noise_multiplier=0.5, clip_norm=1.0), "model": Plain},
    "one client": {"data": partial(federated, 1), "clients_per_round": 1},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_devices_end_in_the_bits_of_the_simulation(tmp_path: Path, changes: dict[str, object]) -> None:
    given = job(tmp_path, **changes)
    simulated, real = given.run(), served(given)
    require_same(simulated, real)
    assert real.records == simulated.records


@pytest.mark.parametrize("checkpoint_every_s", [0.0, 1e9], ids=["checkpointed", "from the journal alone"])
@pytest.mark.parametrize("name", sorted(JOBS.keys() - {"fedavg", "fedbn", "median", "one client"}))
def test_a_server_that_went_away_is_followed_by_one_that_asks_nothing_twice(
    tmp_path: Path, name: str, checkpoint_every_s: float
) -> None:
    given = job(tmp_path, num_rounds=3, **JOBS[name])
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=checkpoint_every_s))
    undisturbed = given.run()
    memories: dict[str, dict[int, Memory]] = {}
    with deployed(given.prepared(), memories=memories) as deployment:
        rounds = iter(deployment.run)
        next(rounds)
        next(rounds)
        folder = deployment.run.folder
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]  # as after kill -9
        rounds.close()
        asked = deployment.asked
    assert folder is not None
    assert (folder / "checkpoint.pt").exists() == (not checkpoint_every_s)
    with deployed(given.prepared(), folder, memories) as deployment:
        for _ in deployment.run:
            pass
        again = deployment.asked
    require_same(undisturbed, deployment.run.history())
    assert deployment.run.history().records == undisturbed.records
    assert not set(asked) & set(again)


@pytest.mark.parametrize("stop_after", [0, 3, 5, 7, 9, 11])
def test_edges_that_are_not_equally_far_go_on_where_each_of_them_stood(tmp_path: Path, stop_after: int) -> None:
    """One edge is in its second turn when the server goes away, the other is still in its first."""
    given = job(tmp_path, num_rounds=1, workflow=rd.Hierarchical(EDGES, edge_rounds=2), clients_per_round=3)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    undisturbed, memories = given.run(), dict[str, dict[int, Memory]]()
    south_waits = {client: lambda task, answer: None for client in EDGES["south"]}
    with deployed(given.prepared(), memories=memories, answering=south_waits if stop_after < 7 else {}) as deployment:
        folder, journal = deployment.run.folder, deployment.journal
        deployment.start()
        eventually(lambda: len(journal.updates()) >= stop_after)
        deployment.kill()
    with deployed(given.prepared(), folder, memories) as deployment:
        known = len(deployment.journal.updates())
        deployment.start()
        history = deployment.finished()
        assert len(deployment.journal.tasks.all()) == 12, "somebody was asked twice"
        assert len(deployment.journal.rounds.all()) == 4
        assert len(deployment.asked) == 12 - known
    require_same(undisturbed, history)


@pytest.mark.parametrize(
    "checkpoint_at", [None, 2], ids=["from the journal alone", "from a checkpoint with tasks under way"]
)
def test_buffered_rounds_go_the_same_way_again_given_the_same_arrivals(
    tmp_path: Path, checkpoint_at: int | None
) -> None:
    given = job(tmp_path, num_rounds=4, workflow=rd.Buffered(buffer_size=2, concurrency=4), model=Plain)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    memories = dict[str, dict[int, Memory]]()
    with deployed(given.prepared(), memories=memories) as deployment:
        folder, standing = deployment.run.folder, deployment.run.standing
        rounds = iter(deployment.run)
        for finished in rounds:
            if finished.number == checkpoint_at:
                standing.checkpoint()
                deployment.checkpointed()
            if finished.number == 4:
                standing.checkpoint = lambda: None  # type: ignore[method-assign]
        first, asked = deployment.run.history(), deployment.asked
    with deployed(given.prepared(), folder, memories) as deployment:
        assert deployment.run.num_rounds_done == (checkpoint_at or 0)
        again = [finished.number for finished in deployment.run]
        assert again == list(range((checkpoint_at or 0) + 1, 5))
        assert not set(asked) & set(deployment.asked)
        require_same(first, deployment.run.history())

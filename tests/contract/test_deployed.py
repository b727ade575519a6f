"""A run on devices is the run of the simulator: same bits, same rows, whatever is interrupted, late or lost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from deployments import caught, require_same, silent
from devices import Answering, deployed, eventually
from networks import Awkward, Plain, federated, small_job
from own_workflows import fedavg

import roundelay as rd
from roundelay.deployment.journal.records import KeptTask
from roundelay.deployment.running.asking import Asking
from roundelay.deployment.running.federation import DeployedFederation
from roundelay.errors import RoundelayError
from roundelay.learner import MacroF1
from roundelay.messages import Memory, Task


def job(tmp_path: Path, **changes: object) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=0.0)
    return small_job(tracking=tracking, simulation=rd.Simulation(executor="serial"), **changes)


def served(given: rd.Job, answering: Mapping[str, Answering] = {}) -> rd.History:
    with deployed(given.prepared(), answering=answering) as deployment:
        for _ in deployment.run:
            pass
    return deployment.run.history()


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
    "readiness": {"workflow": rd.Rounds(readiness=rd.Readiness())},
    "settings by client": {"client_config": slower_at_first},
    "measures of whole sets": {"evaluation": rd.Evaluation(clients_every=1, measures=(MacroF1(num_classes=3),))},
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


TWO_TURNS: dict[str, object] = {
    # no dropout: a run that ends makes a model anew while devices of this process may still draw from torch's generator
    "model": Plain, "workflow": rd.Hierarchical(EDGES, edge_rounds=2), "clients_per_round": 3,
}  # fmt: skip


def check_edges(root: Path, stop_after: int = 5) -> None:
    """The contract: one edge is in its second turn when the server goes away, the other is still in its first; after
    the restart nobody is asked twice, and the bits are those of a run that nothing disturbed.
    """
    given = job(root, num_rounds=1, **TWO_TURNS)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    undisturbed, memories = given.run(), dict[str, dict[int, Memory]]()
    south_waits = dict.fromkeys(EDGES["south"], silent) if stop_after < 7 else {}
    with deployed(given.prepared(), memories=memories, answering=south_waits) as deployment:
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


@pytest.mark.parametrize("stop_after", [0, 3, 5, 7, 9, 11])
def test_edges_that_are_not_equally_far_go_on_where_each_of_them_stood(tmp_path: Path, stop_after: int) -> None:
    check_edges(tmp_path, stop_after)


def one_round_for_all_edges(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.deployment.running.federation.min", lambda cohort, default: "", raising=False)


def nothing_is_known_beyond_what_is_not(patch: pytest.MonkeyPatch) -> None:
    """After the first thing that was not asked before, nothing is looked for any more."""
    again, ended = Asking.again, set[int]()

    def planted(self: Asking, *args: object) -> list[Task] | None:
        found = None if id(self) in ended else again(self, *args)  # type: ignore[arg-type]
        if found is None:
            ended.add(id(self))
        return found

    patch.setattr(Asking, "again", planted)


def check_edge_behind(root: Path) -> None:
    """The contract: the same where the edge that is asked first has not begun its second turn, and the other has
    finished it: what the first asks is new, and what the other asks is not.
    """
    given = job(root, num_rounds=1, **TWO_TURNS)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    undisturbed, memories, post = given.run(), dict[str, dict[int, Memory]](), Asking.post

    def wait(kept: KeptTask, answer: bytes) -> bytes:
        eventually(lambda: len(deployment.journal.updates()) >= 6)
        return answer

    def power_fails(self: Asking, tasks: Sequence[Task], *rest: object) -> None:
        if any(task.attempt == 1 and task.client in EDGES["north"] for task in tasks):
            raise RoundelayError("no power")
        post(self, tasks, *rest)  # type: ignore[arg-type]

    north_waits = dict.fromkeys(EDGES["north"], wait)
    with deployed(given.prepared(), memories=memories, answering=north_waits) as deployment:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Asking, "post", power_fails)
            deployment.start()
            with pytest.raises(RoundelayError, match="no power"):
                deployment.finished()
        folder = deployment.run.folder
    with deployed(given.prepared(), folder, memories) as deployment:
        deployment.start()
        history = deployment.finished()
        assert len(deployment.asked) == 3, "somebody was asked twice"
    require_same(undisturbed, history)


def test_an_edge_that_is_behind_makes_nobody_be_asked_twice(tmp_path: Path) -> None:
    check_edge_behind(tmp_path)


test_the_check_of_edges_catches = caught(check_edges, {"rounds side by side are one": one_round_for_all_edges})
test_the_check_of_an_edge_behind_catches = caught(
    check_edge_behind, {"who is behind ends the search for all": nothing_is_known_beyond_what_is_not}
)


def check_buffered(root: Path, checkpoint_at: int | None = None) -> None:
    """The contract: given the same arrivals, a run goes the same way again, and asks nobody anything."""
    given = job(root, num_rounds=4, workflow=rd.Buffered(buffer_size=2, concurrency=4), model=Plain)
    given = replace(given, tracking=replace(given.tracking, checkpoint_every_s=1e9))
    memories = dict[str, dict[int, Memory]]()
    with deployed(given.prepared(), memories=memories) as deployment:
        folder, standing = deployment.run.folder, deployment.run.standing
        for finished in deployment.run:
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


@pytest.mark.parametrize("checkpoint_at", [None, 2], ids=["from the journal alone", "with tasks under way"])
def test_buffered_rounds_go_the_same_way_again(tmp_path: Path, checkpoint_at: int | None) -> None:
    check_buffered(tmp_path, checkpoint_at)


def take_in_what_has_landed(patch: pytest.MonkeyPatch) -> None:
    """Whom to ask next depends on what has landed: by chance nothing here, and everything after a restart."""
    patch.setattr(DeployedFederation, "arrived", property(lambda self: self._told.goes_on and bool(self._landed)))


def forget_what_was_told(patch: pytest.MonkeyPatch) -> None:
    async def planted(self: DeployedFederation) -> int:
        await self._calls.until(lambda: bool(self._landed))
        return self._landed.pop()

    patch.setattr(DeployedFederation, "_next_arrival", planted)


test_the_check_of_buffered_rounds_catches = caught(check_buffered, {
    "what has landed decides": take_in_what_has_landed,
    "the order of arrivals is forgotten": forget_what_was_told,
})  # fmt: skip

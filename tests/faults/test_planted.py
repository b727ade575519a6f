"""Bugs planted in the rules that faults are survived by: each rule's check must fail on each of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay import seeds
from roundelay.intake import ClientReport, Intake
from roundelay.learner import Context
from roundelay.messages import Update
from roundelay.simulation.delivery import Durations
from roundelay.simulation.executors import processes, serial
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.executors.serial import Serial
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint
from roundelay.tracking.run_folder import RunFolder, read_rows

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
Planting = Callable[[pytest.MonkeyPatch], None]

# ---- a resumed run equals one that never stopped --------------------------------------------------------------------


def timeless(rows: Sequence[rd.run.Row]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def check_resume(root: Path) -> None:
    """The contract: the same hash and the same tables, although the last rounds had to be run again."""

    def slow(client: str, task: rd.Task) -> float:
        return 1.0 + int(client[1:])

    def job(name: str) -> rd.Job:
        return small_job(
            num_rounds=5, workflow=rd.Rounds(deadline_s=4.0), simulation=replace(SERIAL, duration=slow),
            stopping=rd.Stopping(metric="loss"), tracking=rd.Tracking(str(root), name, checkpoint_every_s=0),
        )  # fmt: skip

    whole, folder = job("whole").run(), root / "cut"
    for finished in job("cut").rounds():
        if finished.number == 2:
            checkpoint = (folder / "checkpoint.pt").read_bytes()
        if finished.number == 4:
            break
    (folder / "checkpoint.pt").write_bytes(checkpoint)  # as a crash in the fourth round would have left it
    resumed = job("cut").run(resume=folder)
    assert resumed.sha256 == whole.sha256
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert timeless(read_rows(folder / "metrics.jsonl")) == timeless(whole.rows)
    assert resumed.clients() == whole.clients()


def load(change: Callable[[Checkpoint], Checkpoint]) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("roundelay.standing.load_checkpoint", lambda *args: change(load_checkpoint(*args)))

    return plant


def version(**change: Callable[..., object]) -> Planting:
    def changed(kept: Checkpoint) -> Checkpoint:
        new = {name: how(getattr(kept.version, name)) for name, how in change.items()}
        return replace(kept, version=replace(kept.version, **new))

    return load(changed)


def keep_all_rows(patch: pytest.MonkeyPatch) -> None:
    opened = RunFolder.open_tables
    patch.setattr(RunFolder, "open_tables", lambda self, keep_rounds: opened(self, keep_rounds=99))


def count_attempts_in_keys(patch: pytest.MonkeyPatch) -> None:
    """Draws keyed by a count of requests: a resumed run counts anew."""
    calls = iter(range(10**6))

    def generator(self: Context, purpose: str) -> torch.Generator:
        return seeds.generator(self.seed, next(calls), 0, self.task.client, purpose)

    patch.setattr(Context, "generator", generator)


RESUMES: dict[str, Planting] = {
    "parameters of another round": version(state=lambda state: {"params": state["params"] * 1.0001}),
    "BatchNorm's statistics forgotten": version(buffers=torch.zeros_like),
    "BatchNorm's counters forgotten": version(integers=torch.zeros_like),
    "one round too late": version(number=lambda number: number + 1),
    "one round too early": version(number=lambda number: number - 1),
    "virtual time from zero": load(lambda kept: replace(kept, virtual_ns=0)),
    "rows of lost rounds kept": keep_all_rows,
    "draws keyed by a count": count_attempts_in_keys,
}


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path) -> None:
    check_resume(tmp_path)


@pytest.mark.parametrize("plant", RESUMES.values(), ids=RESUMES)
def test_the_check_of_resume_catches(plant: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, rd.errors.RoundelayError)):
        check_resume(tmp_path)


# ---- a task that fails is run once more, then its client is lost ----------------------------------------------------


def check_retry(simulation: rd.Simulation, root: Path) -> None:
    """The contract: who fails once is admitted, who fails for ever is lost after its second try, nobody else minds."""
    root.mkdir(parents=True, exist_ok=True)

    def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        with (root / f"{task.client}-{task.round}").open("a") as tries:
            tries.write("x")
            first = tries.tell() == 1
        if task.client == "c1" or (task.client == "c2" and first):
            raise OSError("no such scan")
        return len(data), {}

    history = small_job(learner=train, clients_per_round=6, num_rounds=2, simulation=simulation).run()
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(5, 1), (5, 1)]
    tries = {client: len((root / f"{client}-2").read_text()) for client in ("c0", "c1", "c2")}
    assert tries == {"c0": 1, "c1": 2, "c2": 2}


def tries(number: int) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(serial, "TRIES", number)
        patch.setattr(processes, "TRIES", number)

    return plant


@pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
def test_a_task_that_fails_is_run_once_more(simulation: rd.Simulation, tmp_path: Path) -> None:
    check_retry(simulation, tmp_path)


@pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])
@pytest.mark.parametrize("number", [1, 3])
def test_the_check_of_retries_catches_too_few_and_too_many(
    simulation: rd.Simulation, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries(number)(monkeypatch)
    with pytest.raises(AssertionError):
        check_retry(simulation, tmp_path)


# ---- who belongs to a round, and in which order they are folded -----------------------------------------------------


def check_membership(_: Path) -> None:
    """The contract: the round is that of its members alone, whoever came first; at the goal it takes no more."""

    def pace(order: str) -> rd.Simulation:
        return replace(SERIAL, duration=lambda client, task: 1.0 + order.index(client[1:]))

    def round_of(order: str, **changes: object) -> tuple[str, int]:
        job = small_job(num_rounds=1, clients_per_round=6, simulation=pace(order), **changes)
        history = job.run()
        return history.sha256, history.rows[0]["admitted"]

    assert round_of("012345") == round_of("543210") == round_of("304152")
    four = rd.Rounds(goal=4)
    assert round_of("012345", workflow=four) == round_of("321045", workflow=four)
    assert round_of("012345", workflow=four)[1] == 4
    assert round_of("012345", workflow=four) == round_of("012345", workflow=rd.Rounds(deadline_s=4.0))


def fold_as_they_come(patch: pytest.MonkeyPatch) -> None:
    settle = Intake._settle

    def at_once(self: Intake, task_id: int, report: ClientReport) -> None:
        if task_id in self._window:
            self._fold.add(self._window.take(task_id))
        settle(self, task_id, report)

    patch.setattr(Intake, "_settle", at_once)


def never_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "closed", property(lambda self: len(self._reports) == len(self._order)))


def full_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "closed", property(lambda self: self._num_admitted >= self._goal - 1))


def windows_without_copies(patch: pytest.MonkeyPatch) -> None:
    """What waits for its turn is kept as it came: the trainer writes the next client's vectors over it."""

    def put(self: object, update: Update) -> None:
        self._updates[update.task.id] = update  # type: ignore[attr-defined]

    patch.setattr("roundelay.intake.InMemory.put", put)


def deadline_before_arrival(patch: pytest.MonkeyPatch) -> None:
    duration_ns = Durations._duration_ns
    patch.setattr(Durations, "_duration_ns", lambda self, task: duration_ns(self, task) + 1)


MEMBERSHIPS: dict[str, Planting] = {
    "folding in the order of arrival": fold_as_they_come,
    "a round that never closes": never_full,
    "a round that closes too early": full_too_early,
    "updates that share memory": windows_without_copies,
    "a deadline that shuts out its own moment": deadline_before_arrival,
}


def test_a_round_is_that_of_its_members_in_whatever_order_they_came(tmp_path: Path) -> None:
    check_membership(tmp_path)


@pytest.mark.parametrize("plant", MEMBERSHIPS.values(), ids=MEMBERSHIPS)
def test_the_check_of_membership_catches(plant: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        check_membership(tmp_path)


# ---- executors give the same bits -----------------------------------------------------------------------------------


def check_executors(_: Path) -> None:
    hashes = {small_job(simulation=one).run().sha256 for one in (SERIAL, POOL)}
    assert len(hashes) == 1


def swapped_slots(patch: pytest.MonkeyPatch) -> None:
    """The pool gives each client the vectors of the one before."""
    answer = Processes._answer
    before: list[Tensor] = []

    def mixed(self: Processes, job: processes.Job, done: processes.Done) -> object:
        right = answer(self, job, done)
        before.append(right.update.payload.vectors["params"].clone())
        payload = replace(right.update.payload, vectors={"params": before[max(0, len(before) - 2)]})
        return replace(right, update=replace(right.update, payload=payload))

    patch.setattr(Processes, "_answer", mixed)


def unseeded(patch: pytest.MonkeyPatch) -> None:
    """Dropout draws from whatever random state there is."""
    result = Serial.result

    def leaking(self: Serial, task_id: int) -> object:
        with patch.context() as inner:
            inner.setattr(seeds, "seed_globals", lambda value: None)
            return result(self, task_id)

    patch.setattr(Serial, "result", leaking)


@pytest.mark.parametrize("plant", [swapped_slots, unseeded])
def test_the_check_of_executors_catches(plant: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_executors(tmp_path)

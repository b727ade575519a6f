"""A pool begins with the longest of the tasks that are all needed, and nobody can tell by the results."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from networks import Awkward, examples, small_job

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.messages import Payload, Task
from roundelay.simulation.executors import line, processes
from roundelay.simulation.executors.line import Job
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.executors.serial import Serial
from roundelay.trainer import Answer, Trainer

SIZES = {"a": 8, "b": 6, "c": 40, "d": 6, "e": 12, "f": 6, "g": 20, "h": 10}
LONGEST = ["c", "g", "e", "h", "a", "b", "d", "f"]


def uneven() -> rd.FederatedData:
    return rd.FederatedData.from_datasets({client: examples(size, seed=size) for client, size in SIZES.items()})


class Recorded:
    """A pool of two, what all its tasks start from, and in which order they were handed out, batch by batch."""

    def __init__(self) -> None:
        self.work = small_job(data=uneven).prepared().work
        self.trainer = Trainer(self.work)
        bound = self.trainer.bound
        start = bound.params().clone()
        self.received = Payload({"params": start}, bound.buffers().clone(), bound.integers().clone())
        pool = rd.Simulation(num_workers=2).start(self.work, self.trainer, rehearse(self.work.algorithm, start, 8))
        assert isinstance(pool, Processes)
        self.pool, self.batches = pool, list[list[str]]()
        hand_out = pool._hand_out

        def recording(worker: processes._Worker, batch: Sequence[Job]) -> None:
            self.batches.append([job.task.client for job in batch])
            hand_out(worker, batch)

        pool._hand_out = recording  # type: ignore[method-assign]

    def order(self, first_id: int, *, all_needed: bool) -> list[str]:
        """Have everybody train; ask for the results in order of id, and hold each against the one it has alone."""
        self.batches.clear()
        tasks = [Task(first_id + number, client, 1) for number, client in enumerate(SIZES)]
        self.pool.submit(tasks, self.received, {}, all_needed=all_needed)
        for task in tasks:
            result, alone = self.pool.result(task.id), self.trainer.run(task, self.received, {})
            assert isinstance(result, Answer)
            assert isinstance(alone, Answer)
            assert torch.equal(result.update.payload.vectors["params"], alone.update.payload.vectors["params"])
            self.pool.release(task.id)
        assert self.pool._line._num_early == 0
        assert len(self.pool._line._slots_free) == self.pool._line._num_slots
        return [client for batch in self.batches for client in batch]


@pytest.fixture
def scene(one_thread: None) -> Iterator[Recorded]:
    scene = Recorded()
    yield scene
    scene.pool.close()


def test_the_longest_begin_first_where_all_are_needed_and_give_the_same(
    scene: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scene.order(0, all_needed=True) == LONGEST
    assert scene.order(10, all_needed=False) == sorted(SIZES)
    three = 3 * scene.pool._line._slot_bytes
    monkeypatch.setattr(line, "EARLY_BYTES", three)  # the memory of three results that wait for their turn
    assert scene.order(20, all_needed=True) == ["c", "g", "e", "a", "b", "d", "f", "h"]
    monkeypatch.setattr(line, "EARLY_BYTES", 1)  # none: but each of two workers begins with a long one
    assert scene.order(30, all_needed=True) == ["c", "g", "a", "b", "d", "e", "f", "h"]


def test_a_batch_of_long_tasks_holds_fewer_of_them(scene: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of late had 7 examples and took half a millisecond: a batch has room for 4 of them."""
    monkeypatch.setattr(scene.pool, "_feed", lambda: None)
    queue = scene.pool._line
    queue.task_s, queue._task_size = 0.0005, 7.0
    tasks = [Task(number, client, 1) for number, client in enumerate(SIZES)]
    scene.pool.submit(tasks, scene.received, {}, all_needed=True)
    batches = [[job.task.client for job in queue.next_batch(4)] for _ in range(4)]
    assert batches == [["c"], ["g"], ["e", "h"], ["a", "b", "d", "f"]]


@pytest.mark.parametrize(
    ("workflow", "needed"),
    [(rd.Rounds(), True), (rd.Rounds(goal=2), False), (rd.Rounds(deadline_s=5.0), False)],
    ids=["everybody", "a goal", "a deadline"],
)
def test_only_rounds_that_wait_for_everybody_need_all(
    workflow: rd.Rounds, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest is the one that a goal or a deadline would do without."""
    told, submit = [], Serial.submit

    def recording(self: Serial, tasks: Sequence[Task], *given: object, all_needed: bool = False) -> None:
        told.append((tasks[0].kind, all_needed))
        submit(self, tasks, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Serial, "submit", recording)
    small_job(model=Awkward, num_rounds=1, workflow=workflow, evaluation=rd.Evaluation(clients_every=1)).run()
    assert told == [("train", needed), ("evaluate", True)]


def test_an_uneven_cohort_ends_in_the_same_bits_with_early_results_in_memory_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = small_job(data=uneven, clients_per_round=8)
    alone = job.run().sha256
    assert job.run(rd.Simulation(num_workers=2)).sha256 == alone
    monkeypatch.setattr(line, "EARLY_BYTES", 1)
    assert job.run(rd.Simulation(num_workers=3)).sha256 == alone

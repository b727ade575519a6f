"""A pool's bookkeeping: results asked for in any order, tasks cancelled at any moment, memory that is given back."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.messages import Payload, Task
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.settings import Simulation
from roundelay.trainer import Answer, Evaluated, Trainer, one_thread


class Scene:
    """One pool, the model that all tasks start from, and every task's answer as one trainer gives it by itself."""

    def __init__(self) -> None:
        self.work = small_job().prepared().work
        self.trainer = Trainer(self.work)
        start = self.trainer.bound.params().clone()
        self.received = Payload({"params": start}, self.trainer.bound.buffers().clone(),
                                self.trainer.bound.integers().clone())  # fmt: skip
        simulation = rd.Simulation(num_workers=2)
        pool = simulation.start(self.work, self.trainer, rehearse(self.work.algorithm, start, 6))
        assert isinstance(pool, Processes)
        self.pool, self.next = pool, 0

    def tasks(self, count: int, kind: str = "train") -> list[Task]:
        self.next += count
        clients = self.work.data.clients
        return [Task(i, clients[i % 6], 1 + i % 3, i % 2, kind) for i in range(self.next - count, self.next)]

    def submit(self, tasks: Sequence[Task]) -> None:
        self.pool.submit(tasks, self.received, {})

    def check(self, task: Task) -> None:
        """The contract: this task's result is the one that it has by itself."""
        result, alone = self.pool.result(task.id), self.trainer.run(task, self.received, {})
        assert result.task == task if isinstance(result, Evaluated) else result.update.task == task
        if isinstance(alone, Answer):
            assert torch.equal(result.update.payload.vectors["params"], alone.update.payload.vectors["params"])
            assert result.update.metrics == alone.update.metrics
        else:
            assert result == alone
        self.pool.release(task.id)

    def idle(self) -> bool:
        """Let the workers finish what was cancelled while they were at it; then tell whether nothing is held."""
        while any(worker.batches for worker in self.pool._workers):
            self.pool._pump(None)
        line = self.pool._line
        return not self.pool._jobs and not line and len(line._slots_free) == line._num_slots


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with one_thread():
        made = Scene()
        yield made
        made.pool.close()


@pytest.mark.parametrize("order", ["submitted", "reversed", "shuffled"])
def test_results_can_be_asked_for_in_any_order(scene: Scene, order: str) -> None:
    tasks = scene.tasks(40)
    scene.submit(tasks)
    asked = {"submitted": tasks, "reversed": tasks[::-1], "shuffled": random.Random(3).sample(tasks, 40)}[order]
    for task in asked:
        scene.check(task)
    assert scene.idle()


def test_evaluations_and_training_of_several_rounds_can_be_in_line_together(scene: Scene) -> None:
    batches = [scene.tasks(12, kind) for kind in ("train", "evaluate", "train")]
    for tasks in batches:
        scene.submit(tasks)
    for task in [task for tasks in batches[::-1] for task in tasks]:
        scene.check(task)
    assert scene.idle()


@pytest.mark.parametrize("num_asked", [0, 1, 7, 30])
def test_what_is_cancelled_is_given_back_and_harms_nothing_that_follows(scene: Scene, num_asked: int) -> None:
    tasks = scene.tasks(30)
    scene.submit(tasks)
    mixed = random.Random(num_asked).sample(tasks, 30)
    for task in mixed[:num_asked]:
        scene.check(task)
    scene.pool.cancel([task.id for task in mixed[num_asked:]])
    following = scene.tasks(30)
    scene.submit(following)
    for task in following[::-1]:
        scene.check(task)
    assert scene.idle()


def test_cancelling_twice_or_what_is_done_is_harmless(scene: Scene) -> None:
    first, *others = scene.tasks(6)
    scene.submit([first, *others])
    scene.check(first)
    scene.pool.cancel([first.id, *(task.id for task in others)])
    scene.pool.cancel([task.id for task in others])
    (last,) = scene.tasks(1)
    scene.submit([last])
    scene.check(last)
    assert scene.idle()


def test_memory_does_not_grow_with_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether clients are admitted, late, lost or refused: what the pool holds is not a matter of rounds."""
    pools: list[Processes] = []
    start = Simulation.start

    def kept(*args: object) -> object:
        pools.append(start(*args))
        return pools[-1]

    def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
        if task.client == "c1":
            raise ValueError("never")
        return (-1.0 if task.client == "c2" else len(data)), {}

    def slow(client: str, task: rd.Task) -> float:
        return 2.0 if client == "c3" else 1.0

    monkeypatch.setattr(Simulation, "start", kept)
    job = small_job(
        learner=train, clients_per_round=6, num_rounds=30, workflow=rd.Rounds(deadline_s=1.5),
        simulation=rd.Simulation(num_workers=2, duration=slow),
    )  # fmt: skip
    sizes = []
    for finished in job.rounds():
        counts = [finished.row[status] for status in ("admitted", "lost", "refused", "late")]
        assert counts == [3, 1, 1, 1]
        sizes.append((pools[0]._arena._end, len(pools[0]._jobs)))
    assert max(held for _, held in sizes) < 10  # late ones, while they are in work: how many is a matter of real time
    assert sizes[-1][0] < 2 * sizes[9][0]

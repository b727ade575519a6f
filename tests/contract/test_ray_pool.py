"""The bookkeeping of a pool on Ray: results in any order, a bounded number of them, tasks that are cancelled."""

import random
from collections.abc import Iterator
from pathlib import Path

import clusters
import pytest
import torch
from clusters import fails_for_c1
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.messages import Lost, Payload, Task
from roundelay.simulation.executors.ray import HELD, RayPool
from roundelay.trainer import Answer, Trainer, one_thread

pytestmark = pytest.mark.slow


class Scene:
    """One pool, and every task's answer as one trainer gives it by itself. Tasks leave a file when they begin."""

    def __init__(self, folder: Path) -> None:
        def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
            (folder / str(task.id)).touch()
            return fails_for_c1(model, data, task)

        self.begun, self.next = folder, 0
        work = small_job(learner=train).prepared().work
        self.clients, self.trainer = work.data.clients, Trainer(work)
        start = self.trainer.bound.params().clone()
        bound = self.trainer.bound
        self.received = Payload({"params": start}, bound.buffers().clone(), bound.integers().clone())
        pool = rd.Simulation("ray", num_workers=2).start(work, self.trainer, rehearse(work.algorithm, start, 6))
        assert isinstance(pool, RayPool)
        self.pool = pool

    def tasks(self, count: int, *clients: str) -> list[Task]:
        self.next += count
        among = clients or [client for client in self.clients if client != "c1"]
        return [Task(i, among[i % len(among)], 1 + i % 3) for i in range(self.next - count, self.next)]

    def check(self, task: Task) -> None:
        """The contract: this task's result is the one that it has by itself."""
        result, alone = self.pool.result(task.id), self.trainer.run(task, self.received, {})
        assert isinstance(result, Answer)
        assert result.update.task == task
        mine, its = alone.update.payload, result.update.payload
        assert torch.equal(mine.vectors["params"], its.vectors["params"])
        assert torch.equal(mine.buffers, its.buffers)
        assert result.update.metrics == alone.update.metrics
        self.pool.release(task.id)

    def wait(self) -> int:
        """Let the workers finish what they have; return how many tasks have begun so far."""
        while any(worker.sent for worker in self.pool._workers):
            self.pool._pump()
        return len(list(self.begun.iterdir()))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with clusters.quiet_ray():
        made = Scene(tmp_path_factory.mktemp("begun"))
        with one_thread():
            yield made
            made.pool.close()


def check_pressure(scene: Scene) -> None:
    before, tasks = scene.wait(), scene.tasks(30)
    scene.pool.submit(tasks, scene.received, {})
    assert scene.wait() - before == 2 * HELD  # nobody has asked for anything, and no more has begun
    for task in tasks[::-1]:  # each is asked for while the room is taken by others
        scene.check(task)
    assert (scene.pool._num_held, len(scene.pool._jobs)) == (0, 0)


def test_no_more_tasks_begin_than_are_taken_back(scene: Scene) -> None:
    check_pressure(scene)


def test_the_test_of_what_begins_catches_a_pool_without_a_bound(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.simulation.executors.ray.HELD", 1000)
    with pytest.raises(AssertionError):
        check_pressure(scene)
    scene.pool.cancel(list(scene.pool._jobs))


@pytest.mark.parametrize("num_asked", [0, 7, 30])
def test_what_is_cancelled_is_given_back_and_harms_nothing_that_follows(scene: Scene, num_asked: int) -> None:
    tasks = scene.tasks(30)
    scene.pool.submit(tasks, scene.received, {})
    mixed = random.Random(num_asked).sample(tasks, 30)
    for task in mixed[:num_asked]:
        scene.check(task)
    scene.pool.cancel([task.id for task in mixed[num_asked:]])
    following = scene.tasks(30)
    scene.pool.submit(following, scene.received, {})
    for task in following[::-1]:
        scene.check(task)
    scene.wait()
    assert (scene.pool._num_held, len(scene.pool._jobs), len(scene.pool._line)) == (0, 0, 0)


def test_a_client_whose_code_raises_is_lost_with_its_traceback(scene: Scene) -> None:
    (task,) = scene.tasks(1, "c1")
    scene.pool.submit([task], scene.received, {})
    result = scene.pool.result(task.id)
    assert isinstance(result, Lost)
    assert result.reason == "client 'c1' failed 2 times: ValueError: no such file: scans/17.png"
    assert "in fails_for_c1" in result.traceback
    scene.pool.release(task.id)

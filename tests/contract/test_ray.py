"""A Ray cluster ends in the bits of one process, holds a bounded number of results, and is left as it was found."""

import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clusters
import pytest
import torch
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.errors import ConfigError, MissingExtra
from roundelay.messages import Lost, Payload, Task
from roundelay.simulation.executors.cluster import join
from roundelay.simulation.executors.ray import HELD, RayPool
from roundelay.trainer import Answer, Trainer

ON_RAY = rd.Simulation("ray", num_workers=2)


def fails_for_c1(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
    """One plain step; of client c1, an error."""
    if task.client == "c1":
        raise ValueError("no such file: scans/17.png")
    inputs, targets = next(data.batches(torch.arange(len(data)), len(data)))
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return float(len(data)), {"loss": float(loss)}


def test_a_run_on_ray_ends_in_the_bits_of_one_process_and_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = {"learner": fails_for_c1, "clients_per_round": 6, "evaluation": rd.Evaluation(clients_every=1)}
    alone = small_job(**job).run()
    with clusters.quiet_ray() as folder:
        history = small_job(**job, simulation=ON_RAY).run()
        assert not clusters.processes_of(folder), "Ray outlived the run that started it"
    assert history.sha256 == alone.sha256
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in h.rows] for h in (alone, history)]
    assert timeless[0] == timeless[1]
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(5, 1)] * 3
    assert "in fails_for_c1" in caplog.text  # the remote traceback


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[ray\]"):
        small_job(simulation=ON_RAY).run()


def test_an_address_where_no_cluster_answers_is_named_at_once() -> None:
    with socket.create_server((clusters.IP, 0)) as taken:
        free = f"{clusters.IP}:{taken.getsockname()[1]}"
    with clusters.quiet_ray():
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {free}.*refused"):
            small_job(simulation=rd.Simulation("ray", address=free)).run()
        with pytest.raises(ConfigError, match="no Ray runs on this machine: begin one with"):
            small_job(simulation=rd.Simulation("ray", address="auto")).run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"executor": "ray", "address": "ray://head:10001"}, 'expected "auto", "local", or "host:port"'),
     ({"executor": "processes", "address": "auto"}, 'set it to "ray", or leave address out'),
     ({"executor": "ray", "devices": {"cuda:0": 1}}, "trains on the CPUs of a cluster")],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rd.Simulation(**settings)


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
        pool = ON_RAY.start(work, self.trainer, rehearse(work.algorithm, start, 6))
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
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield made
        made.pool.close()
        torch.set_num_threads(threads)


def check_pressure(scene: Scene) -> None:
    before, tasks = scene.wait(), scene.tasks(30)
    scene.pool.submit(tasks, scene.received, {})
    assert scene.wait() - before == 2 * HELD  # nobody has asked for anything, and no more has begun
    for task in tasks[::-1]:  # each is asked for while the room is taken by others
        scene.check(task)
    assert (scene.pool._num_held, len(scene.pool._jobs)) == (0, 0)


@pytest.mark.slow
def test_no_more_tasks_begin_than_are_taken_back(scene: Scene) -> None:
    check_pressure(scene)


@pytest.mark.slow
def test_the_test_of_what_begins_catches_a_pool_without_a_bound(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.simulation.executors.ray.HELD", 1000)
    with pytest.raises(AssertionError):
        check_pressure(scene)
    scene.pool.cancel(list(scene.pool._jobs))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_client_whose_code_raises_is_lost_with_its_traceback(scene: Scene) -> None:
    (task,) = scene.tasks(1, "c1")
    scene.pool.submit([task], scene.received, {})
    result = scene.pool.result(task.id)
    assert isinstance(result, Lost)
    assert result.reason == "client 'c1' failed 2 times: ValueError: no such file: scans/17.png"
    assert "in fails_for_c1" in result.traceback
    scene.pool.release(task.id)


@pytest.mark.slow
def test_memories_travel_with_the_tasks_and_a_run_may_change_its_executor(tmp_path: Path) -> None:
    job = {"algorithm": rd.Scaffold(), "num_rounds": 4, "clients_per_round": 6}
    alone = small_job(**job).run()
    kept = rd.Tracking(root=str(tmp_path), name="run", checkpoint_every_s=0)
    with clusters.quiet_ray():
        for finished in small_job(**job, simulation=ON_RAY, tracking=kept).rounds():
            if finished.number == 2:
                break
        resumed = small_job(**job, simulation=ON_RAY, tracking=kept).run(resume=tmp_path / "run")
    assert resumed.sha256 == alone.sha256
    assert [row["round"] for row in resumed.rows] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_cluster_is_left_running_and_a_process_that_has_joined_one_stays_in_it() -> None:
    import ray

    alone = small_job().run().sha256
    with clusters.cluster([2]) as address:
        for where in (address, "auto"):
            assert small_job(simulation=rd.Simulation("ray", address=where)).run().sha256 == alone
            assert not ray.is_initialized()
        assert join(ray, None, address)
        assert small_job(simulation=ON_RAY).run().sha256 == alone
        assert ray.is_initialized()
        with pytest.raises(ConfigError, match=f"has joined the Ray cluster at {address}"):
            small_job(simulation=rd.Simulation("ray", address="127.0.0.9:6379")).run()
        ray.shutdown()


JOB = """
model = "job_parts:Model"
data = "job_parts:federated"
num_rounds = 2
clients_per_round = 3
[learner]
batch_size = 4
[tracking]
root = "runs"
"""
PARTS = """
from networks import Awkward, federated
class Model(Awkward):
    pass
"""


@pytest.mark.slow
def test_the_command_takes_a_cluster_and_modules_beside_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "job_parts.py").write_text(f"import sys\nsys.path.append({str(Path(__file__).parents[1])!r})\n" + PARTS)

    def hash_of(*arguments: str) -> str:
        command = [sys.executable, "-c", "from roundelay.cli import main; main()", "run", str(tmp_path / "job.toml")]
        shown = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return next(line for line in shown.stdout.splitlines() if line.startswith("sha256: "))

    with clusters.cluster([1]) as address:
        shas = {hash_of("--executor", "serial"), hash_of("--executor", "ray", "--address", "auto"),
                hash_of("--executor", "ray", "--address", address)}  # fmt: skip
    assert len(shas) == 1

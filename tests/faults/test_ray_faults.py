"""Nodes, workers and servers of a Ray cluster that die: no client is lost for it, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import clusters
import psutil
import pytest
from clusters import fails_for_c1
from networks import small_job
from torch import nn

import roundelay as rd

pytestmark = pytest.mark.slow

Train = Callable[[nn.Module, rd.data.Examples, rd.Task], tuple[float, dict[str, float]]]
JOB = {"num_rounds": 3, "clients_per_round": 6}


def plain(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
    return fails_for_c1(model, data, rd.Task(task.id, "c0", task.round))


def until_exists(file: Path) -> None:
    """Wait for what another process does."""
    for _ in range(2000):
        if file.exists():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{file} did not come")


def write_atomically(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name} of {text}")
    beside.write_text(text)
    beside.replace(file)


def cuts_power(head: str, cut: Path, how: Callable[[], None]) -> Train:
    """Training that ends the node it runs on, unless that is the head. There it waits until that has happened, and the
    task that was lost then fails once by its own fault.
    """

    def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
        import ray

        if ray.get_runtime_context().get_node_id() != head:
            write_atomically(cut, task.client)
            how()
            threading.Event().wait(60)  # until this process is found by the death of its node
        until_exists(cut)
        raised = cut.with_name("raised")
        if task.client == cut.read_text() and not raised.exists():
            raised.touch()
            raise ValueError("a fault of its own")
        return plain(model, data, task)

    return train


def check_lost_node(cut: Path, how: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    import ray

    alone = small_job(learner=plain, **JOB).run()
    with clusters.cluster([1, 2]) as address:
        ray.init(address, configure_logging=False)
        head = ray.get_runtime_context().get_node_id()
        history = small_job(learner=cuts_power(head, cut, how), simulation=rd.Simulation("ray"), **JOB).run()
        assert sum(node["Alive"] for node in ray.nodes()) == 1
        ray.shutdown()
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(6, 0)] * 3
    assert "a worker was lost with" in caplog.text
    assert cut.with_name("raised").exists()
    assert history.sha256 == alone.sha256


@pytest.mark.parametrize("how", [clusters.cut_power, clusters.end_the_raylet])
def test_a_node_that_is_lost_in_mid_round_costs_no_client(
    how: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_lost_node(tmp_path / "cut", how, caplog)


def test_the_test_of_lost_nodes_catches_a_task_that_is_not_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.simulation.executors.ray.MOVES", 1)
    with pytest.raises(AssertionError):
        check_lost_node(tmp_path / "cut", clusters.cut_power, caplog)
    import ray

    ray.shutdown()


def test_a_worker_that_dies_costs_its_task_a_try_and_nobody_else_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
        tries = tmp_path / f"{task.client} {task.round}"
        tries.write_text(tries.read_text() + "." if tries.exists() else ".")
        if task.client == "c4" or (task.client == "c2" and len(tries.read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(model, data, task)

    with clusters.quiet_ray():
        history = small_job(learner=train, simulation=rd.Simulation("ray", num_workers=2), num_rounds=1,
                            clients_per_round=6).run()  # fmt: skip
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(5, 1)]
    assert {file.name: len(file.read_text()) for file in tmp_path.iterdir()} == {
        "c0 1": 1, "c1 1": 1, "c2 1": 2, "c3 1": 1, "c4 1": 2, "c5 1": 1,
    }  # fmt: skip
    assert "client 'c4' failed 2 times" in caplog.text


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
sys.path.insert(0, {tests!r})
import roundelay as rd
from networks import small_job
for round in small_job(num_rounds=100000, simulation=rd.Simulation("ray", num_workers=1)).rounds():
    print("round", round.number, flush=True)
"""


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_from_outside_leaves_no_process_of_the_ray_that_it_started(by: signal.Signals) -> None:
    with clusters.quiet_ray() as folder:
        pipe = subprocess.PIPE
        code = RUN.format(tests=str(Path(__file__).parents[1]))
        with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert any(line.strip() == "round 10" for line in process.stdout), process.stderr.read()
            assert len(clusters.processes_of(folder)) > 3
            process.send_signal(by)
            process.communicate(timeout=60)
        assert not psutil.wait_procs(clusters.processes_of(folder), timeout=30)[1]

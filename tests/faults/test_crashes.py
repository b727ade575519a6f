"""Processes that die: workers, the server, the user's own code. Nothing is lost, nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.errors import ClientFailed
from roundelay.simulation.executors.processes import Processes

JOB = textwrap.dedent(
    """
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    sys.path.insert(0, {tests!r})
    import roundelay as rd
    from networks import small_job
    job = small_job(num_rounds=40, clients_per_round=3, evaluation=rd.Evaluation(every=1),
                    simulation=rd.Simulation(executor={executor!r}, num_workers=2),
                    tracking=rd.Tracking(root={root!r}, name="run", checkpoint_every_s=0))
    """
)
LOOP = """
for round in job.rounds():
    print(round.number, flush=True)
    if round.number == 10:
        sys.stdin.readline()
"""


def script(root: Path, executor: str) -> str:
    return JOB.format(tests=str(Path(__file__).parents[1]), root=str(root), executor=executor)


def start(code: str) -> "subprocess.Popen[str]":
    """Start a run, and wait until its tenth round is done."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code + LOOP], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "10":
            return process
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_run_that_was_killed_resumes_to_the_same_sha256_and_the_same_table(executor: str, tmp_path: Path) -> None:
    before = shared_names()
    process = start(script(tmp_path, executor))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert gone(children), "worker processes outlived the server"
    assert shared_names() <= before, "shared memory outlived the server"
    settings = {"num_rounds": 40, "clients_per_round": 3}
    undisturbed = small_job(**settings).run()
    resumed = small_job(**settings, tracking=rd.Tracking(root=str(tmp_path))).run(resume=tmp_path / "run")
    assert resumed.sha256 == undisturbed.sha256
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.rows]
    assert timeless == [{k: v for k, v in row.items() if k != "seconds"} for row in undisturbed.rows]
    assert [row["round"] for row in resumed.rows] == list(range(1, 41))


def shared_names() -> set[str]:
    """The names of shared memory segments and semaphores as torch and multiprocessing choose them."""
    folder = Path("/dev/shm")
    names = os.listdir(folder) if folder.exists() else []
    return {name for name in names if name.startswith(("torch_", "psm_", "sem.mp-", "mp-"))}


def test_ctrl_c_ends_the_run_and_leaves_no_process_behind(tmp_path: Path) -> None:
    before = shared_names()
    process = start(script(tmp_path, "processes"))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert gone(children)
    assert shared_names() <= before
    assert (tmp_path / "run" / "checkpoint.pt").exists()


class KilledOnce(nn.Module):
    """A network whose first training step of one process kills it; the file remembers that it happened."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker, self.linear = marker, nn.Linear(7, 3)

    def forward(self, x: object) -> object:
        if self.training and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x)


def test_a_killed_worker_is_replaced_and_its_task_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = tmp_path / "killed"
    pool = rd.Simulation(num_workers=2)
    disturbed = small_job(model=lambda: KilledOnce(str(marker)), simulation=pool).run()
    assert marker.exists()
    assert "a worker process died" in caplog.text
    assert all(row["admitted"] == 4 for row in disturbed.rows)
    assert disturbed.sha256 == small_job(model=lambda: KilledOnce(str(marker)), simulation=pool).run().sha256


def test_the_test_of_killed_workers_catches_a_task_that_is_not_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roundelay.simulation.executors.processes.TRIES", 1)
    with pytest.raises(AssertionError):
        test_a_killed_worker_is_replaced_and_its_task_run_again(tmp_path, caplog)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_client_whose_code_raises_is_lost_by_name_and_the_round_goes_on(
    executor: str, caplog: pytest.LogCaptureFixture
) -> None:
    def train(model: nn.Module, data: object, task: object) -> tuple[int, dict[str, float]]:
        if task.client == "c1":
            raise ValueError("no such file: scans/17.png")
        return len(data), {"loss": 1.0}

    history = small_job(
        learner=train, clients_per_round=6, num_rounds=2, simulation=rd.Simulation(executor=executor, num_workers=2)
    ).run()
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(5, 1), (5, 1)]
    assert "c1" in caplog.text
    assert "scans/17.png" in caplog.text
    assert "in train" in caplog.text  # the remote traceback


def test_code_that_fails_for_everybody_ends_the_run_with_its_traceback() -> None:
    def train(model: nn.Module, data: object, task: object) -> tuple[int, dict[str, float]]:
        raise ValueError("always")

    with pytest.raises(ClientFailed, match=r"the last 4 clients all failed.*'c\d'[\s\S]*ValueError: always"):
        small_job(learner=train).run()


def test_leaving_the_loop_stops_the_run_and_its_workers() -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    for finished in small_job(num_rounds=50, simulation=rd.Simulation(num_workers=2)).rounds():
        if finished.number == 2:
            break
    # the forkserver and the resource tracker stay with this process; what they forked must be gone
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not [p for p in left if p.ppid() != os.getpid() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_test_of_leaving_catches_workers_that_are_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pools, close = [], Processes.close
    monkeypatch.setattr(Processes, "close", lambda self: pools.append(self))
    with pytest.raises(AssertionError):
        test_leaving_the_loop_stops_the_run_and_its_workers()
    for pool in pools:
        close(pool)

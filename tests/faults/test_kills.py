"""kill -9 at any moment of the training: ``roundelay resume`` ends in the same bits, with every round once."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roundelay import config
from roundelay.cli import app
from roundelay.history import History
from roundelay.report.runs import read_run
from roundelay.tracking.run_folder import read_rows

JOB = """
num_rounds = 12
clients_per_round = 3
seed = 7
model = "networks:Awkward"
data = "networks:federated"
[learner]
lr = 0.1
batch_size = 4
[simulation]
executor = "{executor}"
num_workers = 2
[evaluation]
clients_every = 4
"""

RUN = """
import itertools, os, signal, sys, threading
from roundelay import cli
from roundelay.tracking import run_folder

left = int(sys.argv.pop(1))

def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

# a clock that advances by three seconds a round: the default interval checkpoints every fourth
run_folder.real_s = map(float, itertools.count(0, 3)).__next__
threading.setprofile(count)
cli.main()
"""


def counted(job: Path, root: Path) -> tuple[History, int]:
    """Run the job in this process; count the calls and returns of its private thread, whose moments these are."""
    moments = 0

    def count(*_: object) -> None:
        nonlocal moments
        moments += 1

    threading.setprofile(count)
    try:
        return config.load(job, [f"tracking.root={root}", "tracking.name=whole"]).run(), moments
    finally:
        threading.setprofile(None)


def killed_at(moment: int, job: Path, root: Path) -> Path:
    """Run the job in a process that kills itself; return the folder that is left."""
    arguments = [str(moment), "run", str(job), "--set", f"tracking.root={root}", "--set", f"tracking.name=at-{moment}"]
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return root / f"at-{moment}"


def timeless(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def check_moments(executor: str, seed: int, count: int, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = root / "job.toml"
    job.write_text(JOB.format(executor=executor))
    whole, moments = counted(job, root)
    draw = random.Random(seed)
    for share in [draw.uniform(0.02, 0.9) for _ in range(count)]:
        folder = killed_at(int(share * moments), job, root)
        assert read_run(folder).state["state"] == "running"
        app(["resume", str(folder)], standalone_mode=False)
        (sha256,) = re.findall(r"sha256: ([0-9a-f]{64})", capsys.readouterr().out)
        assert sha256 == whole.sha256
        assert timeless(read_rows(folder / "metrics.jsonl")) == timeless(list(whole.rows))
        assert read_rows(folder / "clients.jsonl") == whole.clients()


def test_a_run_killed_at_a_random_moment_resumes_to_the_same_sha256(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_moments("serial", 1, 1, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_runs_killed_at_random_moments_resume_to_the_same_sha256(
    executor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_moments(executor, 2, 3, tmp_path, capsys)

"""What a script costs beside its training: per task, and for a whole job from the command line.

    python benchmarks/scripts.py

A task's time is that from the server's asking to its folding, one client at a time. The whole job is a process of its
own, importing torch included.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import nn

import roundelay as rd

IDLE = Path(__file__).parent / "idle_client.py"
WARMUP = 5
TASK_MS, JOB_S = 3.0, 6.0


def task_ms(model: type[nn.Module], executor: str, rounds: int) -> float:
    """Return the median milliseconds a task, of two clients that take turns."""
    job = rd.Job(model=model, script=IDLE, num_rounds=WARMUP + rounds, tracking=None)
    environment = rd.Simulation(num_clients=2, executor=executor, max_concurrent=1)
    rows = job.run(environment).rows
    return statistics.median(row["seconds"] for row in rows[WARMUP:]) / 2 * 1000


class Large(nn.Module):
    """25 million parameters, 100 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5000, 5000, bias=False)


def job_s() -> float:
    """Return the seconds of a two-client, two-round job from the command line, start to end."""
    command = [
        str(Path(sys.executable).parent / "roundelay"), "run", "--script", str(IDLE), "--clients", "2", "--rounds", "2",
        "--model", "lenet",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - began


def main() -> None:
    describe_machine()
    table = Table("what", "measured", "bar")
    for name, model, rounds, bar in (("62 k parameters", rd.models.LeNet, 60, f"{TASK_MS} ms"), ("25 M", Large, 8, "")):
        for executor in ("processes", "threads"):
            table.add_row(f"a task, {name}, {executor}", f"{task_ms(model, executor, rounds):.2f} ms", bar)
    seconds = [job_s() for _ in range(3)]
    table.add_row("2 clients, 2 rounds, from the command line", f"{statistics.median(seconds):.2f} s", f"{JOB_S} s")
    Console().print(table)


if __name__ == "__main__":
    main()

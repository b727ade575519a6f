"""What a client costs on Ray beyond what it costs in the pool of processes: milliseconds a client, in one run.

    python benchmarks/ray_overhead.py [NAME] [--repeats N] [--rounds N]

Every measurement is a fresh process with workers of its own, as many in both; for Ray it starts a Ray of this machine.
The two take turns, so that a noisy minute hits both. The overhead is the difference of the medians over all timed
rounds, divided by the cohort; beside it stands processor time, of the server, the workers and whatever Ray runs beside
them, which a busy machine disturbs less.
"""

import json
import statistics
import subprocess
import sys
import time
from typing import Annotated, Any

import psutil
import ray
import typer
from bars import Bar, tell
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from simulation import WARMUP, job
from workloads import WORKLOADS, Workload

BAR_MS = 5.0
EXECUTORS = ("processes", "ray")


def processor_s() -> float:
    """Return the processor seconds of this process and all that it started and that still lives."""
    server = psutil.Process()
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(found.user + found.system for found in times)


def measure(workload: Workload, rounds: int, executor: str) -> dict[str, Any]:
    """Return every timed round's seconds, their processor seconds, and the seconds to the end of the first round."""
    began, seconds, first, before = time.perf_counter(), [], 0.0, 0.0
    for finished in job(workload, WARMUP + rounds, executor=executor).rounds():
        first = first or time.perf_counter() - began
        seconds.append(finished.row["seconds"])
        if finished.number == WARMUP:
            before = processor_s()
        if finished.number == WARMUP + rounds:
            after = processor_s()
    return {"seconds": seconds[WARMUP:], "first_round_s": first, "processor_s": after - before}


def in_new_process(executor: str, name: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--rounds", str(rounds), "--one", executor]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{shown.stderr}")
    return dict(json.loads(shown.stdout.splitlines()[-1]))


def main(
    name: Annotated[str, typer.Argument(help="The workload.")] = "small",
    repeats: Annotated[int, typer.Option(help="How often the two take turns.")] = 3,
    rounds: Annotated[int, typer.Option(help="How many timed rounds; the workload's own when left out.")] = 0,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the table."""
    workload = WORKLOADS[name]
    rounds = rounds or workload.rounds
    if one:
        print(json.dumps(measure(workload, rounds, one)))
        return
    describe_machine()
    print(f"ray {ray.__version__}")
    runs: dict[str, list[dict[str, Any]]] = {executor: [] for executor in EXECUTORS}
    for _ in range(repeats):
        for executor, came in runs.items():
            came.append(in_new_process(executor, name, rounds))
    table = Table("executor", "s/round", "ms/client", "processor ms/client", "start-up s")
    each = {}
    for executor, came in runs.items():
        a_round = statistics.median(s for run in came for s in run["seconds"])
        start = statistics.median(run["first_round_s"] for run in came) - a_round
        used = statistics.median(run["processor_s"] for run in came) / rounds
        each[executor] = [seconds / workload.cohort * 1e3 for seconds in (a_round, used)]
        table.add_row(executor, f"{a_round:.4f}", *(f"{ms:.3f}" for ms in each[executor]), f"{start:.1f}")
    Console().print(table)
    wall, used = (on_ray - pool for on_ray, pool in zip(each["ray"], each["processes"], strict=True))
    print(f"{name}: {used:.2f} ms a client more of processor time than in the pool, over all cores")
    tell([Bar(f"ray: overhead a client, {name}", wall, BAR_MS, "ms", "at most", "processes")])


if __name__ == "__main__":
    typer.run(main)

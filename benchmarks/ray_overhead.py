"""What a client costs on Ray beyond what it costs in the pool of processes: milliseconds a client, in one run.

    python benchmarks/ray_overhead.py [NAME] [--repeats N] [--rounds N]

Every measurement is a fresh process with workers of its own, as many in both; for Ray it starts a Ray of this machine.
The two take turns, so that a noisy minute hits both. The overhead is the difference of the medians over all timed
rounds, divided by the cohort.
"""

import json
import statistics
import subprocess
import sys
from typing import Annotated, Any

import ray
import typer
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from simulation import measure_roundelay
from workloads import WORKLOADS

BAR_MS = 5.0
EXECUTORS = ("processes", "ray")


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
        print(json.dumps(measure_roundelay(workload, rounds, one)))
        return
    describe_machine()
    print(f"ray {ray.__version__}")
    runs: dict[str, list[dict[str, Any]]] = {executor: [] for executor in EXECUTORS}
    for _ in range(repeats):
        for executor, came in runs.items():
            came.append(in_new_process(executor, name, rounds))
    table = Table("executor", "s/round", "ms/client", "start-up s")
    medians = {}
    for executor, came in runs.items():
        medians[executor] = statistics.median(s for run in came for s in run["seconds"])
        start = statistics.median(run["build_s"] + run["first_round_s"] for run in came) - medians[executor]
        each = medians[executor] / workload.cohort * 1e3
        table.add_row(executor, f"{medians[executor]:.4f}", f"{each:.3f}", f"{start:.1f}")
    Console().print(table)
    overhead = (medians["ray"] - medians["processes"]) / workload.cohort * 1e3
    print(f"{name}: {overhead:.2f} ms a client more on Ray than in the pool (bar: at most {BAR_MS:g} ms)")


if __name__ == "__main__":
    typer.run(main)

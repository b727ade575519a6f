"""Rounds per second of the simulator beside the floor of ``floor.py``, in one run; and what the server's memory does.

    python benchmarks/simulation.py compare [NAMES] [--repeats N] [--no-memory]

Every measurement is a fresh process. Floor and roundelay take turns, so that a noisy minute hits both; the ratio is
that of the medians over all timed rounds: 1.00 means as fast as the hand-written loop.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import psutil
import torch
import typer
from bars import Bar, tell
from floor import run_floor
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from workloads import LEARNING_RATE, SEED, WORKLOADS, Workload

import roundelay as rd

WARMUP = 2
BARS: dict[tuple[str, str], float] = {
    ("small", "processes"): 1.0, ("cnn", "processes"): 1.0, ("silo", "processes"): 1.0, ("big", "processes"): 0.95,
    ("tiny", "vectorized"): 10.0, ("tiny", "processes"): 0.7, ("gru", "vectorized"): 1.5, ("gru", "processes"): 0.95,
}  # fmt: skip
"""What is measured, workload and executor, and the ratio to the floor that is aimed at."""

MS_A_CLIENT = 0.05
"""What a client of `tiny` may cost at most, trained side by side on two cores."""

app = typer.Typer(add_completion=False)


def federated(workload: Workload) -> rd.FederatedData:
    inputs, targets = workload.make_data()
    owners = torch.arange(workload.num_clients).repeat_interleave(workload.examples_per_client)
    ids = [f"{client:04d}" for client in range(workload.num_clients)]
    split = rd.Split.from_owners(ids, owners)
    return rd.FederatedData.from_split(rd.Data(rd.data.TensorExamples(inputs, targets)), split)


def job(workload: Workload, rounds: int, cohort: int | None = None, executor: str = "processes") -> rd.Job:
    return rd.Job(
        model=workload.make_model,
        data=partial(federated, workload),
        learner=rd.LocalSGD(lr=LEARNING_RATE, batch_size=workload.batch_size, local_epochs=1),
        num_rounds=rounds,
        clients_per_round=cohort or workload.cohort,
        seed=SEED,
        evaluation=rd.Evaluation(every=0),
        simulation=rd.Simulation(executor),
        tracking=None,
    )


def measure_roundelay(workload: Workload, rounds: int, executor: str = "processes") -> dict[str, Any]:
    began = time.perf_counter()
    run = job(workload, WARMUP + rounds, executor=executor).start()
    built = time.perf_counter()
    seconds, first = [], 0.0
    for finished in run:
        first = first or time.perf_counter() - built
        seconds.append(finished.row["seconds"])
    return {
        "seconds": seconds[WARMUP:],
        "build_s": built - began,
        "first_round_s": first,
        "server_rss": psutil.Process().memory_info().rss,
    }


def measure_floor(workload: Workload, rounds: int) -> dict[str, Any]:
    floor = run_floor(workload, rounds, WARMUP)
    return {"seconds": floor.seconds_per_round, "server_rss": floor.server_rss_bytes}


def measure_growth(workload: Workload, rounds: int) -> dict[str, Any]:
    """Follow the server's resident memory over many rounds; the slope counts from round 50 on."""
    sizes = [psutil.Process().memory_info().rss for _ in job(workload, rounds).rounds()]
    late = sizes[50:]
    return {"kib_per_round": (late[-1] - late[0]) / 1024 / max(1, len(late) - 1)}


def measure_peak(workload: Workload, cohort: int) -> dict[str, Any]:
    """Return the server's peak memory beyond what it had before the first round."""
    run = job(workload, 3, cohort).start()
    before, peak = psutil.Process().memory_info().rss, 0
    for _ in run:
        peak = max(peak, psutil.Process().memory_info().rss)
    return {"beyond_start_mib": (peak - before) / 2**20}


def in_new_process(*arguments: str) -> dict[str, Any]:
    shown = subprocess.run([sys.executable, __file__, "one", *arguments], capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{shown.stderr}")
    return dict(json.loads(shown.stdout.splitlines()[-1]))


def promised(name: str, executor: str, floor: float, ours: float) -> Iterator[Bar]:
    """Yield what is promised of a workload in an executor; ``floor`` and ``ours`` are seconds a round."""
    if (name, executor) in BARS:
        yield Bar(f"{name}, {executor}: rounds a second", floor / ours, BARS[name, executor], "x the floor",
                  floor=f"{floor:.4f} s a round")  # fmt: skip
    if (name, executor) == ("tiny", "vectorized"):
        yield Bar("tiny, vectorized: a client", ours / WORKLOADS[name].cohort * 1e3, MS_A_CLIENT, "ms", "at most")


@app.command(hidden=True)
def one(what: str, name: str, amount: int) -> None:
    measures = {"processes": measure_roundelay, "vectorized": partial(measure_roundelay, executor="vectorized"),
                "floor": measure_floor, "growth": measure_growth, "peak": measure_peak}  # fmt: skip
    print(json.dumps(measures[what](WORKLOADS[name], amount)))


@app.command("compare")
def compare(
    names: Annotated[list[str] | None, typer.Argument(help="Workloads; all when left out.")] = None,
    repeats: Annotated[int, typer.Option(help="How often floor and roundelay take turns.")] = 3,
    memory: Annotated[bool, typer.Option(help="Also follow the server's memory.")] = True,
    executor: Annotated[str | None, typer.Option(help="Only this one: processes or vectorized.")] = None,
) -> None:
    """Print the table."""
    describe_machine()
    table = Table("workload", "executor", "clients a round", "floor s/round", "roundelay s/round", "ms/client", "ratio",
                  "bar", "start-up s", "server MiB")  # fmt: skip
    told: list[Bar] = []
    for name in names or list(WORKLOADS):
        workload = WORKLOADS[name]
        executors = [executor] if executor else [one for of, one in BARS if of == name]
        results: dict[str, list[dict[str, Any]]] = {what: [] for what in ("floor", *executors)}
        for _ in range(repeats):
            for what, runs in results.items():
                runs.append(in_new_process(what, name, str(workload.rounds)))
        seconds = {what: statistics.median(s for r in runs for s in r["seconds"]) for what, runs in results.items()}
        for one in executors:
            floor, ours, runs = seconds["floor"], seconds[one], results[one]
            start = statistics.median(r["build_s"] + r["first_round_s"] for r in runs) - ours
            rss = max(r["server_rss"] for r in runs) / 2**20
            bar = f"{BARS[name, one]:.2f}" if (name, one) in BARS else ""
            limit = f" ({MS_A_CLIENT})" if (name, one) == ("tiny", "vectorized") else ""
            table.add_row(name, one, str(workload.cohort), f"{floor:.4f}", f"{ours:.4f}",
                          f"{ours / workload.cohort * 1e3:.3f}{limit}", f"{floor / ours:.2f}", bar, f"{start:.1f}",
                          f"{rss:.0f}")  # fmt: skip
            told += promised(name, one, floor, ours)
    Console(width=150).print(table)
    tell(told)
    if memory:
        peaks = {cohort: in_new_process("peak", "small", str(cohort))["beyond_start_mib"] for cohort in (10, 100, 1000)}
        print("server memory beyond start, `small`: " + ", ".join(f"cohort {c}: {m:.1f} MiB" for c, m in peaks.items()))
        growth = in_new_process("growth", "tiny", "350")["kib_per_round"]
        print(f"server memory growth after round 50, `tiny`, 300 rounds: {growth:.1f} KiB a round")


if __name__ == "__main__":
    app()

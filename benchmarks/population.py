"""What a registered client costs that is not asked: jobs of a thousand clients beside the same ones of a million.

    python benchmarks/population.py compare [NAMES] [--repeats N] [--rounds N] [--few N] [--many N]

A round asks 100 clients, whose data a function makes; nothing else is different but how many there are. Every
measurement is a fresh process, and the two populations take turns, so that a noisy minute hits both. A round's time is
the median of all timed rounds; its CPU time is that of the server and its workers together. Memory is the peak of the
server's resident set and of the largest worker's.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import torch
import typer
from bars import Bar, tell
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import roundelay as rd

COHORT, WARMUP, ROUNDS = 100, 3, 50
FEATURES, EXAMPLES, BATCH = 32, 40, 10
BAR_SHARE, BAR_S, BAR_MIB = 0.10, 1e-3, 50
app = typer.Typer(add_completion=False)


def make(client: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(int(client))
    inputs = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return inputs, (inputs[:, :10].argmax(1) + int(client)) % 10


def size(client: str) -> int:
    return EXAMPLES


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 10))


def job(num_clients: int, executor: str) -> rd.Job:
    return rd.Job(
        model=model,
        data=rd.FederatedData.from_function(num_clients, make, sizes=size),
        learner=rd.LocalSGD(lr=0.1, batch_size=BATCH),
        num_rounds=WARMUP + ROUNDS,
        clients_per_round=COHORT,
        evaluation=rd.Evaluation(every=0),
        simulation=rd.Simulation(executor, num_workers=2 if executor == "processes" else None),
        tracking=None,
    )


def remembering(num_clients: int) -> rd.Job:
    plain = job(num_clients, "serial")
    return replace(plain, algorithm=rd.algorithms.Scaffold(), simulation=rd.Simulation("serial", memory="disk"))


def tracked(num_clients: int) -> rd.Job:
    """A checkpoint after every round."""
    folder = TemporaryDirectory()
    kept = rd.Tracking(folder.name, "run", checkpoint_every_s=0)
    HELD.append(folder)
    return replace(remembering(num_clients), tracking=kept)


def buffered(num_clients: int) -> rd.Job:
    pace = rd.Simulation("serial", duration=lambda client, task: 1 + int(client) % 7)
    return replace(job(num_clients, "serial"), workflow=rd.Buffered(buffer_size=COHORT), simulation=pace)


def networked(num_clients: int) -> rd.Job:
    """Links, devices, and clients of whom two thirds are there: it is over 100,000 that they are met one by one."""
    network = rd.Network(
        cell=rd.network.Links(uplink_bps=1e6, downlink_bps=1e7),
        computing=rd.network.Cycles(cycles_per_sample=(1e6, 1e7)),
        availability=rd.network.OnOff(mean_on_s=600, mean_off_s=300),
    )
    return replace(job(num_clients, "serial"), simulation=rd.Simulation("serial", network=network))


HELD: list[TemporaryDirectory[str]] = []
JOBS: dict[str, Callable[[int], rd.Job]] = {
    "serial": lambda n: job(n, "serial"),
    "processes": lambda n: job(n, "processes"),
    "vectorized": lambda n: job(n, "vectorized"),
    "buffered": buffered,
    "scaffold on disk": remembering,
    "scaffold, checkpoints": tracked,
    "network": networked,
}


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of all that it started and that live."""
    times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def measure(name: str, num_clients: int, rounds: int) -> dict[str, Any]:
    process, began = psutil.Process(), time.perf_counter()
    run = replace(JOBS[name](num_clients), num_rounds=WARMUP + rounds).start()
    seconds, first_s, worker, cpu = [], 0.0, 0, 0.0
    for finished in run:
        seconds.append(finished.row["seconds"])
        first_s = first_s or time.perf_counter() - began
        worker = max([worker, *(child.memory_info().rss for child in process.children(recursive=True))])
        if finished.number == WARMUP:
            cpu = cpu_s(process)
        if finished.number == WARMUP + rounds:
            cpu = cpu_s(process) - cpu
    return {
        "seconds": seconds[WARMUP:],
        "cpu_s": cpu / rounds,
        "start_s": first_s,
        "server_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_mib": worker / 2**20,
    }


@app.command(hidden=True)
def one(name: str, num_clients: int, rounds: int) -> None:
    print(json.dumps(measure(name, num_clients, rounds)))


def in_new_process(name: str, num_clients: int, rounds: int) -> dict[str, Any]:
    asked = [sys.executable, str(Path(__file__)), "one", name, str(num_clients), str(rounds)]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SystemExit(f"{name} of {num_clients} clients failed:\n{shown.stderr}")
    return dict(json.loads(shown.stdout.splitlines()[-1]))


@app.command("compare")
def compare(
    names: Annotated[list[str] | None, typer.Argument(help="Jobs; all when left out.")] = None,
    repeats: Annotated[int, typer.Option(help="How often the two populations take turns.")] = 3,
    rounds: Annotated[int, typer.Option(help="Timed rounds of each measurement.")] = ROUNDS,
    few: Annotated[int, typer.Option(help="Clients of the one population.")] = 1000,
    many: Annotated[int, typer.Option(help="Clients of the other.")] = 1_000_000,
) -> None:
    """Print the table."""
    describe_machine()
    table = Table("job", "clients", "s/round", "CPU s/round", "first round done, s", "server MiB", "worker MiB",
                  "within the bars")  # fmt: skip
    bars = list[Bar]()
    for name in names or list(JOBS):
        runs: dict[int, list[dict[str, Any]]] = {few: [], many: []}
        for _ in range(repeats):
            for num_clients, measured in runs.items():
                measured.append(in_new_process(name, num_clients, rounds))
        round_s = {n: statistics.median(s for run in runs[n] for s in run["seconds"]) for n in runs}
        told = {n: {key: statistics.median(run[key] for run in runs[n]) for key in
                    ("cpu_s", "start_s", "server_mib", "worker_mib")} for n in runs}  # fmt: skip
        later_s = round_s[many] - round_s[few]
        more = max(told[many][key] - told[few][key] for key in ("server_mib", "worker_mib"))
        limit_s, beside = max(BAR_SHARE * round_s[few], BAR_S), f"{few:,} clients"
        told_bars = (
            Bar(f"population: {name}, a round", later_s * 1e3, limit_s * 1e3, "ms more", "at most", beside),
            Bar(f"population: {name}, memory", more, BAR_MIB, "MiB more", "at most", beside),
        )
        bars += told_bars
        fits = [bar.reached for bar in told_bars]
        for n, row in told.items():
            verdict = "" if n == few else f"{later_s * 1e3:+.2f} ms {'yes' if fits[0] else 'NO'}, " \
                                          f"{more:+.0f} MiB {'yes' if fits[1] else 'NO'}"  # fmt: skip
            table.add_row(name, f"{n:,}", f"{round_s[n]:.4f}", f"{row['cpu_s']:.4f}", f"{row['start_s']:.2f}",
                          f"{row['server_mib']:.0f}", f"{row['worker_mib']:.0f}", verdict)  # fmt: skip
    Console(width=140).print(table)
    tell(bars)


if __name__ == "__main__":
    app()

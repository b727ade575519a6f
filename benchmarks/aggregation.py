"""How near the server's aggregation comes to the memory's bandwidth: 32 updates of 25 million float32 values.

    python benchmarks/aggregation.py [--values 25000000] [--clients 32] [--repeats 3]

The floor is ``a += w * b`` by torch on vectors of that length: it reads a and b and writes a, 12 bytes a value. It is
measured with one torch thread and with two, and the bars stand beside the faster. Floor and aggregation take turns.

* The mean is ``Fold.add``, on one thread, as a job folds. The first update is copied (8 bytes a value), each further
  one is read beside the mean, which is read and written (12).
* The geometric median is the rule with 8 iterations. What counts for each is one reading of every update, 4 bytes a
  value and client: no less will do, since the new centre's block and the distances to it can share one. What the rule
  itself reads is less, two readings in all; its rate by that count is in the table, without a bar.

Beside the bars: what the guard adds, which reads every update once more, and what laying the updates side by side
costs, as a rule needs them.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import torch
import typer
from bars import Bar, tell
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

import roundelay as rd
from roundelay.aggregators import Updates
from roundelay.fold import Fold
from roundelay.gather import Gathered
from roundelay.guard import Expected, Guard
from roundelay.messages import Payload, Task, Update

ITERATIONS = 8
MEAN_SHARE, MEDIAN_SHARE = 0.6, 0.4
NONE, NO_INTEGERS = torch.zeros(0), torch.zeros(0, dtype=torch.int64)


@dataclass
class Rates:
    """GB/s of each thing that was measured, once a turn, and its seconds of processor time."""

    of: dict[str, list[float]] = field(default_factory=dict)
    core_s: dict[str, float] = field(default_factory=dict)

    def measure(self, name: str, num_bytes: float, work: Callable[[], object]) -> None:
        began, core = time.perf_counter(), time.process_time()
        work()
        took = time.perf_counter() - began
        self.core_s[name] = time.process_time() - core
        self.of.setdefault(name, []).append(num_bytes / took / 1e9)

    def __getitem__(self, name: str) -> float:
        return statistics.median(self.of[name])


FLOORS = {1: "a += w * b, 1 thread", 2: "a += w * b, 2 threads"}
MEAN, GUARDED, GATHERED = "mean", "mean, with the guard", "laid side by side"
MEDIAN, MEDIAN_READ = f"geometric median, {ITERATIONS} iterations", "the same, by what it reads"


def floor(rates: Rates, a: Tensor, points: Tensor, threads: int) -> None:
    """Measure ``a += w * b`` for every update in turn, as the fold meets them."""

    def add() -> None:
        for b in points:
            a.add_(b, alpha=0.5)

    torch.set_num_threads(threads)
    rates.measure(FLOORS[threads], 12.0 * points.numel(), add)
    torch.set_num_threads(1)


def turn(rates: Rates, a: Tensor, points: Tensor) -> None:
    """Measure everything once. ``points`` (n, D) are the updates."""
    n, length = points.shape
    tasks = [Task(i, f"{i:02d}", 1) for i in range(n)]
    answers = [
        Update(task, Payload({"params": row}, NONE, NO_INTEGERS), num_examples=10.0 + task.id)
        for task, row in zip(tasks, points, strict=True)
    ]
    expected = Expected({"params": length}, 0, 0, torch.float32)

    def fold(guarded: bool) -> None:
        folded = Fold({"params": "examples"})
        for answer in answers:
            refusal = Guard().check(answer, answer.task, expected, answered=False) if guarded else None
            assert refusal is None, refusal
            folded.add(answer)
        folded.totals()

    mean_bytes = (12.0 * (n - 1) + 8) * length
    for threads in FLOORS:
        floor(rates, a, points, threads)
    rates.measure(MEAN, mean_bytes, partial(fold, guarded=False))
    rates.measure(GUARDED, mean_bytes + 4.0 * n * length, partial(fold, guarded=True))
    median = rd.GeometricMedian(iterations=ITERATIONS)
    updates = Updates(points, a, torch.zeros(1).expand(length), [task.client for task in tasks], [1.0] * n)
    rates.measure(MEDIAN, 4.0 * ITERATIONS * n * length, lambda: median(updates))
    rates.of.setdefault(MEDIAN_READ, []).append(rates.of[MEDIAN][-1] * 2 / ITERATIONS)
    few = min(n, 4)
    sent = Payload({"params": a}, NONE, NO_INTEGERS)
    gathered = Gathered.begin(median, {"params": "one"}, {"params": length}, sent, None, few, 1, 1, 0)
    rates.measure(GATHERED, 8.0 * few * length, lambda: [gathered.add(answer) for answer in answers[:few]])


def main(
    values: Annotated[int, typer.Option(help="Values an update has.")] = 25_000_000,
    clients: Annotated[int, typer.Option(help="Updates of a round, each held in memory.")] = 32,
    repeats: Annotated[int, typer.Option(help="How often floor and aggregation take turns.")] = 3,
) -> None:
    """Print the table and the bars."""
    describe_machine()
    print(f"{clients} updates of {values:,} float32 values; load {os.getloadavg()[0]:.1f}; medians of {repeats} turns")
    torch.set_num_threads(1)
    points = torch.empty(clients, values)
    generator = torch.Generator().manual_seed(1)
    for row in points:
        row.normal_(std=0.01, generator=generator)
    a, rates = torch.zeros(values), Rates()
    for _ in range(repeats):
        turn(rates, a.zero_(), points)
    fastest = max(FLOORS.values(), key=lambda name: rates[name])
    table = Table("what", "GB/s", "of the faster floor", "core s")
    for name in rates.of:
        core = f"{rates.core_s[name]:.2f}" if name in rates.core_s else ""
        table.add_row(name, f"{rates[name]:.1f}", f"{rates[name] / rates[fastest]:.2f}", core)
    Console(width=120).print(table)
    tell([
        Bar(f"aggregation: {MEAN}", rates[MEAN] / rates[fastest], MEAN_SHARE, "of the bandwidth", floor=fastest),
        Bar(f"aggregation: {MEDIAN}", rates[MEDIAN] / rates[fastest], MEDIAN_SHARE, "of the bandwidth", floor=fastest),
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)

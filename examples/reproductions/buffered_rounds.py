"""FedBuff against synchronous rounds where computing takes half-normal times, on real digits.

    python examples/reproductions/buffered_rounds.py

J. Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022. 50 clients of 200 compute
at any time, |N(0, 1)| seconds a task; nothing else takes time. "30 % beyond" are synchronous rounds that ask 65 clients
and close at the first 50. Each way has the server learning rate of its grid with which it is fastest in the mean.
Beside it stands how many updates a second there should be: so many of a round, over the mean of the order statistic
that ends it; or the concurrency over the mean of a task, sqrt(2 / pi).
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist, fmean

from rich.console import Console
from rich.table import Table

import roundelay as rd
from roundelay import seeds

AT_ONCE, BEYOND, BUFFER = 50, 0.3, 10


@dataclass(frozen=True)
class Way:
    """``per_step`` updates make a step of the server; looked at are steps of ten updates or more."""

    workflow: rd.Rounds | rd.Buffered
    server_lrs: tuple[float, ...]
    per_step: int
    num_steps: int
    updates_per_s: float


def ordered(kth: int, of: int) -> float:
    """Return the mean of the ``kth`` smallest of so many |N(0, 1)|: the integral of P[fewer than k are below t]."""
    total, dt = 0.0, 0.005
    for t in (dt * (i + 0.5) for i in range(1200)):
        below = math.erf(t / math.sqrt(2))
        total += dt * sum(math.comb(of, i) * below**i * (1 - below) ** (of - i) for i in range(kth))
    return total


WAYS = {
    "synchronous": Way(rd.Rounds(), (1, 2, 3, 4), AT_ONCE, 100, AT_ONCE / ordered(AT_ONCE, AT_ONCE)),
    "30 % beyond": Way(
        rd.Rounds(over_selection=BEYOND), (1, 2, 3, 4), AT_ONCE, 100,
        AT_ONCE / ordered(AT_ONCE, round(AT_ONCE * (1 + BEYOND))),
    ),
    "FedBuff, K=10": Way(
        rd.Buffered(buffer_size=BUFFER), (1, 2, 3, 4), BUFFER, 500, AT_ONCE * math.sqrt(math.pi / 2)
    ),
    "FedAsync": Way(rd.Buffered(buffer_size=1), (0.4, 0.8, 1.2, 1.6), 1, 5000, AT_ONCE * math.sqrt(math.pi / 2)),
}  # fmt: skip


def half_normal(seed: int, client: str, task: rd.Task) -> float:
    return abs(NormalDist().inv_cdf(seeds.uniform(seed, task.round, task.attempt, client, "computing")))


def job(way: Way, server_lr: float, target: float, seed: int) -> rd.Job:
    return rd.Job(
        model=partial(rd.models.MLP, 784, [64], 10),
        data=rd.data.digits,
        partition=rd.Dirichlet(num_clients=200, alpha=0.3, min_examples=2),
        algorithm=rd.FedAvg(server_lr=server_lr),
        learner=rd.LocalSGD(lr=0.05, batch_size=10),
        workflow=way.workflow,
        num_rounds=way.num_steps,
        clients_per_round=AT_ONCE,
        seed=seed,
        evaluation=rd.Evaluation(every=max(1, BUFFER // way.per_step)),
        stopping=rd.Stopping(target=target),
        simulation=rd.Simulation(executor="serial", duration=partial(half_normal, seed)),
        tracking=None,
    )


def measured(way: Way, server_lr: float, target: float, seed: int) -> Mapping[str, float]:
    """Return how long it took, in simulated seconds (infinitely, where it did not come so far), and what it took."""
    rows = job(way, server_lr, target, seed).run().rows
    reached = rows[-1].get("accuracy", 0) >= target
    return {
        "seconds": rows[-1]["virtual_s"] if reached else math.inf,
        "updates": sum(row["admitted"] for row in rows),
        "updates/s": sum(row["admitted"] for row in rows) / rows[-1]["virtual_s"],
        "staleness": fmean(row.get("staleness", 0.0) for row in rows),
    }


def best(way: Way, server_lrs: tuple[float, ...], target: float, num_seeds: int) -> tuple[float, Mapping[str, float]]:
    """Return the server learning rate that is fastest in the mean over seeds, and what was measured with it."""
    found: dict[float, dict[str, float]] = {}
    for server_lr in server_lrs:
        runs = [measured(way, server_lr, target, seed) for seed in range(1, num_seeds + 1)]
        found[server_lr] = {name: fmean(run[name] for run in runs) for name in runs[0]}
        found[server_lr]["least"] = min(run["seconds"] for run in runs)
        found[server_lr]["most"] = max(run["seconds"] for run in runs)
    fastest = min(found, key=lambda server_lr: found[server_lr]["seconds"])
    return fastest, found[fastest]


def compared(quick: bool) -> Table:
    target, num_seeds = (0.85, 1) if quick else (0.88, 3)
    table = Table(
        f"to {100 * target:.0f} %", "server lr", "time, s", "least, most", "speed-up", "updates", "staleness",
        "updates/s", "closed form",
    )  # fmt: skip
    first = math.nan
    for name, way in WAYS.items():
        server_lr, found = best(way, way.server_lrs[1:2] if quick else way.server_lrs, target, num_seeds)
        first = found["seconds"] if math.isnan(first) else first
        table.add_row(
            name, f"{server_lr:g}", f"{found['seconds']:.1f}", f"{found['least']:.1f}, {found['most']:.1f}",
            f"{first / found['seconds']:.2f}", f"{found['updates']:.0f}", f"{found['staleness']:.2f}",
            f"{found['updates/s']:.1f}", f"{way.updates_per_s:.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one learning rate, one seed, a lower accuracy")
    Console(width=120).print(compared(parser.parse_args().quick))


if __name__ == "__main__":
    main()

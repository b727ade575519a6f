"""Rounds to a target accuracy where every client holds one digit: SCAFFOLD, FedAvg, FedProx. docs/scaffold.md tells.

    python benchmarks/skew.py [--epochs 1,5,10] [--model logistic|mlp] [--rates 0.003,0.01,0.03,0.1]
                              [--clients-per-round 4] [--seeds 0,1,2]

Every algorithm has the best of the same learning rates (and FedProx the best mu beside), chosen by its mean over the
seeds; a run that does not get there counts as the largest number of rounds.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated

import typer
from machine import describe_machine
from torch import nn

import roundelay as rd
from roundelay.data.images import digits

NUM_CLIENTS, MAX_ROUNDS = 20, 200
ALGORITHMS: Mapping[str, Sequence[rd.Algorithm]] = {
    "SCAFFOLD": (rd.Scaffold(),),
    "FedAvg": (rd.FedAvg(),),
    "FedProx": (rd.FedProx(mu=0.1), rd.FedProx(mu=1.0)),
}
MODELS: Mapping[str, tuple[Callable[[], nn.Module], float]] = {
    "logistic": (partial(rd.models.Logistic, 784, 10), 0.85),
    "mlp": (partial(rd.models.MLP, 784, [100], 10), 0.85),
}
app = typer.Typer(add_completion=False)


def rounds_to_target(model: str, algorithm: rd.Algorithm, lr: float, epochs: int, cohort: int, seed: int) -> int:
    make, target = MODELS[model]
    job = rd.Job(
        model=make,
        data=digits,
        partition=rd.Shards(num_clients=NUM_CLIENTS, shards_per_client=1),
        learner=rd.LocalSGD(lr=lr, batch_size=40, local_epochs=epochs),
        algorithm=algorithm,
        num_rounds=MAX_ROUNDS,
        clients_per_round=cohort,
        stopping=rd.Stopping(target=target),
        seed=seed,
        simulation=rd.Simulation(executor="serial"),
        tracking=None,
    )
    rows = job.run().rows
    return len(rows) if rows[-1]["accuracy"] >= target else MAX_ROUNDS + 1


@app.command()
def compare(
    epochs: str = "1,5,10",
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "logistic",
    rates: Annotated[str, typer.Option(help="Learning rates to choose from.")] = "0.003,0.01,0.03,0.1",
    clients_per_round: int = 4,
    seeds: str = "0,1,2",
) -> None:
    """Print the table."""
    describe_machine()
    began = time.perf_counter()
    print(f"rounds to {MODELS[model][1]:.0%}, {clients_per_round} of {NUM_CLIENTS} clients a round, {model}\n")
    print("| local epochs | algorithm | best setting | rounds, by seed | mean | to FedAvg |")
    print("|---|---|---|---|---|---|")
    for length in [int(part) for part in epochs.split(",")]:
        best = {}
        for name, variants in ALGORITHMS.items():
            tried = {}
            for algorithm in variants:
                for lr in map(float, rates.split(",")):
                    mu = f", mu {algorithm.mu:g}" if isinstance(algorithm, rd.FedProx) else ""
                    tried[f"lr {lr:g}{mu}"] = [
                        rounds_to_target(model, algorithm, lr, length, clients_per_round, int(seed))
                        for seed in seeds.split(",")
                    ]
            best[name] = min(tried.items(), key=lambda item: sum(item[1]))
        plain = statistics.mean(best["FedAvg"][1])
        for name, (setting, rounds) in best.items():
            shown = ", ".join(str(n) if n <= MAX_ROUNDS else f"> {MAX_ROUNDS}" for n in rounds)
            mean = statistics.mean(rounds)
            print(f"| {length} | {name} | {setting} | {shown} | {mean:.0f} | {mean / plain:.2f} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s, {len(os.sched_getaffinity(0))} cores in sight, one in use")


if __name__ == "__main__":
    app()

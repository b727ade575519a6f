"""A round of clients of unequal size on two workers: the longest first, or in the order in which they are asked for.

    python benchmarks/uneven.py [--turns N] [--clients N]

LeNet, batches of 10; sizes are drawn from exponential distributions, and each order takes its turn with each. Beside
the time of a round stands what it would be if a client took as long as it has examples: the longer of two workers' sums
over half of all. 1.00 means that nobody waits for anybody.
"""

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from machine import describe_machine
from workloads import LEARNING_RATE, WORKLOADS

import roundelay as rd
from roundelay.algorithms.protocol import rehearse
from roundelay.messages import Payload, Task
from roundelay.simulation.executors.processes import Processes
from roundelay.trainer import Trainer

MEAN_SIZE, WORKERS = 60, 2
app = typer.Typer(add_completion=False)


def planned(sizes: list[int]) -> float:
    """Return the end of the last task over an even share, where whoever is free takes the next."""
    ends = [0] * WORKERS
    for size in sizes:
        ends[ends.index(min(ends))] += size
    return max(ends) / (sum(sizes) / WORKERS)


def measure(seed: int, clients: int) -> dict[bool, tuple[float, float]]:
    """Return for either order seconds, medians of three rounds each in turns, and what was planned."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.empty(clients).exponential_(1 / MEAN_SIZE, generator=generator).long() + 10).tolist()
    sizes = {f"{number:02d}": size for number, size in enumerate(drawn)}
    workload = WORKLOADS["small"]
    parts = {client: (torch.randn(size, *workload.input_shape), torch.randint(10, (size,))) for client, size in
             sizes.items()}  # fmt: skip
    job = rd.Job(model=workload.make_model, data=rd.FederatedData.from_datasets(parts), num_rounds=1, tracking=None,
                 learner=rd.LocalSGD(lr=LEARNING_RATE, batch_size=workload.batch_size))  # fmt: skip
    work = job.prepared().work
    trainer = Trainer(work)
    start = trainer.bound.params().clone()
    received = Payload({"params": start}, trainer.bound.buffers(), trainer.bound.integers())
    pool = rd.Simulation(num_workers=WORKERS).start(work, trainer, rehearse(work.algorithm, start, clients))
    assert isinstance(pool, Processes)
    took: dict[bool, list[Any]] = {True: [], False: []}
    for turn in range(8):
        all_needed = turn % 2 == 0
        tasks = [Task(turn * clients + number, client, 1) for number, client in enumerate(sizes)]
        began = time.perf_counter()
        pool.submit(tasks, received, {}, all_needed=all_needed)
        for task in tasks:
            pool.result(task.id)
            pool.release(task.id)
        took[all_needed].append(time.perf_counter() - began)
    pool.close()
    orders = {True: sorted(drawn, reverse=True), False: drawn}
    return {order: (statistics.median(seconds[1:]), planned(orders[order])) for order, seconds in took.items()}


@app.command()
def compare(
    turns: Annotated[int, typer.Option(help="How many draws of sizes.")] = 5,
    clients: Annotated[int, typer.Option(help="How many clients a round.")] = 8,
) -> None:
    """Print the table."""
    describe_machine()
    found = [measure(seed, clients) for seed in range(turns)]
    print("| order | s a round | planned, to an even share | the worst draw |\n|---|---|---|---|")
    for order, name in ((False, "as asked for"), (True, "the longest first")):
        seconds, plans = zip(*(one[order] for one in found), strict=True)
        print(f"| {name} | {statistics.mean(seconds):.3f} | {statistics.mean(plans):.3f} | {max(plans):.3f} |")
    ratio = statistics.median(one[False][0] / one[True][0] for one in found)
    print(f"\nas asked for, to the longest first: {ratio:.2f} (median of the draws' ratios)")


if __name__ == "__main__":
    app()

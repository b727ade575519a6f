"""What a modelled network adds to a simulation: ten rounds in which 10,000 UEs of one cell receive, compute and send,
with a fading block each second. Nothing is trained: who sends how much is known at once.

    python benchmarks/network.py [num_ues]

Everything but training takes part: the virtual clock, the radio, the cell, devices, and the ledger with its hash.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table

import roundelay as rd
from roundelay.data import TensorExamples
from roundelay.messages import Task
from roundelay.simulation.air import Air
from roundelay.simulation.delivery import Sent
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.network.reach import Reach
from roundelay.simulation.population import Population
from roundelay.simulation.workload import Workload
from roundelay.trainer import Work

NUM_UES, ROUNDS, BITS, AIM_S = 10_000, 10, 2_000_000, 30
NETWORK = rd.Network(
    cell=rd.network.Radio(
        placement=rd.network.Disc(radius_m=250.0), rate=rd.network.Shannon(),
        fading=rd.network.Rayleigh(coherence_time_s=1.0),
    ),
    computing=rd.network.Cycles(cycles_per_sample=(1e7, 3e7), frequency_hz=(1e9, 2e9)),
    patience_s=1e6,
)  # fmt: skip


class Everybody:
    """Sends what a codec might have made of an update."""

    def computed(self, task: Task) -> Sent:
        return Sent(BITS + task.id % 1000)

    def lost(self, task: Task, reason: str) -> None:
        raise AssertionError(reason)


def rounds(network: rd.Network, num_ues: int) -> tuple[float, float, list[dict[str, object]], float]:
    """Return CPU seconds, those of setting up, the ledger's rows, and simulated seconds."""
    clients = [f"ue-{number:05d}" for number in range(num_ues)]
    loop, began = VirtualLoop(), time.process_time()
    workload = Workload(_work(clients))
    population = Population(network, [Reach.of(network, 1, clients)], workload, 1.0, lambda duration: duration)
    air = Air(loop, network, population, [], BITS)
    air.attend(Everybody())
    ready = time.process_time()
    rows: list[dict[str, object]] = []

    async def run() -> None:
        for number in range(1, ROUNDS + 1):
            left, over = num_ues, loop.create_future()

            def landed(task_ids: Sequence[int], over=over) -> None:
                nonlocal left
                left -= len(task_ids)
                if not left:
                    over.set_result(None)

            tasks = [Task(number * num_ues + n, client, number) for n, client in enumerate(clients)]
            air.dispatch(tasks, BITS, landed)
            await over
            air.end([task.id for task in tasks])
            rows.extend(air.traced(number).ledger)

    loop.run_until_complete(run())
    loop.close()
    return time.process_time() - ready, ready - began, rows, loop.time()


def _work(clients: Sequence[str]) -> Work:
    one = TensorExamples(torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64))
    job = rd.Job(model=_linear,
                 data=rd.FederatedData.from_datasets(dict.fromkeys(clients, one)),
                 learner=rd.LocalSGD(lr=0.1), num_rounds=1, clients_per_round=1, seed=1, tracking=None)  # fmt: skip
    return job.prepared().work


def _linear() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def main(num_ues: int) -> None:
    torch.set_num_threads(1)
    describe_machine()
    print(f"{num_ues:,} UEs, {ROUNDS} rounds of {BITS / 1e6:g} Mbit each, blocks of 1 s; aim: {AIM_S} s on one core")
    table = Table("discipline", "CPU s", "set up, s", "simulated s", "rows", "us a row")
    for sharing in (rd.network.EqualShare(), rd.network.Fifo(), rd.network.ResourceBlocks(num_blocks=106)):
        real, setting_up, rows, simulated = rounds(replace(NETWORK, sharing=sharing), num_ues)
        table.add_row(type(sharing).__name__, f"{real:.1f}", f"{setting_up:.1f}", f"{simulated:,.0f}", f"{len(rows):,}",
                      f"{1e6 * real / len(rows):.0f}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_UES)

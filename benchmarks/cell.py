"""What the network of 10,000 UEs in one cell costs to simulate: ten rounds of uploads, with a fading block each second.

    python benchmarks/cell.py [num_ues]

Shannon rates of a power-limited uplink over Rayleigh fading, drawn for everybody once a block; nothing is trained. An
event is the end of an upload or of a block: at each, everybody who is on the air gets a new rate. Beside it, in the
same run, what that arithmetic takes without a cell around it: the rates alone, as often and for as many.
"""

import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from roundelay.simulation.network.cell import Cell, EqualShare, Fifo, ResourceBlocks, Sharing
from roundelay.simulation.network.cell.rates import NS, Band, Direction, Floats, Ints

NUM_UES, ROUNDS, BITS, BANDWIDTH_HZ = 10_000, 10, 2_000_000, 20e6
AIM_S = 30


@dataclass
class Faded:
    """Log-normal mean SNR in the whole band, and an exponential gain a block, kept while the block lasts."""

    mean_snr: Floats
    block_ns: int | None = NS
    num_rates: int = 0
    _block: int = -1
    _snr: Floats = field(default_factory=lambda: np.zeros(0))

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        if block != self._block:
            gains = np.random.Generator(np.random.Philox(key=block)).exponential(size=len(self.mean_snr))
            self._block, self._snr = block, self.mean_snr * gains * BANDWIDTH_HZ
        self.num_rates += len(clients)
        return band_hz * np.log2(1 + self._snr[clients] / band_hz)


def rounds(sharing: Sharing, num_ues: int) -> tuple[float, float, float, int, int]:
    """Return seconds of one core, real and simulated seconds, and how many events and single rates there were."""
    rates = Faded(10 ** np.random.Generator(np.random.Philox(key=1)).normal(1.0, 0.8, num_ues))
    cell, events = Cell(sharing, rates, bandwidth_hz=BANDWIDTH_HZ), 0
    began, core = time.perf_counter(), time.process_time()
    for number in range(ROUNDS):
        for client in range(num_ues):
            cell.start(number * num_ues + client, client, BITS + client, cell.now_ns)
        while (event_ns := cell.next_event_ns()) is not None:
            cell.advance(event_ns)
            events += 1
    taken = time.process_time() - core, time.perf_counter() - began
    return *taken, cell.now_ns / NS, events, rates.num_rates


def floor_s(num_rates: int, at_once: int) -> float:
    """Return what so many rates take by themselves, ``at_once`` a call."""
    rates, clients = Faded(np.ones(at_once)), np.arange(at_once)
    rates.bps(clients, 1.0, 0, "up")
    began, calls = time.process_time(), max(1, num_rates // at_once)
    for _ in range(min(calls, 2000)):
        rates.bps(clients, 1.0, 0, "up")
    return (time.process_time() - began) * calls / min(calls, 2000)


def main(num_ues: int) -> None:
    torch.set_num_threads(1)
    describe_machine()
    print(f"{num_ues:,} UEs, {ROUNDS} rounds of {BITS / 1e6:g} Mbit each, blocks of 1 s; aim: {AIM_S} s on one core")
    table = Table("discipline", "core s", "real s", "simulated s", "events", "us an event", "rates alone, s", "ratio")
    for sharing, at_once in ((EqualShare(), num_ues // 2), (Fifo(), 1), (ResourceBlocks(num_blocks=106), 106)):
        core, real, simulated, events, num_rates = rounds(sharing, num_ues)
        alone = floor_s(num_rates, at_once)
        table.add_row(type(sharing).__name__, f"{core:.1f}", f"{real:.1f}", f"{simulated:,.0f}", f"{events:,}",
                      f"{1e6 * core / events:.0f}", f"{alone:.1f}", f"{core / alone:.1f}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_UES)

"""What computing is scaled by, so that it stands in a given ratio to sending: from the models alone, before the run."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from roundelay.errors import ConfigError
from roundelay.messages import Task
from roundelay.simulation.network.cell import Dedicated, Fifo, ResourceBlocks
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.reach import LARGE, Reach
from roundelay.simulation.workload import Workload

log = logging.getLogger(__name__)

LOOKED_AT = 2000
"""Of a large population, about so many clients are looked at, evenly spaced in the order of their ids."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``transmit_s`` and ``compute_s`` are medians over the clients, before scaling; ``factor`` scales computing."""

    transmit_s: float
    compute_s: float
    factor: float = 1.0


def calibrated(
    network: Network, reaches: Sequence[Reach], workload: Workload, raw_bits: int, at_once: int
) -> Calibration:
    """Hold the median client's upload against the median client's computing.

    An upload is ``raw_bits`` at the client's mean rate in the band that it has when ``at_once`` clients of its cell
    send: what a codec makes of them plays no part. Computing is that of a task without settings of its own. In a large
    population the medians are those of ``LOOKED_AT`` clients.

    Raises:
        ConfigError: most clients are out of reach, or compute in no time, and a ratio is asked for.
    """
    num_clients = sum(len(reach.clients) for reach in reaches)
    every = 1 if num_clients <= LARGE else num_clients // LOOKED_AT
    rows = [np.arange(0, len(reach.clients), every) for reach in reaches]
    upload_s: list[float] = []
    for reach, looked_at in zip(reaches, rows, strict=True):
        rates = reach.mean_rates_bps("up", _band_hz(network, reach, at_once), looked_at)
        with np.errstate(divide="ignore"):
            upload_s += [float(seconds) for seconds in (raw_bits + network.header_bits) / rates]
    clients = [(reach, client) for reach in reaches for client in reach.clients[::every]]
    compute_s = [0.0]
    if network.computing is not None:
        compute_s = [
            network.computing.spent(reach.seed, 0, 0, client, workload.samples(Task(0, client, 0))).seconds
            for reach, client in clients
        ]
    found = Calibration(statistics.median(upload_s), statistics.median(compute_s))
    if network.transmit_over_compute is None:
        return found
    if not 0 < found.transmit_s < float("inf") or not found.compute_s > 0:
        raise ConfigError(
            f"Network: transmit_over_compute = {network.transmit_over_compute:g} needs a median client that can send "
            f"and that computes; its upload takes {found.transmit_s:g} s and its computing {found.compute_s:g} s"
        )
    factor = found.transmit_s / (network.transmit_over_compute * found.compute_s)
    log.info("computing takes %.6g times what its model says: a median upload of %.6g s over a median computing of "
             "%.6g s is then %g", factor, found.transmit_s, factor * found.compute_s,
             network.transmit_over_compute)  # fmt: skip
    return Calibration(found.transmit_s, found.compute_s, factor)


def _band_hz(network: Network, reach: Reach, at_once: int) -> float:
    sharing = network.discipline
    if isinstance(sharing, ResourceBlocks):
        return reach.bandwidth_hz / sharing.num_blocks
    if isinstance(sharing, Fifo | Dedicated):
        return reach.bandwidth_hz
    return reach.bandwidth_hz / max(1, min(at_once, len(reach.clients)))

"""What the network is to the clients of one cell: the rates of each, now and in the mean, and what it knows of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from roundelay import seeds
from roundelay.data.ids import place
from roundelay.simulation.network.cell import Cell, Dedicated, EqualShare, Fixed, Links, MinMax
from roundelay.simulation.network.cell.rates import NS, Direction, Floats, Ints
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.packets import Crossing
from roundelay.simulation.network.radio import Channel, NoFading, Radio
from roundelay.simulation.network.transfer import Link

MEAN_OVER = 32
"""So many fading blocks are looked at for a client's mean rate."""

LARGE = 100_000
"""Of more clients than that, some are looked at where a look at all of them would cost more than the round."""


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """One cell and its clients, by ascending id, who are its rows in this order."""

    network: Network
    seed: int
    clients: Sequence[str]
    channel: Channel | Fixed

    @staticmethod
    def of(network: Network, seed: int, clients: Sequence[str]) -> "Reach":
        """Raises:
        ConfigError: a client stands where the radio is not modelled, or has no link.
        """
        cell = network.cell
        channel = cell.rates(clients) if isinstance(cell, Links) else cell.channel(seed, clients)
        return Reach(network, seed, clients, channel)

    def row(self, client: str) -> int:
        row = place(self.clients, client)
        assert row is not None, "who asks knows in which cell a client is"
        return row

    def cell(self, direction: Direction, now_ns: int) -> Cell:
        network, wire = self.network, isinstance(self.network.cell, Links)
        down = Dedicated() if wire else EqualShare()
        delay_s = network.cell.latency_s if isinstance(network.cell, Links) else 0.0
        if direction == "up":
            delay_s += network.grant_latency_s
        return Cell(
            network.discipline if direction == "up" else down, self.channel, bandwidth_hz=self.bandwidth_hz,
            direction=direction, delay_ns=round(delay_s * NS), patience_ns=max(1, round(network.patience_s * NS)),
            now_ns=now_ns, outlook=self._outlook() if direction == "up" else None,
        )  # fmt: skip

    def _outlook(self) -> Channel | None:
        """Return what a discipline that plans goes by: the same links without fading."""
        radio = self.network.cell
        if not isinstance(radio, Radio) or not isinstance(self.network.discipline, MinMax):
            return None
        return replace(radio, fading=NoFading()).channel(self.seed, self.clients)

    @property
    def bandwidth_hz(self) -> float:
        return self.network.cell.bandwidth_hz if isinstance(self.network.cell, Radio) else 1.0

    def rates_bps(
        self, direction: Direction, now_ns: int, band_hz: float | None = None, rows: Ints | None = None
    ) -> Floats:
        """Return what each client, or each of ``rows``, would have alone at a moment, in the whole band or in
        ``band_hz``.
        """
        block = now_ns // self.channel.block_ns if self.channel.block_ns else 0
        rows = np.arange(len(self.clients)) if rows is None else rows
        return self.channel.bps(rows, self.bandwidth_hz if band_hz is None else band_hz, block, direction)

    def mean_rates_bps(self, direction: Direction, band_hz: float, rows: Ints) -> Floats:
        """Return the mean rates of some clients over the first fading blocks."""
        block_ns = self.channel.block_ns
        if not block_ns:
            return self.rates_bps(direction, 0, band_hz, rows)
        blocks = [self.rates_bps(direction, n * block_ns, band_hz, rows) for n in range(MEAN_OVER)]
        rates: Floats = np.mean(blocks, axis=0)
        return rates

    def link(self, client: str, direction: Direction, round: int, now_ns: int) -> Link:
        """Return what a link is like at a moment."""
        row = np.array([self.row(client)])
        channel = self.channel
        block = now_ns // channel.block_ns if channel.block_ns else 0
        rate_bps = float(channel.bps(row, self.bandwidth_hz, block, direction)[0])
        if isinstance(channel, Fixed):
            return Link(client, direction, round, now_ns, rate_bps)
        up = direction == "up"
        snr = channel.uplink_snr(row, self.bandwidth_hz, block) if up else channel.downlink_snr(row, block)
        with np.errstate(divide="ignore"):
            snr_db = float(10 * np.log10(snr[0]))
        distance_m = float(channel.distance_m[row[0]])
        return Link(client, direction, round, now_ns, rate_bps, distance_m, snr_db, self.bandwidth_hz)

    def crossing(self, client: str, round: int, attempt: int, bits: int, now_ns: int) -> Crossing:
        """Draw how an upload gets across a link that loses packets."""
        network = self.network
        if network.errors is None:
            return Crossing(bits)
        loss = None
        if network.loss is not None:
            snr_db = self.link(client, "up", round, now_ns).snr_db
            assert snr_db is not None
            loss = float(network.loss.probability(np.array([10 ** (snr_db / 10)]))[0])
        return network.errors.crossing(bits, seeds.key(self.seed, round, attempt, client, "packets"), loss)

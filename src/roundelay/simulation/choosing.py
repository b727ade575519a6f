"""Whom a selection rule may choose from, and what the server knows of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from roundelay.simulation.network.cell import Fixed
from roundelay.simulation.network.cell.rates import Floats
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.reach import Reach
from roundelay.simulation.network.selection import Candidate, Choice, selected
from roundelay.simulation.workload import Workload


class Past:
    """In how many rounds each client counted, and in which it was asked last."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._asked: dict[str, int] = {}

    def asked(self, client: str, number: int) -> None:
        self._asked[client] = number

    def counted(self, clients: Sequence[str]) -> None:
        for client in clients:
            self._counted[client] = self._counted.get(client, 0) + 1

    def of(self, client: str) -> tuple[int, int]:
        return self._counted.get(client, 0), self._asked.get(client, 0)

    def snapshot(self) -> dict[str, dict[str, int]]:
        return {"counted": dict(self._counted), "asked": dict(self._asked)}

    def restore(self, kept: Mapping[str, Mapping[str, int]]) -> None:
        self._counted, self._asked = dict(kept["counted"]), dict(kept["asked"])


def candidates(
    reaches: Sequence[Reach], pool: Sequence[str], now_ns: int, bits: int, compute_s: Callable[[str], float],
    workload: Workload, past: Past,
) -> list[Candidate]:  # fmt: skip
    """Return what is known of each of ``pool``, for an upload and a model of so many bits."""
    wanted, found = set(pool), []
    for reach in reaches:
        up, down = (reach.rates_bps(direction, now_ns) for direction in ("up", "down"))
        with np.errstate(divide="ignore"):
            upload_s, download_s = bits / up, bits / down
        columns: dict[str, Floats] = {"upload_s": upload_s, "download_s": download_s, "rate_bps": up}
        if not isinstance(reach.channel, Fixed):
            rows, channel = np.arange(len(reach.clients)), reach.channel
            block = now_ns // channel.block_ns if channel.block_ns else 0
            columns["distance_m"] = channel.distance_m
            with np.errstate(divide="ignore"):
                columns["snr_db"] = 10 * np.log10(channel.uplink_snr(rows, reach.bandwidth_hz, block))
        for row, client in enumerate(reach.clients):
            if client in wanted:
                counted, asked = past.of(client)
                numbers: dict[str, Any] = {name: float(column[row]) for name, column in columns.items()}
                found.append(Candidate(client=client, compute_s=compute_s(client), counted=counted, last_asked=asked,
                                       num_examples=workload.size(client), **numbers))  # fmt: skip
    return sorted(found, key=lambda one: one.client)


def chosen(
    network: Network, number: int, attempt: int, count: int, known: Sequence[Candidate], seed: int
) -> tuple[str, ...]:
    assert network.select is not None
    return selected(network.select, Choice(number, attempt, count, known, seed))

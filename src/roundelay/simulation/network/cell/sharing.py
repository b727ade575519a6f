"""Who is on the air at once, and in which band each.

A discipline is two answers: how many *places* there are on the air (the rest queue in the order in which they were
asked for), and which band each flow has there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from roundelay.errors import ConfigError
from roundelay.simulation.network.cell.minmax import min_max_bands
from roundelay.simulation.network.cell.rates import NS, Band, Floats, Ints


class Expected(NamedTuple):
    """A flow that was announced: of whom, how long, and when it will be there."""

    client: int
    bits: int
    ready_ns: int


@dataclass(frozen=True, slots=True)
class Air:
    """What a discipline may look at. Vectors have one number a flow on the air, in one order."""

    now_ns: int
    bandwidth_hz: float
    clients: Ints
    bits: Callable[[], Floats]
    expected: Sequence[Expected]
    bps: Callable[[Ints, Band], Floats]
    band_hz: Callable[[Ints, Floats], Floats] | None

    @property
    def num_flows(self) -> int:
        return len(self.clients)


class Sharing(Protocol):
    @property
    def places(self) -> int | None:
        """How many flows are on the air at once; None is all."""
        ...

    @property
    def resplits(self) -> bool:
        """Whether those who stay are given new bands where one ends. Where one begins, all are."""
        ...

    def bands_hz(self, air: Air) -> Band: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo:
    """One flow at a time has the whole band, in the order in which they asked: time division."""

    places: ClassVar[int | None] = 1
    resplits: ClassVar[bool] = False

    def bands_hz(self, air: Air) -> Band:
        return air.bandwidth_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualShare:
    """Everybody at once, each in an equal part of the band: processor sharing, by frequency division."""

    places: ClassVar[int | None] = None
    resplits: ClassVar[bool] = True

    def bands_hz(self, air: Air) -> Band:
        return air.bandwidth_hz / air.num_flows


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceBlocks:
    """The band is cut into ``num_blocks`` for good. A flow takes one when one is free, and queues for it otherwise."""

    resplits: ClassVar[bool] = False
    num_blocks: int

    def __post_init__(self) -> None:
        if isinstance(self.num_blocks, bool) or not isinstance(self.num_blocks, int) or self.num_blocks < 1:
            raise ConfigError(
                f"ResourceBlocks: num_blocks must be a whole number of at least 1, got {self.num_blocks!r}"
            )

    @property
    def places(self) -> int | None:
        return self.num_blocks

    def bands_hz(self, air: Air) -> Band:
        return air.bandwidth_hz / self.num_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedicated:
    """A link for each client, which nobody shares: the whole band is everybody's."""

    places: ClassVar[int | None] = None
    resplits: ClassVar[bool] = False

    def bands_hz(self, air: Air) -> Band:
        return air.bandwidth_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class MinMax:
    """The split with which the last flow ends soonest: for a synchronous round, whose flows end together.

    Source: Z. Yang et al., "Energy Efficient Federated Learning over Wireless Communication Networks", IEEE TWC 2021:
    the least T with sum over i of b_i(S_i / (T - ready_i)) = B, where b_i(R) is the band in which client i has rate R.
    Flows that were announced (``Cell.expect``) have their part kept for them, which is lent to the others until they
    come. It is solved anew when a flow comes and when a fading block ends, from what is then left to send; those who
    stay behind keep their band when another ends, since by then they end too.
    """

    places: ClassVar[int | None] = None
    resplits: ClassVar[bool] = False

    def bands_hz(self, air: Air) -> Band:
        clients = np.concatenate([air.clients, np.array([e.client for e in air.expected], dtype=np.int64)])
        bits = np.concatenate([air.bits(), np.array([float(e.bits) for e in air.expected])])
        ready_s = np.array([0] * air.num_flows + [max(0, e.ready_ns - air.now_ns) for e in air.expected]) / NS
        inverse = air.band_hz
        bands, _ = min_max_bands(
            lambda rows, bands: air.bps(clients[rows], bands), bits, ready_s, air.bandwidth_hz,
            None if inverse is None else (lambda rows, bps: inverse(clients[rows], bps)),
        )  # fmt: skip
        bands = bands[: air.num_flows]
        used = float(bands.sum())
        return bands * (air.bandwidth_hz / used) if used else bands

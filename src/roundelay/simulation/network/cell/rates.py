"""How fast a flow goes: what a cell asks of a radio, and links that need none.

A cell knows its clients as rows (0, 1, ...) of whatever vectors the rates keep; only those who draw random numbers need
their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from roundelay.errors import ConfigError
from roundelay.simulation.network.checks import check_number

Direction = Literal["up", "down"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Band = float | Floats
"""Hertz: one number for every flow, or one a flow."""

NS = 1_000_000_000


class Rates(Protocol):
    """Bits per second as a function of who, in which band, when.

    A cell asks at every arrival and departure, so what a block's draws cost should be kept for as long as the block.
    """

    @property
    def block_ns(self) -> int | None:
        """How long a rate stands still. Block n begins at n * block_ns; None is for ever."""
        ...

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        """Return one rate for each of ``clients``, at least 0. More band should not make it less."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """Rates that can say at once which band a rate needs have this method too; ``MinMax`` is then faster by far."""

    def band_hz(self, clients: Ints, bps: Floats, block: int, direction: Direction) -> Floats:
        """Return the smallest band in which each client has its rate; infinity where there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PerHertz:
    """``efficiency`` bits per second in each hertz, for everybody: a pipe, if its band is given in bits per second."""

    efficiency: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "efficiency", above=0)

    @property
    def block_ns(self) -> int | None:
        return None

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        return np.full(len(clients), 1.0) * (self.efficiency * band_hz)

    def band_hz(self, clients: Ints, bps: Floats, block: int, direction: Direction) -> Floats:
        return bps / self.efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """A link of its own for every client, at a rate that stands still: no radio, and nobody waits for anybody.

    A rate is one for all, or a table by client id. ``latency_s`` passes before the first bit.
    """

    uplink_bps: float | Mapping[str, float]
    downlink_bps: float | Mapping[str, float]
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "latency_s", least=0)
        for name in ("uplink_bps", "downlink_bps"):
            rates = getattr(self, name)
            for where, bps in rates.items() if isinstance(rates, Mapping) else [("", rates)]:
                if isinstance(bps, bool) or not isinstance(bps, int | float) or not 0 < bps < np.inf:
                    of = f" of client {where!r}" if where else ""
                    raise ConfigError(f"Links: {name}{of} must be bits per second, above 0, got {bps!r}")

    def rates(self, clients: Sequence[str]) -> "Fixed":
        """Return the rates of these clients, who are known by their place in the sequence from here on.

        Raises:
            ConfigError: a table lacks one of them.
        """
        return Fixed(self._column("uplink_bps", clients), self._column("downlink_bps", clients))

    def _column(self, name: str, clients: Sequence[str]) -> Floats:
        rates = getattr(self, name)
        if not isinstance(rates, Mapping):
            return np.broadcast_to(np.array(float(rates)), len(clients))  # one number, however many they are
        absent = next((client for client in clients if client not in rates), None)
        if absent is not None:
            raise ConfigError(f"Links: {name} names no rate for client {absent!r}; add it, or give one for all")
        return np.array([float(rates[client]) for client in clients])


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """``Links`` of known clients, in their order. The band means nothing to them."""

    uplink_bps: Floats
    downlink_bps: Floats

    @property
    def block_ns(self) -> int | None:
        return None

    def bps(self, clients: Ints, band_hz: Band, block: int, direction: Direction) -> Floats:
        return (self.uplink_bps if direction == "up" else self.downlink_bps)[clients]

"""A user's own way over the network, in place of codec, cell and errors: ``uplink = f(vector, link, generator)``."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.simulation.network.cell.rates import NS, Direction


@dataclass(frozen=True, slots=True)
class Link:
    """What a link is like at the moment of sending. What the network does not model is None.

    ``rate_bps`` is what the client would have alone, in the whole band; ``snr_db`` is its signal to noise ratio there.
    """

    client: str
    direction: Direction
    round: int
    now_ns: int
    rate_bps: float | None = None
    distance_m: float | None = None
    snr_db: float | None = None
    bandwidth_hz: float | None = None


Transfer = Callable[[Tensor, Link, torch.Generator], tuple[Tensor, int, float]]
"""``transfer(vector, link, generator)`` returns the vector as it arrives, how many bits went over the air, and after
how many seconds it is there. ``generator`` is keyed by seed, round, attempt and client; ``vector`` must not change.
"""


@dataclass(frozen=True, slots=True)
class Transferred:
    vector: Tensor
    bits: int
    duration_ns: int


def transferred(transfer: Transfer, vector: Tensor, link: Link, generator: torch.Generator) -> Transferred:
    """Send a vector by a user's function, and look at what it returns.

    Raises:
        ConfigError: that is no vector of the same length and dtype, no number of bits, or no number of seconds.
    """
    name = getattr(transfer, "__name__", repr(transfer))
    came = transfer(vector, link, generator)
    if not isinstance(came, tuple) or len(came) != 3:
        raise ConfigError(f"{name} must return (vector, bits, seconds), got {type(came).__name__} for {link.client!r}")
    arrived, bits, seconds = came
    if not isinstance(arrived, Tensor) or arrived.shape != vector.shape or arrived.dtype != vector.dtype:
        got = f"{tuple(arrived.shape)} {arrived.dtype}" if isinstance(arrived, Tensor) else type(arrived).__name__
        raise ConfigError(f"{name} must return a vector like the one it got, {tuple(vector.shape)} {vector.dtype}; for "
                          f"{link.client!r} it returned {got}")  # fmt: skip
    if isinstance(bits, bool) or not isinstance(bits, int) or bits < 0:
        raise ConfigError(f"{name} must return a whole number of bits of at least 0, got {bits!r} for {link.client!r}")
    if not isinstance(seconds, int | float) or not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigError(f"{name} must return seconds, at least 0, got {seconds!r} for {link.client!r}")
    return Transferred(arrived, bits, round(seconds * NS))

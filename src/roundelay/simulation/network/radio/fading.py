"""Fast fading: a power gain of mean one for each client in each coherence block, a function of the two.

Block fading: within ``coherence_time_s`` the gain stands still, about 0.423 over the Doppler spread (T. Rappaport,
"Wireless Communications", 2nd ed., 5.40.c); from block to block it is drawn anew.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roundelay.simulation.network.checks import check_number
from roundelay.simulation.network.draws import Floats, Keys, Numbers, exponentials, normals

NS = 1_000_000_000


class Fading(Protocol):
    @property
    def block_ns(self) -> int | None:
        """How long a gain holds; None is for ever."""
        ...

    def gains(self, keys: Keys, block: Numbers, lane: int) -> Floats:
        """Return |h|^2 of each client in a block, or in one block a client."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFading:
    """The channel stands at its mean."""

    @property
    def block_ns(self) -> int | None:
        return None

    def gains(self, keys: Keys, block: Numbers, lane: int) -> Floats:
        return np.ones(len(keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rayleigh:
    """No direct path: |h|^2 is exponential."""

    coherence_time_s: float = 0.01

    def __post_init__(self) -> None:
        check_number(self, "coherence_time_s", least=1e-9)

    @property
    def block_ns(self) -> int | None:
        return round(self.coherence_time_s * NS)

    def gains(self, keys: Keys, block: Numbers, lane: int) -> Floats:
        return exponentials(keys, block, 2 * lane)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rician:
    """A direct path ``k_db`` above all the others together: h = sqrt(K/(K+1)) + sqrt(1/(2(K+1))) (n1 + j n2)."""

    k_db: float = 9.0
    coherence_time_s: float = 0.01

    def __post_init__(self) -> None:
        check_number(self, "k_db", least=-100, most=100)
        check_number(self, "coherence_time_s", least=1e-9)

    @property
    def block_ns(self) -> int | None:
        return round(self.coherence_time_s * NS)

    def gains(self, keys: Keys, block: Numbers, lane: int) -> Floats:
        k = 10 ** (self.k_db / 10)
        direct, scattered = np.sqrt(k / (k + 1)), np.sqrt(1 / (2 * (k + 1)))
        real = direct + scattered * normals(keys, block, 2 * lane)
        imaginary = scattered * normals(keys, block, 2 * lane + 1)
        gains: Floats = real * real + imaginary * imaginary
        return gains

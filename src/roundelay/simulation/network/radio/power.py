"""How loud a UE sends."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roundelay.simulation.network.checks import check_number
from roundelay.simulation.network.draws import Floats

RESOURCE_BLOCK_HZ = 180e3


class PowerControl(Protocol):
    def density_dbm_hz(self, coupling_loss_db: Floats) -> Floats:
        """Return the most that each UE sends in a hertz; all of its power is the limit besides."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPower:
    """All that the UE has, however narrow its band."""

    def density_dbm_hz(self, coupling_loss_db: Floats) -> Floats:
        return np.full_like(coupling_loss_db, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """TS 38.213, 7.1.1, without its closed loop: min(P_max, P0 + 10 log10(2^mu M_RB) + alpha PL).

    ``target_dbm`` is P0, for a resource block of 180 kHz (mu = 0: 2^mu M_RB is the band over 180 kHz). PL is what a
    UE measures on the downlink's reference signals: path loss, shadowing and antennas, not fast fading.
    """

    target_dbm: float = -90.0
    alpha: float = 0.8

    def __post_init__(self) -> None:
        check_number(self, "target_dbm", least=-202, most=24)
        check_number(self, "alpha", least=0, most=1)

    def density_dbm_hz(self, coupling_loss_db: Floats) -> Floats:
        densities: Floats = self.target_dbm - 10 * math.log10(RESOURCE_BLOCK_HZ) + self.alpha * coupling_loss_db
        return densities

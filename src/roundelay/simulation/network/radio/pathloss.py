"""How much weaker a signal arrives: path loss, who has line of sight, and how the loss scatters.

Sources: 3GPP TR 38.901 (Tables 7.4.1-1, 7.4.2-1 and 7.5-6; its speed of light is 3e8 m/s, which is kept, since its
break points follow from it); 3GPP TR 36.814 (Tables A.2.1.1-2 and A.2.1.1-3).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from roundelay.simulation.network.checks import check_choice, check_number, check_numbers
from roundelay.simulation.network.draws import Floats

Flags = NDArray[np.bool_]

SPEED_OF_LIGHT_M_S = 3.0e8
SIGHTS = ("drawn", "always", "never")


@dataclass(frozen=True, slots=True)
class Scatter:
    """Shadowing: the standard deviation, and the distance over which its correlation falls to 1/e."""

    sigma_db: float
    correlation_m: float


class PathLoss(Protocol):
    """One way from distance to loss. Distances are horizontal; those below ``min_distance_m`` count as that."""

    @property
    def bs_height_m(self) -> float: ...
    @property
    def min_distance_m(self) -> float: ...
    @property
    def max_distance_m(self) -> float: ...
    @property
    def ue_heights_m(self) -> tuple[float, float]: ...

    def loss_db(self, distance_m: Floats, ue_height_m: Floats, carrier_ghz: float, line_of_sight: Flags) -> Floats: ...

    def sight(self, distance_m: Floats) -> Floats:
        """Return the probability of line of sight."""
        ...

    def scatter(self, line_of_sight: bool) -> Scatter: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMacro:
    """TR 38.901 UMa. ``optional`` takes the TR's second, simpler formula for links without line of sight.

    UEs above 13 m are refused: for them the TR draws the height of the surroundings, which is not modelled.
    """

    min_distance_m: ClassVar[float] = 10.0
    max_distance_m: ClassVar[float] = 5000.0
    ue_heights_m: ClassVar[tuple[float, float]] = (1.5, 13.0)
    line_of_sight: str = "drawn"
    optional: bool = False
    bs_height_m: float = 25.0

    def __post_init__(self) -> None:
        check_choice(self, "line_of_sight", *SIGHTS)
        check_number(self, "bs_height_m", above=13)

    def loss_db(self, distance_m: Floats, ue_height_m: Floats, carrier_ghz: float, line_of_sight: Flags) -> Floats:
        d3 = np.hypot(distance_m, self.bs_height_m - ue_height_m)
        seen = _seen(distance_m, d3, self.bs_height_m, ue_height_m, carrier_ghz, (28.0, 22.0, 9.0))
        if self.optional:
            hidden = 32.4 + 20 * np.log10(carrier_ghz) + 30 * np.log10(d3)
        else:
            formula = 13.54 + 39.08 * np.log10(d3) + 20 * np.log10(carrier_ghz) - 0.6 * (ue_height_m - 1.5)
            hidden = np.maximum(seen, formula)
        return np.where(line_of_sight, seen, hidden)

    def sight(self, distance_m: Floats) -> Floats:
        return _sight(self.line_of_sight, distance_m, 63.0)

    def scatter(self, line_of_sight: bool) -> Scatter:
        return Scatter(4.0, 37.0) if line_of_sight else Scatter(7.8 if self.optional else 6.0, 50.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMicro:
    """TR 38.901 UMi, street canyon."""

    min_distance_m: ClassVar[float] = 10.0
    max_distance_m: ClassVar[float] = 5000.0
    ue_heights_m: ClassVar[tuple[float, float]] = (1.5, 22.5)
    line_of_sight: str = "drawn"
    optional: bool = False
    bs_height_m: float = 10.0

    def __post_init__(self) -> None:
        check_choice(self, "line_of_sight", *SIGHTS)
        check_number(self, "bs_height_m", above=1)

    def loss_db(self, distance_m: Floats, ue_height_m: Floats, carrier_ghz: float, line_of_sight: Flags) -> Floats:
        d3 = np.hypot(distance_m, self.bs_height_m - ue_height_m)
        seen = _seen(distance_m, d3, self.bs_height_m, ue_height_m, carrier_ghz, (32.4, 21.0, 9.5))
        if self.optional:
            hidden = 32.4 + 20 * np.log10(carrier_ghz) + 31.9 * np.log10(d3)
        else:
            formula = 22.4 + 35.3 * np.log10(d3) + 21.3 * np.log10(carrier_ghz) - 0.3 * (ue_height_m - 1.5)
            hidden = np.maximum(seen, formula)
        return np.where(line_of_sight, seen, hidden)

    def sight(self, distance_m: Floats) -> Floats:
        return _sight(self.line_of_sight, distance_m, 36.0)

    def scatter(self, line_of_sight: bool) -> Scatter:
        return Scatter(4.0, 10.0) if line_of_sight else Scatter(8.2 if self.optional else 7.82, 13.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDistance:
    """``loss_1km_db + slope_db log10(distance / 1 km)``, whatever the carrier: the form of most papers on federated
    learning over a radio. ``slope_db`` is ten times the path-loss exponent.
    """

    ue_heights_m: ClassVar[tuple[float, float]] = 0.0, float("inf")
    loss_1km_db: float
    slope_db: float
    sigma_db: float = 8.0
    correlation_m: float = 50.0
    min_distance_m: float = 1.0
    max_distance_m: float = 100_000.0
    bs_height_m: float = 25.0

    def __post_init__(self) -> None:
        check_numbers(self, "loss_1km_db")
        check_numbers(self, "sigma_db", least=0)
        check_numbers(self, "slope_db", "correlation_m", "min_distance_m", "bs_height_m", above=0)
        check_number(self, "max_distance_m", above=self.min_distance_m)

    def loss_db(self, distance_m: Floats, ue_height_m: Floats, carrier_ghz: float, line_of_sight: Flags) -> Floats:
        losses: Floats = self.loss_1km_db + self.slope_db * np.log10(distance_m / 1000)
        return losses

    def sight(self, distance_m: Floats) -> Floats:
        return np.zeros_like(distance_m)

    def scatter(self, line_of_sight: bool) -> Scatter:
        return Scatter(self.sigma_db, self.correlation_m)


def macro_36814() -> LogDistance:
    """TR 36.814 macro cell at 2 GHz: 128.1 + 37.6 log10 km, 8 dB, from 35 m on; ``carrier_ghz`` has no say."""
    return LogDistance(loss_1km_db=128.1, slope_db=37.6, sigma_db=8.0, correlation_m=50.0, min_distance_m=35.0)


def pico_36814() -> LogDistance:
    """TR 36.814 pico cell at 2 GHz: 140.7 + 36.7 log10 km, 10 dB, from 10 m on."""
    return LogDistance(
        loss_1km_db=140.7, slope_db=36.7, sigma_db=10.0, correlation_m=13.0, min_distance_m=10.0, bs_height_m=10.0
    )


def _seen(
    d2: Floats, d3: Floats, bs_m: float, ue_m: Floats, carrier_ghz: float, numbers: tuple[float, float, float]
) -> Floats:
    """Loss in line of sight: one slope up to the break point, 40 dB a decade beyond."""
    intercept, slope, beyond = numbers
    break_m = 4 * (bs_m - 1) * (ue_m - 1) * carrier_ghz * 1e9 / SPEED_OF_LIGHT_M_S
    carrier_db = 20 * np.log10(carrier_ghz)
    near: Floats = intercept + slope * np.log10(d3) + carrier_db
    far: Floats = intercept + 40 * np.log10(d3) + carrier_db - beyond * np.log10(break_m**2 + (bs_m - ue_m) ** 2)
    losses: Floats = np.where(d2 <= break_m, near, far)
    return losses


def _sight(which: str, distance_m: Floats, decay_m: float) -> Floats:
    if which != "drawn":
        return np.full_like(distance_m, float(which == "always"))
    close = 18 / np.maximum(distance_m, 18)
    probabilities: Floats = close + np.exp(-distance_m / decay_m) * (1 - close)
    return probabilities

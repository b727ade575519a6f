"""Rate maps: which spectral efficiency, in bit/s/Hz, a signal-to-noise ratio allows.

Sources: 3GPP TS 38.214, Tables 5.2.2.1-2 (CQI) and 5.1.3.1-1 (MCS); TR 36.942, A.2 (truncated Shannon); G. Piro et
al., "An LTE module for the ns-3 network simulator", SIMUTools 2011 (the gap that follows from a bit error rate).
Efficiencies are computed from modulation order and code rate: printed copies of the tables carry typing errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roundelay.simulation.network.checks import check_choice, check_number
from roundelay.simulation.network.draws import Floats

CQI_TABLE = (
    (2, 78), (2, 120), (2, 193), (2, 308), (2, 449), (2, 602), (4, 378), (4, 490), (4, 616),
    (6, 466), (6, 567), (6, 666), (6, 772), (6, 873), (6, 948),
)  # fmt: skip
"""TS 38.214 Table 5.2.2.1-2, CQI 1 to 15: bits a symbol, and the code rate times 1024."""

MCS_TABLE = (
    (2, 120), (2, 157), (2, 193), (2, 251), (2, 308), (2, 379), (2, 449), (2, 526), (2, 602), (2, 679),
    (4, 340), (4, 378), (4, 434), (4, 490), (4, 553), (4, 616), (4, 658),
    (6, 438), (6, 466), (6, 517), (6, 567), (6, 616), (6, 666), (6, 719), (6, 772), (6, 822), (6, 873), (6, 910),
    (6, 948),
)  # fmt: skip
"""TS 38.214 Table 5.1.3.1-1, MCS 0 to 28. Not ascending: 17 carries a little less than 16."""

LTE_THRESHOLDS_DB = (-6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7)
"""From which SNR on each CQI has a block error rate of 10 %: the list that most LTE simulators share; conservative."""

NR_THRESHOLDS_DB = (-2.42, 0.47, 2.34, 4.14, 5.96, 7.78, 10.10, 12.21, 14.32, 16.49, 18.34)
"""The same for CQI 4 to 14 on the NR uplink in white noise, from the block error rates of MCS table 1 in Sionna 2.2
(PUSCH, code blocks of 2000 bits), interpolated on their logarithm. Its grid of 1.8 dB leaves an error of up to about
1 dB. CQI 1 to 3 and 15 are not in its range."""


def efficiency(bits_per_symbol: int, rate_1024: int) -> float:
    """Return bit/s/Hz of a row of a table.

    >>> round(efficiency(6, 948), 4)
    5.5547
    """
    return bits_per_symbol * rate_1024 / 1024


class RateMap(Protocol):
    def efficiency(self, snr: Floats) -> Floats:
        """Return bit/s/Hz for linear SNRs, ascending in them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shannon:
    """log2(1 + snr): what no link exceeds."""

    def efficiency(self, snr: Floats) -> Floats:
        bits: Floats = np.log1p(snr) / math.log(2)
        return bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Shannon at an SNR ``gap_db`` lower, up to ``max_efficiency``. The defaults are close to a real NR link."""

    gap_db: float = 2.0
    max_efficiency: float = 5.5547

    def __post_init__(self) -> None:
        check_number(self, "gap_db", least=0)
        check_number(self, "max_efficiency", above=0)

    def efficiency(self, snr: Floats) -> Floats:
        bits: Floats = np.minimum(self.max_efficiency, np.log1p(snr / 10 ** (self.gap_db / 10)) / math.log(2))
        return bits


def gap_db_of(bit_error_rate: float) -> float:
    """Return the gap to Shannon that goes with a bit error rate: -ln(5 BER) / 1.5, as ns-3's LTE has it.

    >>> round(gap_db_of(5e-5), 1)
    7.4
    """
    return 10 * math.log10(-math.log(5 * bit_error_rate) / 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """TR 36.942 A.2: ``attenuation * log2(1 + snr)`` from ``min_snr_db`` on, up to ``max_efficiency``.

    The defaults are its uplink; its downlink has 0.6 and 4.4.
    """

    attenuation: float = 0.4
    max_efficiency: float = 2.0
    min_snr_db: float = -10.0

    def __post_init__(self) -> None:
        check_number(self, "attenuation", above=0, most=1)
        check_number(self, "max_efficiency", above=0)
        check_number(self, "min_snr_db")

    def efficiency(self, snr: Floats) -> Floats:
        bits = np.minimum(self.max_efficiency, self.attenuation * np.log1p(snr) / math.log(2))
        return np.where(snr >= 10 ** (self.min_snr_db / 10), bits, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CqiTable:
    """The best row of the CQI table whose block error rate is at most 10 %; nothing below the first.

    ``thresholds`` is "lte" (conservative, found in most papers) or "nr" (the NR uplink, from CQI 4 to 14).
    """

    thresholds: str = "lte"

    def __post_init__(self) -> None:
        check_choice(self, "thresholds", "lte", "nr")

    def efficiency(self, snr: Floats) -> Floats:
        rows: Sequence[tuple[int, int]] = CQI_TABLE
        thresholds_db: Sequence[float] = LTE_THRESHOLDS_DB
        if self.thresholds == "nr":
            rows, thresholds_db = CQI_TABLE[3:14], NR_THRESHOLDS_DB
        steps = np.array([0.0, *(efficiency(*row) for row in rows)])
        found: Floats = steps[np.searchsorted(10 ** (np.array(thresholds_db) / 10), snr, side="right")]
        return found

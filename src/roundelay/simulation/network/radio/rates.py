"""Rate maps: which spectral efficiency, in bit/s/Hz, a signal-to-noise ratio allows.

Sources: 3GPP TS 38.214, Tables 5.2.2.1-2 (CQI) and 5.1.3.1-1 (MCS); TR 36.942, A.2 (truncated Shannon); G. Piro et
al., "An LTE module for the ns-3 network simulator", SIMUTools 2011 (the gap that follows from a bit error rate).
Efficiencies are computed from modulation order and code rate: printed copies of the tables carry typing errors.

A UE whose power is its limit may be faster in a part of its band than in all of it, where a rate map has a step: with
the first row of a table just out of reach, nothing gets through. ``narrowed`` is the rate where it uses the best part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from roundelay.simulation.network.checks import check_choice, check_number
from roundelay.simulation.network.draws import Floats
from roundelay.simulation.network.radio.band import shannon_band_hz

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


@runtime_checkable
class Narrowing(Protocol):
    """A rate map that knows which part of a band is best; one's own need not."""

    def efficiency(self, snr: Floats) -> Floats: ...

    def narrowed(self, snr: Floats, ceiling: Floats) -> Floats:
        """Return bit/s for each hertz of the whole band, of which the UE may use a part, the rest staying silent.

        ``snr`` is that of all its power in the whole band; in a share s of it, it has ``min(snr / s, ceiling)``.
        """
        ...

    def band_hz(self, bps: Floats, snr_hz: Floats, ceiling: Floats) -> Floats:
        """Return the least band that carries these rates, where a band b has ``min(snr_hz / b, ceiling)``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shannon:
    """log2(1 + snr): what no link exceeds."""

    def efficiency(self, snr: Floats) -> Floats:
        return _shannon(snr)

    def narrowed(self, snr: Floats, ceiling: Floats) -> Floats:
        return self.efficiency(np.minimum(snr, ceiling))

    def band_hz(self, bps: Floats, snr_hz: Floats, ceiling: Floats) -> Floats:
        return np.maximum(shannon_band_hz(bps, snr_hz), _band_of(bps, self.efficiency(ceiling)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Shannon at an SNR ``gap_db`` lower, up to ``max_efficiency``. The defaults are close to a real NR link."""

    gap_db: float = 2.0
    max_efficiency: float = 5.5547

    def __post_init__(self) -> None:
        check_number(self, "gap_db", least=0)
        check_number(self, "max_efficiency", above=0)

    def efficiency(self, snr: Floats) -> Floats:
        return np.minimum(self.max_efficiency, _shannon(snr / 10 ** (self.gap_db / 10)))

    def narrowed(self, snr: Floats, ceiling: Floats) -> Floats:
        return self.efficiency(np.minimum(snr, ceiling))

    def band_hz(self, bps: Floats, snr_hz: Floats, ceiling: Floats) -> Floats:
        within_power = shannon_band_hz(bps, snr_hz / 10 ** (self.gap_db / 10))
        return np.maximum(within_power, _band_of(bps, self.efficiency(ceiling)))


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
        bits = np.minimum(self.max_efficiency, self.attenuation * _shannon(snr))
        return np.where(snr >= self._least, bits, 0.0)

    def narrowed(self, snr: Floats, ceiling: Floats) -> Floats:
        share = np.minimum(1.0, snr / self._least)  # of the band, where it has the least SNR that counts
        return share * self.efficiency(np.minimum(np.maximum(snr, self._least), ceiling))

    def band_hz(self, bps: Floats, snr_hz: Floats, ceiling: Floats) -> Floats:
        bands = shannon_band_hz(bps / self.attenuation, snr_hz)
        widest = snr_hz / self._least
        bands = np.where(bands > widest * (1 + 1e-12), np.inf, bands)
        return np.maximum(bands, _band_of(bps, self.efficiency(ceiling)))

    @property
    def _least(self) -> float:
        return float(10 ** (self.min_snr_db / 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class CqiTable:
    """The best row of the CQI table whose block error rate is at most 10 %; nothing below the first.

    ``thresholds`` is "lte" (conservative, found in most papers) or "nr" (the NR uplink, from CQI 4 to 14).
    """

    thresholds: str = "lte"

    def __post_init__(self) -> None:
        check_choice(self, "thresholds", "lte", "nr")

    def efficiency(self, snr: Floats) -> Floats:
        table = self._table
        found: Floats = table.steps[np.searchsorted(table.thresholds, snr, side="right")]
        return found

    def narrowed(self, snr: Floats, ceiling: Floats) -> Floats:
        table = self._table
        here = np.searchsorted(table.thresholds, np.minimum(snr, ceiling), side="right")
        highest = np.searchsorted(table.thresholds, ceiling, side="right")
        bits: Floats = np.maximum(table.steps[here], table.slopes[here, highest] * snr)
        return bits

    def band_hz(self, bps: Floats, snr_hz: Floats, ceiling: Floats) -> Floats:
        thresholds, steps = self._table.thresholds, self._table.steps
        carried = snr_hz[:, None] / thresholds * steps[1:]  # by each row, where its band is as wide as it may be
        usable = (carried >= bps[:, None] * (1 - 1e-12)) & (ceiling[:, None] >= thresholds)
        return _band_of(bps, np.max(np.where(usable, steps[1:], 0.0), axis=1))

    @property
    def _table(self) -> "_Table":
        return _LTE if self.thresholds == "lte" else _NR


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Linear thresholds (n,); ``steps`` (n + 1,), the efficiencies below the first and from each on; and ``slopes``
    [here, highest], the best rate per hertz of the rows above ``here`` up to ``highest``, over the whole band's SNR.
    """

    thresholds: Floats
    steps: Floats
    slopes: Floats

    @staticmethod
    def of(rows: Sequence[tuple[int, int]], thresholds_db: Sequence[float]) -> "_Table":
        thresholds = 10 ** (np.array(thresholds_db) / 10)
        steps = np.array([0.0, *(efficiency(*row) for row in rows)])
        slopes = np.zeros((len(steps), len(steps)))
        for row in range(len(thresholds)):  # a higher row k fills a share snr / threshold_k of the band
            slopes[row, row + 1 :] = np.maximum.accumulate(steps[row + 1 :] / thresholds[row:])
        return _Table(thresholds, steps, slopes)


_LTE = _Table.of(CQI_TABLE, LTE_THRESHOLDS_DB)
_NR = _Table.of(CQI_TABLE[3:14], NR_THRESHOLDS_DB)


def _shannon(snr: Floats) -> Floats:
    bits: Floats = np.log1p(snr) / math.log(2)
    return bits


def _band_of(bps: Floats, efficiency: Floats) -> Floats:
    bits = np.broadcast_to(efficiency, bps.shape)
    return np.where(bps <= 0, 0.0, np.divide(bps, bits, out=np.full(bps.shape, np.inf), where=bits > 0))

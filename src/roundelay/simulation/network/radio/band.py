"""How much band a rate needs, where the power is what limits it."""

from collections.abc import Callable

import numpy as np

from roundelay.simulation.network.draws import Floats

_STEPS = 60


def lambert_excess(g: Floats) -> Floats:
    """Return t = -W_{-1}(-g e^-g) - g for 0 < g < 1: how far the lower branch of Lambert's W lies beyond -g.

    It is the positive root of t = ln(1 + t/g), which is better conditioned than W itself near its branch point, g = 1.
    Newton's steps from above never overshoot, since the function is convex. They begin at a bound of I. Chatzigeorgiou,
    "Bounds on the Lambert function", IEEE Communications Letters 17 (2013), theorem 1.
    """
    u = np.maximum(g - 1 - np.log(g), 0.0)
    t: Floats = np.maximum(1 + np.sqrt(2 * u) + u - g, 2 * (1 - g))
    for _ in range(_STEPS):
        step = (t - np.log1p(t / g)) * (g + t) / (g + t - 1)
        t = t - step
        if np.all(np.abs(step) <= 4e-16 * t):
            break
    return t


def shannon_band_hz(rate_bps: Floats, snr_hz: Floats) -> Floats:
    """Return the b that solves ``rate = b log2(1 + snr_hz / b)``: the least band for a rate, as Shannon has it.

    ``snr_hz`` is received power over noise density, P |h|^2 / N0, in Hz. However wide the band, no more than
    ``snr_hz / ln 2`` bit/s come through: for such a rate the answer is infinity.
    """
    rate, snr = np.broadcast_arrays(np.asarray(rate_bps, dtype=np.float64), np.asarray(snr_hz, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        g = rate * np.log(2) / snr
    reachable = (g > 0) & (g < 1)
    bands = np.where(rate > 0, np.inf, 0.0)
    excess = lambert_excess(g[reachable])
    bands[reachable] = rate[reachable] * np.log(2) / excess
    return bands


def bisected_band_hz(bps_in: Callable[[Floats], Floats], rate_bps: Floats, most_hz: float) -> Floats:
    """Return the least bands up to ``most_hz`` that carry these rates, for any form of rate that ascends."""
    low, high = np.zeros_like(rate_bps), np.full_like(rate_bps, most_hz)
    reachable = bps_in(high) >= rate_bps
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = bps_in(middle) >= rate_bps
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(rate_bps <= 0, 0.0, np.where(reachable, high, np.inf))

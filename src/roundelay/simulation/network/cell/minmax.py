"""The split of a band with which the last of several known flows ends soonest (Yang et al., IEEE TWC 2021)."""

from collections.abc import Callable

import numpy as np

from roundelay.simulation.network.cell.rates import Floats, Ints

Bps = Callable[[Ints, Floats], Floats]
"""``bps(rows, bands_hz)``: the rates of some of the flows, each in a band."""

BandHz = Callable[[Ints, Floats], Floats]
"""``band_hz(rows, bps)``: the bands in which they have these rates; infinity where there is none."""

HALVINGS = 50


def min_max_bands(
    bps: Bps, bits: Floats, ready_s: Floats, bandwidth_hz: float, band_hz: BandHz | None = None
) -> tuple[Floats, float]:
    """Return each flow's band, and after how many seconds the last one ends in it.

    Flow i has ``bits[i]`` to send and begins after ``ready_s[i]``; rates stand still. It is never later than with equal
    parts of the band: where rates fall with more band, against the rules, equal parts are what is returned. A flow that
    has no rate in an equal part gets no band, and does not count: it waits for a better moment.
    """
    bands, rows = np.zeros(len(bits)), np.arange(len(bits))
    while len(rows):
        equal = np.full(len(rows), bandwidth_hz / len(rows))
        rates = bps(rows, equal)
        if rates.all():
            break
        rows = rows[rates > 0]
    if not len(rows):
        return bands, float("inf")
    bits, ready_s = bits[rows], ready_s[rows]
    latest = float((ready_s + bits / rates).max())
    needed = _needed(bps, rows, bandwidth_hz) if band_hz is None else (lambda rates: band_hz(rows, rates))
    low, high = float(ready_s.max()), latest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if needed(bits / (middle - ready_s)).sum() <= bandwidth_hz:
            high = middle
        else:
            low = middle
    split = needed(bits / (high - ready_s)) if high > ready_s.max() else equal
    if np.isfinite(split).all() and 0 < split.sum() <= bandwidth_hz:
        split *= bandwidth_hz / split.sum()
        ends = float((ready_s + bits / np.maximum(bps(rows, split), 1e-300)).max())
        if ends <= latest:
            equal, latest = split, ends
    bands[rows] = equal
    return bands, latest


def _needed(bps: Bps, rows: Ints, bandwidth_hz: float) -> Callable[[Floats], Floats]:
    """Return the inverse of the rates, by halving; infinity where the whole band is not enough."""

    def needed(rates: Floats) -> Floats:
        low, high = np.zeros(len(rows)), np.full(len(rows), bandwidth_hz)
        enough = bps(rows, high) >= rates
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            reached = bps(rows, middle) >= rates
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.where(enough, high, np.inf)

    return needed

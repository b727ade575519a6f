"""Shadowing as a field over the ground: UEs close to each other stand in the same shadow.

A Gaussian field of mean 0, variance 1 and correlation exp(-distance / correlation_m) (TR 38.901, 7.4.4), as a sum of
plane waves: frequencies drawn from the spectrum of that correlation, which in two dimensions is a Cauchy distribution,
with Gaussian amplitudes (random Fourier features: A. Rahimi, B. Recht, NIPS 2007). A Cholesky factor of the UEs'
covariance would be exact, but not the same field once a UE is added, and out of reach for 10,000; this one is a
function of the place alone. At each point it is exactly Gaussian; the correlation of two points is that of the TR but
for a deviation of about 1 / sqrt(``WAVES``), the same for all pairs at one distance and direction.
"""

import numpy as np

from roundelay import seeds
from roundelay.simulation.network.draws import Floats, Keys, normals, uniforms

WAVES = 1024
_ROWS = 512


def shadows(seed: int, name: str, xy_m: Floats, correlation_m: float) -> Floats:
    """Return the field called ``name`` at points (n, 2): values of standard deviation one, shape (n,)."""
    keys: Keys = np.full(WAVES, seeds.key(seed, 0, 0, "", f"shadow-{name}") & (2**64 - 1), dtype=np.uint64)
    number = np.arange(WAVES)
    rank = (number + uniforms(keys, number, 0)) / WAVES  # one frequency from each WAVES-th part of the spectrum
    radius = np.sqrt(1 / (1 - rank) ** 2 - 1) / correlation_m
    angle = 2 * np.pi * uniforms(keys, number, 1)
    kx, ky = radius * np.cos(angle), radius * np.sin(angle)
    a, b = (normals(keys, number, lane) / np.sqrt(WAVES) for lane in (2, 3))
    values = np.empty(len(xy_m))
    for start in range(
        0, len(xy_m), _ROWS
    ):  # products and sums by row, no matrix product: BLAS' bits hang on the shape
        block = slice(start, start + _ROWS)
        phase = xy_m[block, 0, None] * kx + xy_m[block, 1, None] * ky
        values[block] = (a * np.cos(phase) + b * np.sin(phase)).sum(axis=1)
    return values

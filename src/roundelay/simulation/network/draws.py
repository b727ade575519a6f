"""Keyed draws for many clients at once.

A draw is a function of a client's key, a number (a fading block, a task) and a lane (which of several draws of that
number). There is no generator and no state: who else is there, and in which order draws are asked for, changes none of
them, and one client alone gets the bits that it gets among 10,000. The hash is the finalizer of splitmix64 (G. Steele,
D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014), applied twice.

Uniform numbers become others by the inverse of the distribution function, so that two settings under one seed see the
same luck. Integers, ``+ - * /`` and square roots alone are used, which IEEE 754 fixes to the bit: numpy's own logarithm
differs in its last bit from processor to processor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roundelay import seeds

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]
Numbers = int | NDArray[np.integer]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LANE = 0xD1B54A32D192ED03  # odd, and far from the multiples of the golden one: lanes and numbers do not meet
_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # their sum is ln 2, the first with zeros at its end


def client_keys(seed: int, clients: Sequence[str], purpose: str) -> Keys:
    """Return a 64-bit key for each client: what its draws for one purpose follow from."""
    return np.array([seeds.key(seed, 0, 0, client, purpose) & _MASK for client in clients], dtype=np.uint64)


def uniforms(keys: Keys, number: Numbers = 0, lane: int = 0) -> Floats:
    """Return one number in the open interval (0, 1) for each key; ``number`` is one for all, or one a key."""
    numbers = np.atleast_1d(number).astype(np.uint64) * np.uint64(_GOLDEN)  # of arrays: of a scalar, numpy warns
    mixed = _mix(numbers + np.uint64((lane + 1) * _LANE & _MASK))
    bits = _mix(_mix(np.atleast_1d(keys) ^ mixed) + keys)
    drawn: Floats = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return drawn


def exponentials(keys: Keys, number: Numbers = 0, lane: int = 0) -> Floats:
    """Return draws from the exponential distribution of mean one."""
    return -log(uniforms(keys, number, lane))


def normals(keys: Keys, number: Numbers = 0, lane: int = 0) -> Floats:
    """Return draws from the standard normal distribution."""
    return normal_quantile(uniforms(keys, number, lane))


def log(values: Floats) -> Floats:
    """Return natural logarithms of positive numbers, to about one unit in the last place; the same bits everywhere."""
    mantissa, exponent = np.frexp(values)
    small = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(small, mantissa * 2, mantissa), exponent - small
    s = (mantissa - 1) / (mantissa + 1)  # ln m = 2 artanh s, and |s| < 0.172
    square, total = s * s, np.zeros_like(s)
    for odd in range(21, 1, -2):
        total = (total + 1 / odd) * square
    logarithms: Floats = exponent * _LN2_HIGH + (2 * s + (2 * s * total + exponent * _LN2_LOW))
    return logarithms


def normal_quantile(p: Floats) -> Floats:
    """Return the inverse of the standard normal distribution function, to about 1e-15 relative.

    M. Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics 37 (1988),
    PPND16.
    """
    centred = p - 0.5
    r = 0.180625 - centred * centred
    middle = centred * _ratio(r, *_CENTRE)
    tail = np.sqrt(-log(np.minimum(p, 1 - p)))
    near = _ratio(tail - 1.6, *_NEAR)
    far = _ratio(tail - 5.0, *_FAR)
    outside = np.copysign(np.where(tail <= 5, near, far), centred)
    quantiles: Floats = np.where(np.abs(centred) <= 0.425, middle, outside)
    return quantiles


def _mix(bits: Keys) -> Keys:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _ratio(x: Floats, above: Sequence[float], below: Sequence[float]) -> Floats:
    top, bottom = np.full_like(x, above[-1]), np.full_like(x, below[-1])
    for a, b in zip(above[-2::-1], below[-2::-1], strict=True):
        top, bottom = top * x + a, bottom * x + b
    ratios: Floats = top / bottom
    return ratios


_CENTRE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
_NEAR = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FAR = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
     0.0265321895265761230930, 0.00124266094738807843860, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip

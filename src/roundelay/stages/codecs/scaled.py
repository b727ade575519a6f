"""Whole numbers of levels, relative to a scale for each block of a vector: what INT8, QSGD and TernGrad have in common.

A value x of a block with scale c >= max|x| is t = s x/c levels, rounded to a whole number q of -s .. s, and decoded as
c q/s. Stochastic rounding takes floor(t) + [u < f] with f = t - floor(t): unbiased, its variance (c/s)^2 f(1-f).

How exact that is: u has 31 bits, and the comparison is one of float32, so that P(up) differs from f by no more than
2^-31 or, where that is more, 2^-25; t itself has two roundings of float32. So the mean is off by less than
2^-22 |x| + 2^-24 c/s.
"""

import numpy as np

from roundelay.stages.codecs.vectors import PIECE, Codes, Doubles, Floats, num_blocks, pieces, width


def largest(x: Floats, block: int | None) -> Floats:
    """Return max|x| of each block."""
    found = np.zeros(num_blocks(len(x), block), np.float32)
    magnitudes = np.empty(PIECE, np.float32)
    for piece in pieces(len(x), width(len(x), block)):
        rows = np.abs(x[piece.span], out=magnitudes[: piece.size]).reshape(piece.shape)
        found[piece.blocks] = np.maximum(found[piece.blocks], rows.max(axis=1))
    return found


def sums(x: Floats, block: int | None, power: int) -> Doubles:
    """Return the sum of |x|^power of each block, for power 1 or 2, in doubles, where float32's squares are exact.

    Sums of what is not negative are monotonic in each term: the root of that of squares, rounded, is at least max|x|.
    """
    return _added(x, block, np.abs if power == 1 else np.square)


def totals(x: Floats, block: int | None) -> Doubles:
    """Return the sum of each block."""
    return _added(x, block, np.positive)


def _added(x: Floats, block: int | None, change: np.ufunc) -> Doubles:
    found = np.zeros(num_blocks(len(x), block))
    terms = np.empty(PIECE)
    for piece in pieces(len(x), width(len(x), block)):
        rows = change(x[piece.span], out=terms[: piece.size], dtype=np.float64).reshape(piece.shape)
        found[piece.blocks] += rows.sum(axis=1)
    return found


def norms(x: Floats, block: int | None) -> Floats:
    """Return the length of each block, at most float32's largest number: that too is at least max|x|."""
    return np.minimum(np.sqrt(sums(x, block, 2)), np.finfo(np.float32).max).astype(np.float32)


def quantised(x: Floats, scales: Floats, block: int | None, levels: int, bits: np.random.Philox | None) -> Codes:
    """Return q + s for each value, clamped to 0 .. 2s; to the nearest where there are no random ``bits``."""
    codes = np.empty(len(x), np.uint8 if levels <= 127 else np.uint16)
    divisors = np.where(scales > 0, scales, np.float32(1))
    terms, floors, draws = (np.empty(PIECE, np.float32) for _ in range(3))
    ups = np.empty(PIECE, np.bool_)
    for piece in pieces(len(x), width(len(x), block)):
        n = piece.size
        t = terms[:n]
        rows = t.reshape(piece.shape)
        np.divide(x[piece.span].reshape(piece.shape), divisors[piece.blocks, None], out=rows)
        t *= np.float32(levels)  # after the division: s/c overflows where c is denormal
        np.clip(t, -levels, levels, out=t)
        if bits is None:
            np.rint(t, out=t)
            t += np.float32(levels)
            np.copyto(codes[piece.span], t, casting="unsafe")
            continue
        low = np.floor(t, out=floors[:n])
        t -= low
        t *= np.float32(2**31)
        words = bits.random_raw((n + 1) // 2).view(np.int32)[:n]
        words &= np.int32(2**31 - 1)
        u = draws[:n]
        np.copyto(u, words, casting="unsafe")
        np.less(u, t, out=ups[:n])
        low += np.float32(levels)
        np.copyto(codes[piece.span], low, casting="unsafe")
        part = codes[piece.span]
        np.add(part, ups[:n].view(np.uint8), out=part)
    return codes


def restored(codes: Codes, scales: Floats, block: int | None, levels: int) -> Floats:
    """Return c q/s. The quotient comes first, being at most 1: nothing overflows."""
    x = np.empty(len(codes), np.float32)
    for piece in pieces(len(x), width(len(x), block)):
        part = x[piece.span]
        np.copyto(part, codes[piece.span], casting="unsafe")
        part -= np.float32(levels)
        part /= np.float32(levels)
        part.reshape(piece.shape)[:] *= scales[piece.blocks, None]
    return x

"""A random rotation that costs n log n additions: Hadamard's matrix after random signs."""

from collections.abc import Iterator

import numpy as np

from roundelay.stages.codecs.vectors import Floats

MOST, LEAST = 2**16, 2**9
"""The longest block, and the shortest one that is cut off a rest: shorter rests are padded to a power of two."""


def blocks(length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, size): a vector as blocks of 2^16, then one for each binary digit of the rest down to 2^9,
    then what is left, padded. So fewer than 2^8 values are added in all.
    """
    start, size = 0, MOST
    while start < length:
        left = length - start
        while size > left and size > LEAST:
            size //= 2
        if left < size:
            size = 2 ** (left - 1).bit_length()
        yield start, min(start + size, length), size
        start += size


def padded_length(length: int) -> int:
    """Return how many values all blocks hold."""
    return sum(size for _, _, size in blocks(length))


def flip(x: Floats, bits: np.random.Philox) -> None:
    """Change the signs of a block by random bits, in place; once more with the same bits changes them back."""
    words = bits.random_raw(-(-len(x) // 64)).astype("<u8")
    signs = np.unpackbits(words.view(np.uint8), count=len(x), bitorder="little").astype(np.uint32)
    signs <<= np.uint32(31)
    x.view(np.uint32)[:] ^= signs


def transform(x: Floats, other: Floats) -> Floats:
    """Return H x, in the memory of ``x`` or of ``other``, both of which change; n = 2^m values.

    H is Hadamard's matrix (entries 1 and -1) with its rows in another order: values lie in a matrix of 2^(m//2) rows,
    its columns are transformed, then its rows, and the result lies transposed. ``inverse`` undoes it, up to n.
    """
    m = len(x).bit_length() - 1
    return _both(x, other, 2 ** (m // 2), 2 ** (m - m // 2))


def inverse(x: Floats, other: Floats) -> Floats:
    """Return n times what ``transform`` made ``x`` of, in the memory of either."""
    m = len(x).bit_length() - 1
    return _both(x, other, 2 ** (m - m // 2), 2 ** (m // 2))


def _both(x: Floats, other: Floats, rows: int, columns: int) -> Floats:
    x, other = _columns(x, other, rows, columns)
    np.copyto(other.reshape(columns, rows), x.reshape(rows, columns).T)
    return _columns(other, x, columns, rows)[0]


def _columns(x: Floats, other: Floats, rows: int, columns: int) -> tuple[Floats, Floats]:
    """Transform every column: whole rows are added at a time, as fast as memory gives them."""
    half = rows // 2
    while half:
        now, then = (a.reshape(rows // (2 * half), 2, half * columns) for a in (x, other))
        np.add(now[:, 0], now[:, 1], out=then[:, 0])
        np.subtract(now[:, 0], now[:, 1], out=then[:, 1])
        x, other, half = other, x, half // 2
    return x, other

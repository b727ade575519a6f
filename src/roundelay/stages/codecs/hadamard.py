"""A random rotation that costs n log n additions: Hadamard's matrix after random signs, twice."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from roundelay.stages.codecs.vectors import Floats

MOST, LEAST = 2**16, 2**8
"""The longest block and the shortest. In shorter ones a rotation of signs and sums is not like one among all."""


def blocks(length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, size): a vector as blocks of 2^16, then one for each binary digit of the rest, down to 2^8,
    to which what is left is padded: fewer than 2^8 values are added in all.
    """
    start, size = 0, MOST
    while start < length:
        left = length - start
        while size > left and size > LEAST:
            size //= 2
        yield start, min(start + size, length), size
        start += size


def padded_length(length: int) -> int:
    """Return how many values all blocks hold."""
    return sum(size for _, _, size in blocks(length))


def rotated(x: Floats, other: Floats, bits: np.random.Philox) -> Floats:
    """Return H D' H D x/sqrt(n), where D and D' are random signs, in the memory of ``x`` or of ``other``.

    Twice, because one time leaves a vector of which few values are large in a few places: after H D, a single value
    becomes n of one magnitude, which no codec of signs can tell from any other n of one magnitude.
    """
    first, second = _signs(len(x), bits), _signs(len(x), bits)
    _flip(x, first)
    once = transform(x, other)
    _flip(once, second)
    once *= np.float32(len(x) ** -0.5)
    return transform(once, other if once is x else x)


def rotated_back(x: Floats, other: Floats, bits: np.random.Philox) -> Floats:
    """Return n times what ``rotated`` made ``x`` of with the same bits, in the memory of either."""
    first, second = _signs(len(x), bits), _signs(len(x), bits)
    once = inverse(x, other)
    _flip(once, second)
    once *= np.float32(len(x) ** -0.5)
    back = inverse(once, other if once is x else x)
    _flip(back, first)
    return back


def _signs(n: int, bits: np.random.Philox) -> npt.NDArray[np.uint32]:
    words = bits.random_raw(-(-n // 64)).astype("<u8")
    signs = np.unpackbits(words.view(np.uint8), count=n, bitorder="little").astype(np.uint32)
    signs <<= np.uint32(31)
    return signs


def _flip(x: Floats, signs: npt.NDArray[np.uint32]) -> None:
    turned = x.view(np.uint32)
    np.bitwise_xor(turned, signs, out=turned)


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

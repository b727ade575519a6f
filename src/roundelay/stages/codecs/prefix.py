"""Numbers of variable length: Golomb-Rice codes of gaps between indices, and Elias gamma codes.

Every code is a unary part and bits. Here the unary parts of all come first, then the bits of all (or the other way
round), which is as long and can be read at once. In a unary part, n is n zeros and a one.

Sources: S. W. Golomb, "Run-length encodings", 1966; R. F. Rice, 1979; P. Elias, "Universal codeword sets", 1975; the
best parameter for indices: F. Sattler et al., "Robust and Communication-Efficient Federated Learning from Non-IID
Data", 2019, equations 17 and 18.
"""

import math

import numpy as np

from roundelay.errors import WireError
from roundelay.stages.codecs.packing import pack, packed_bytes, unpack
from roundelay.stages.codecs.vectors import Bytes, Integers

PHI = (1 + math.sqrt(5)) / 2


def rice_bits(share: float) -> int:
    """Return the parameter that is best for gaps between indices of which each is taken with probability ``share``."""
    if share >= 1:
        return 0
    return max(0, 1 + math.floor(math.log2(math.log(PHI - 1) / math.log1p(-share))))


def rice_size(gaps: Integers, bits: int) -> int:
    """Return how many bytes ``pack_rice`` makes."""
    return packed_bits(len(gaps), bits) + -(-(int((gaps >> bits).sum()) + len(gaps)) // 8)


def rice_limit(count: int, length: int, bits: int) -> int:
    """Return what the codes of ``count`` indices below ``length`` never exceed, in bytes."""
    return packed_bits(count, bits) + -(-(count + (length - count >> bits)) // 8)


def packed_bits(count: int, bits: int) -> int:
    """Return how many bytes ``count`` numbers of up to 32 bits have, of which 16 make a stream."""
    return sum(packed_bytes(count, part) for part in _parts(bits))


def pack_bits(numbers: Integers, bits: int) -> Bytes:
    """Return numbers less than 2^bits, ``bits`` from 0 to 32: the lower 16 bits of all, then the upper ones."""
    streams = [
        pack(((numbers >> 16 * i) & (2**part - 1)).astype(np.uint16), part) for i, part in enumerate(_parts(bits))
    ]
    return np.concatenate(streams) if streams else np.empty(0, np.uint8)


def unpack_bits(packed: Bytes, bits: int, count: int) -> Integers:
    """Undo ``pack_bits``; raises as ``unpack`` does."""
    numbers = np.zeros(count, np.int64)
    at = 0
    for i, part in enumerate(_parts(bits)):
        size = packed_bytes(count, part)
        numbers |= unpack(packed[at : at + size], part, count).astype(np.int64) << 16 * i
        at += size
    return numbers


def _parts(bits: int) -> list[int]:
    return [min(16, bits - start) for start in range(0, bits, 16)]


def gaps_of(indices: Integers) -> Integers:
    """Return how many indices are left out before each."""
    return np.diff(indices, prepend=-1) - 1


def indices_of(gaps: Integers, length: int) -> Integers:
    """Undo ``gaps_of``.

    Raises:
        WireError: an index is not below ``length``.
    """
    if len(gaps) and (int(gaps.max()) >= length or int(gaps.sum()) + len(gaps) > length):
        raise WireError(f"an index is not below {length}")
    return np.cumsum(gaps + 1) - 1


def pack_rice(gaps: Integers, bits: int) -> Bytes:
    """Return the low ``bits`` bits of every gap, then what is above them in unary."""
    return np.concatenate([pack_bits(gaps & (2**bits - 1), bits), pack_unary(gaps >> bits)])


def unpack_rice(packed: Bytes, bits: int, count: int) -> Integers:
    """Return ``count`` gaps, which are all of the bytes.

    Raises:
        WireError: they are not.
    """
    low = packed_bits(count, bits)
    if len(packed) < low:
        raise WireError(f"{count} gaps are at least {low} bytes, got {len(packed)}")
    above, used = unpack_unary(packed[low:], count)
    if low + used != len(packed):
        raise WireError(f"{len(packed) - low - used} bytes too many after {count} gaps")
    return (above << bits) | unpack_bits(packed[:low], bits, count)


def pack_unary(numbers: Integers) -> Bytes:
    """Return n zeros and a one for each number."""
    ends = np.cumsum(numbers + 1) - 1
    marks = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.bool_)
    marks[ends] = True
    return np.packbits(marks, bitorder="little")


def unpack_unary(packed: Bytes, count: int) -> tuple[Integers, int]:
    """Return ``count`` numbers from the front, and how many bytes they took.

    Raises:
        WireError: there are not so many, or bits after the last are set.
    """
    if count == 0:
        return np.empty(0, np.int64), 0
    ones = np.cumsum(ONES[packed], dtype=np.int64)
    if not len(ones) or ones[-1] < count:
        raise WireError(f"expected {count} unary numbers, got {int(ones[-1]) if len(ones) else 0}")
    used = int(np.searchsorted(ones, count)) + 1
    ends = np.flatnonzero(np.unpackbits(packed[:used], bitorder="little"))
    if len(ends) != count:
        raise WireError(f"bits after the last of {count} unary numbers are set")
    return np.diff(ends, prepend=-1) - 1, used


ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
"""How many bits of a byte are set."""


def gamma_size(numbers: Integers) -> int:
    """Return how many bytes ``pack_gamma`` makes."""
    tails = int(_lengths(numbers).sum())
    return -(-(tails + len(numbers)) // 8) + -(-tails // 8)


def pack_gamma(numbers: Integers) -> Bytes:
    """Return Elias gamma codes of numbers from 1 to 2^32: floor(log2 n) in unary, then so many low bits of n."""
    lengths = _lengths(numbers)
    starts = np.cumsum(lengths) - lengths
    tails = np.zeros(int(lengths.sum()), np.bool_)
    for size in range(1, int(lengths.max(initial=0)) + 1):
        chosen = np.flatnonzero(lengths >= size)
        tails[starts[chosen] + size - 1] = (numbers[chosen] >> size - 1) & 1
    return np.concatenate([pack_unary(lengths), np.packbits(tails, bitorder="little")])


def unpack_gamma(packed: Bytes, count: int) -> tuple[Integers, int]:
    """Return ``count`` numbers from the front, and how many bytes they took.

    Raises:
        WireError: there are not so many, one is 2^33 or more, or bits after the last are set.
    """
    lengths, used = unpack_unary(packed, count)
    if lengths.max(initial=0) > 32:
        raise WireError(f"a number has {int(lengths.max()) + 1} bits, more than 33")
    total = int(lengths.sum())
    size = -(-total // 8)
    if len(packed) < used + size:
        raise WireError(f"{count} numbers are {used + size} bytes, got {len(packed)}")
    bits = np.unpackbits(packed[used : used + size], bitorder="little")
    if bits[total:].any():
        raise WireError(f"bits after the last of {count} numbers are set")
    starts = np.cumsum(lengths) - lengths
    numbers = np.int64(1) << lengths
    for size_ in range(1, int(lengths.max(initial=0)) + 1):
        chosen = np.flatnonzero(lengths >= size_)
        numbers[chosen] |= bits[starts[chosen] + size_ - 1].astype(np.int64) << size_ - 1
    return numbers, used + size


def _lengths(numbers: Integers) -> Integers:
    """Return floor(log2 n), exactly: doubles hold such numbers."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1

"""Numbers of a fixed width, packed without gaps, and three-valued ones, five to a byte.

Code i of a width of at most 8 bits is bits i*width .. of the stream, lowest first. Wider codes are two such streams:
all low bytes, then all that is above them. Everything works on whole words: eight codes come together in three steps.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from roundelay.errors import WireError
from roundelay.stages.codecs.vectors import PIECE, Bytes, Codes

Words = npt.NDArray[Any]  # Any: unsigned integers of any width
HALVES = ((np.dtype("<u2"), 8), (np.dtype("<u4"), 16), (np.dtype("<u8"), 32))
"""Words of two, four and eight codes, and where the upper half of each begins before it is moved down."""


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` codes of ``bits`` bits have."""
    if bits > 8:
        return count + packed_bytes(count, bits - 8)
    return -(-count * bits // 8)


def pack(codes: Codes, bits: int) -> Bytes:
    """Return codes, each less than 2^bits, without gaps; ``bits`` from 1 to 16."""
    if bits > 8:
        low, high = (codes & 0xFF).astype(np.uint8), (codes >> 8).astype(np.uint8)
        return np.concatenate([low, pack(high, bits - 8)])
    codes = np.ascontiguousarray(codes, np.uint8)
    if bits == 8:
        return codes
    if bits == 1:
        return np.packbits(codes, bitorder="little")
    packed: Bytes = np.empty(-(-len(codes) // 8) * bits, np.uint8)
    for start in range(0, len(codes), PIECE):
        part = codes[start : start + PIECE]
        if len(part) % 8:
            part = np.concatenate([part, np.zeros(-len(part) % 8, np.uint8)])
        packed[start // 8 * bits : (start + len(part)) // 8 * bits] = _gathered(part, bits)
    return packed[: packed_bytes(len(codes), bits)]


def unpack(packed: Bytes, bits: int, count: int) -> Codes:
    """Return ``count`` codes.

    Raises:
        WireError: there are more or fewer bytes, or a bit after the last code is set.
    """
    if len(packed) != packed_bytes(count, bits):
        raise WireError(f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes, got {len(packed)}")
    if bits > 8:
        codes = unpack(packed[count:], bits - 8, count).astype(np.uint16)
        codes <<= 8
        codes |= packed[:count]
        return codes
    if count * bits % 8 and packed[-1] >> (count * bits % 8):
        raise WireError(f"bits after the last of {count} codes are set")
    if bits == 8:
        return packed
    if bits == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    codes = np.empty(-(-count // 8) * 8, np.uint8)
    step = PIECE // 8 * bits
    for start in range(0, len(packed), step):
        part = packed[start : start + step]
        if len(part) % bits:
            part = np.concatenate([part, np.zeros(-len(part) % bits, np.uint8)])
        codes[start // bits * 8 : (start + len(part)) // bits * 8] = _spread(part, bits)
    return codes[:count]


def _gathered(codes: Bytes, bits: int) -> Bytes:
    """Pack a multiple of eight codes: words of two, of four, of eight, their upper halves moved down each time."""
    words: Words = codes
    for dtype, half in HALVES:
        words = words.view(dtype)
        have = half // 8 * bits
        low, high = dtype.type(2**half - 1), dtype.type(2 ** (2 * half) - 2**half)
        words = (words & low) | ((words & high) >> dtype.type(half - have))
        if 2 * have == 8:
            return words.astype(np.uint8)
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)


def _spread(packed: Bytes, bits: int) -> Bytes:
    """Undo ``_gathered``."""
    if bits == 4 or bits == 2:
        words: Words = packed.astype(HALVES[0][0] if bits == 4 else HALVES[1][0])
        halves = HALVES[: 1 if bits == 4 else 2]
    else:
        wide = np.zeros((len(packed) // bits, 8), np.uint8)
        wide[:, :bits] = packed.reshape(-1, bits)
        words, halves = wide.reshape(-1).view(HALVES[2][0]), HALVES
    for dtype, half in reversed(halves):
        words = words.view(dtype)
        have = half // 8 * bits
        words = (words & dtype.type(2**have - 1)) | ((words >> dtype.type(have)) << dtype.type(half))
    return words.view(np.uint8)


def trit_bytes(count: int) -> int:
    """Return how many bytes ``count`` three-valued codes have."""
    return -(-count // 5)


def pack_trits(codes: Bytes) -> Bytes:
    """Return codes 0, 1 and 2, five to a byte: digit j of byte i, to the base 3, is code j*m + i, of m bytes in all."""
    m = trit_bytes(len(codes))
    padded = codes if len(codes) == 5 * m else np.concatenate([codes, np.zeros(5 * m - len(codes), np.uint8)])
    digits = padded.reshape(5, m)
    packed: Bytes = digits[4].copy()
    for j in (3, 2, 1, 0):
        packed *= np.uint8(3)
        packed += digits[j]
    return packed


def unpack_trits(packed: Bytes, count: int) -> Bytes:
    """Return ``count`` codes.

    Raises:
        WireError: there are more or fewer bytes, one is 243 or more, or a code after the last is not 0.
    """
    m = trit_bytes(count)
    if len(packed) != m:
        raise WireError(f"{count} three-valued codes are {m} bytes, got {len(packed)}")
    if m and packed.max() >= 243:
        raise WireError(f"no five three-valued codes are {packed.max()}")
    digits, left = np.empty((5, m), np.uint8), packed
    for j in range(4):
        third = left // np.uint8(3)
        np.subtract(left, third * np.uint8(3), out=digits[j])
        left = third
    digits[4] = left
    codes: Bytes = digits.reshape(-1)
    if codes[count:].any():
        raise WireError(f"codes after the last of {count} are not 0")
    return codes[:count]

"""DRIVE and EDEN: a vector is rotated at random, which makes its coordinates nearly normal, and those are quantised.

Sources: S. Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021; S. Vargaftik et al., "EDEN:
Communication-Efficient and Robust Distributed Mean Estimation for Federated Learning", ICML 2022; S. Lloyd, "Least
squares quantization in PCM", 1982, J. Max, 1960 (the centroids).

With R x the rotated block of n values and y = sqrt(n) R x, what is decoded is R^-1 q G/sqrt(n), where q are the
centroids next to y/|x| and G is the scale that travels: n |x|^2/<y, q> in EDEN and DRIVE, |y|_1/n in DRIVE with the
least error.

What is proven of them is proven for a rotation that is uniform among all. With any, <C, x> = |x|^2 always; the mean of
what is orthogonal to x is 0 for a uniform one. R is twice Hadamard's matrix after random signs: with it no bias could
be measured; with once, as is usual, a vector of two large values was off by 0.29 of its length (docs/codecs.md).

Format: a 64-bit seed; G of each block, float32; the codes, packed.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError, DataError
from roundelay.stages.codecs.hadamard import MOST, blocks, padded_length, rotated, rotated_back
from roundelay.stages.codecs.packing import pack, packed_bytes, unpack
from roundelay.stages.codecs.vectors import Floats, Reader, joined, new_seed, seeded_bits, values

LARGEST = 2.0**100
"""What values may not exceed, so that none of what is decoded does: it may be n times as large."""

CENTROIDS = {
    1: (0.7978845608,),
    2: (0.4527800346, 1.5104176085),
    3: (0.2450941789, 0.7560052812, 1.3439092785, 2.1519457045),
    4: (0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.6180463860, 2.0690172265, 2.7325895710),
}
"""The positive centroids of 2^bits cells of the normal distribution, of least mean square error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DRIVE:
    """Signs after a random rotation, a bit a value. |x - C|^2/|x|^2 is near pi/2 - 1 = 0.571 with the scale that is
    "unbiased", near 1 - 2/pi = 0.363 with the one of "least" error, which is for a single vector or error feedback.
    """

    scale: Literal["unbiased", "least"] = "unbiased"

    def __post_init__(self) -> None:
        if self.scale not in ("unbiased", "least"):
            raise ConfigError(f'DRIVE: scale must be "unbiased" or "least", got {self.scale!r}')

    @property
    def unbiased(self) -> bool:
        return self.scale == "unbiased"

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        return _encoded(vector, generator, (1.0,), self.scale == "least", "drive")

    def decode(self, data: Tensor, length: int) -> Tensor:
        return _decoded(data, length, (1.0,), "drive")

    def max_bytes(self, length: int) -> int:
        return _num_bytes(length, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EDEN:
    """Lloyd-Max cells of ``bits`` bits a value, from 1 to 4, after a random rotation. Unbiased; |x - C|^2/|x|^2 is near
    0.571, 0.133, 0.0358 and 0.0096.
    """

    bits: int = 2

    def __post_init__(self) -> None:
        if self.bits not in CENTROIDS:
            raise ConfigError(f"EDEN: bits must be a whole number from 1 to 4, got {self.bits!r}")

    @property
    def unbiased(self) -> bool:
        return True

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        return _encoded(vector, generator, CENTROIDS[self.bits], False, "eden")

    def decode(self, data: Tensor, length: int) -> Tensor:
        return _decoded(data, length, CENTROIDS[self.bits], "eden")

    def max_bytes(self, length: int) -> int:
        return _num_bytes(length, self.bits)


def _encoded(vector: Tensor, generator: torch.Generator, half: tuple[float, ...], least: bool, who: str) -> Tensor:
    x = values(vector, who)
    if not len(x):
        return joined(x)
    if (most := max(float(x.max()), -float(x.min()))) > LARGEST:
        raise DataError(f"{who}: expected values up to {LARGEST:g}, got {most:g}: did it diverge?")
    seed, table = new_seed(generator), _table(half)
    signs = seeded_bits(int(seed[0]))
    codes, scales, at = np.zeros(padded_length(len(x)), np.uint8), [], 0
    for start, stop, size in blocks(len(x)):
        block = np.zeros(size, np.float32)
        block[: stop - start] = x[start:stop]
        length = math.sqrt(np.square(block, dtype=np.float64).sum())
        y = rotated(block, np.empty_like(block), signs)
        part = codes[at : at + size]
        _cells(y, length, table, part)
        scales.append(_scale(y, table[part], length, least))
        at += size
    return joined(seed, np.array(scales, np.float32), pack(codes, _bits(half)))


def _cells(y: Floats, length: float, table: Floats, codes: np.typing.NDArray[np.uint8]) -> None:
    """Count the boundaries that each value of y/length is not below: each is midway between two centroids."""
    z = y / np.float32(length) if length and np.float32(length) else y
    for boundary in (table[1:] + table[:-1]) / 2:
        codes += (z >= boundary).view(np.uint8)


def _scale(y: Floats, q: Floats, length: float, least: bool) -> float:
    along = float(np.multiply(y, q, dtype=np.float64).sum())
    if not along:
        return 0.0
    return along / len(y) if least else len(y) * length * length / along


def _decoded(data: Tensor, length: int, half: tuple[float, ...], who: str) -> Tensor:
    reader = Reader(data, who)
    reader.expect(_num_bytes(length, _bits(half)), length)
    x = np.empty(length, np.float32)
    if not length:
        return torch.from_numpy(x)
    signs, table = seeded_bits(reader.word(8)), _table(half)
    scales = reader.scales(sum(1 for _ in blocks(length)))
    if scales.max() > 2.0**126:
        raise reader.wrong(f"a scale is {scales.max():g}, which no vector has")
    codes, at = unpack(reader.rest(), _bits(half), padded_length(length)), 0
    buffers = np.empty((2, MOST), np.float32)
    for scale, (start, stop, size) in zip(scales, blocks(length), strict=True):
        block, other = buffers[:, :size]
        np.take(table, codes[at : at + size], out=block, mode="clip")
        block = rotated_back(block, other, signs)
        block *= np.float32(1 / size)
        block *= scale
        x[start:stop] = block[: stop - start]
        at += size
    return torch.from_numpy(x)


def _table(half: tuple[float, ...]) -> Floats:
    """Return all centroids, in order."""
    return np.array([*(-c for c in reversed(half)), *half], np.float32)


def _bits(half: tuple[float, ...]) -> int:
    return len(half).bit_length()


def _num_bytes(length: int, bits: int) -> int:
    if not length:
        return 0
    return 8 + 4 * sum(1 for _ in blocks(length)) + packed_bytes(padded_length(length), bits)

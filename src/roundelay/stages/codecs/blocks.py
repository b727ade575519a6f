"""Eight bits a value, and a scale for each block of values: whole numbers, or the small floats of the OCP.

Format, in both: max|x| of each block, float32; then a byte for each value.

Sources: OCP 8-bit Floating Point Specification (OFP8), 2023: E4M3 ends at 448, E5M2 at 57344.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.stages.codecs.scaled import largest, quantised, restored
from roundelay.stages.codecs.vectors import (
    PIECE,
    Floats,
    Reader,
    check_block,
    joined,
    num_blocks,
    pieces,
    random_bits,
    values,
    width,
)

LEVELS = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """Levels -127 .. 127 of max|x|/127 in each block of ``block`` values: 8 + 32/block bits a value.

    Rounded to the "nearest", no error exceeds max|x|/254. "stochastic" is unbiased, no error exceeds max|x|/127, and
    the variance of a value is at most (max|x|/127)^2/4. A byte is the level plus 127.
    """

    block: int = 256
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        check_block(self, "block", self.block)
        if self.rounding not in ("nearest", "stochastic"):
            raise ConfigError(f'Int8: rounding must be "nearest" or "stochastic", got {self.rounding!r}')

    @property
    def unbiased(self) -> bool:
        return self.rounding == "stochastic"

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "int8")
        scales = largest(x, self.block)
        bits = random_bits(generator) if self.rounding == "stochastic" else None
        return joined(scales, quantised(x, scales, self.block, LEVELS, bits))

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "int8")
        reader.expect(self.max_bytes(length), length)
        scales, codes = reader.scales(num_blocks(length, self.block)), reader.take(length)
        if length and codes.max() > 2 * LEVELS:
            raise reader.wrong("a byte is 255, which is no level")
        return torch.from_numpy(restored(codes, scales, self.block, LEVELS))

    def max_bytes(self, length: int) -> int:
        return length + 4 * num_blocks(length, self.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class FP8:
    """Floats of 8 bits, "e4m3" or "e5m2", scaled so that max|x| of a block is their largest: 8 + 32/block bits a value.

    The error is at most 2^-4 (E4M3) or 2^-3 (E5M2) of a value, and below the least normal number half a step: max|x|
    times 2^-10/448 or 2^-17/57344.
    """

    format: Literal["e4m3", "e5m2"] = "e4m3"
    block: int = 256

    def __post_init__(self) -> None:
        check_block(self, "block", self.block)
        if self.format not in ("e4m3", "e5m2"):
            raise ConfigError(f'FP8: format must be "e4m3" or "e5m2", got {self.format!r}')

    @property
    def unbiased(self) -> bool:
        return False

    @property
    def dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn if self.format == "e4m3" else torch.float8_e5m2

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "fp8")
        scales = largest(x, self.block)
        divisors, most = np.where(scales > 0, scales, np.float32(1)), np.float32(torch.finfo(self.dtype).max)
        codes, terms = np.empty(len(x), np.uint8), np.empty(PIECE, np.float32)
        for piece in pieces(len(x), width(len(x), self.block)):
            t = terms[: piece.size]
            np.divide(x[piece.span].reshape(piece.shape), divisors[piece.blocks, None], out=t.reshape(piece.shape))
            t *= most  # no more than the largest number, so that the cast does not make a NaN of it
            codes[piece.span] = torch.from_numpy(t).to(self.dtype).view(torch.uint8).numpy()
        return joined(scales, codes)

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "fp8")
        reader.expect(self.max_bytes(length), length)
        scales, codes = reader.scales(num_blocks(length, self.block)), reader.take(length)
        numbers: Floats = torch.arange(256, dtype=torch.uint8).view(self.dtype).to(torch.float32).numpy()
        if not np.isfinite(numbers)[np.flatnonzero(np.bincount(codes, minlength=256))].all():
            raise reader.wrong("a byte is NaN or infinite")
        shares = numbers / np.float32(torch.finfo(self.dtype).max)
        x = np.empty(length, np.float32)
        for piece in pieces(length, width(length, self.block)):
            part = np.take(shares, codes[piece.span], out=x[piece.span], mode="clip")
            part.reshape(piece.shape)[:] *= scales[piece.blocks, None]
        return torch.from_numpy(x)

    def max_bytes(self, length: int) -> int:
        return length + 4 * num_blocks(length, self.block)

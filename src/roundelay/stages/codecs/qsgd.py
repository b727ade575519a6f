"""QSGD: levels of the vector's length, rounded at random.

Source: D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017.
Its s is ``num_levels``, its d the length of a bucket.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.stages.codecs.packing import pack, packed_bytes, unpack
from roundelay.stages.codecs.prefix import gamma_size, gaps_of, indices_of, pack_gamma, unpack_gamma
from roundelay.stages.codecs.scaled import norms, quantised, restored
from roundelay.stages.codecs.vectors import (
    Bytes,
    Codes,
    Reader,
    check_block,
    joined,
    num_blocks,
    random_bits,
    values,
)

DENSE, SPARSE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QSGD:
    """Levels -s .. s of |x|/s in each bucket, rounded at random: unbiased. The error's mean square, which is
    (|x|/s)^2 sum f(1-f) over the values' fractions f between two levels, is at most min(d/s^2, sqrt(d)/s) |x|^2.

    ``bits`` a value, sign included, are s = 2^(bits-1) - 1 levels; or give ``levels`` = s itself. Neither is 4 bits. A
    ``bucket`` of 0 makes the whole vector one.

    ``coding`` "fixed" takes that width for every value. "elias" takes fewer where most are 0: the places of the others
    (a bit for every value, or gamma codes of their distances, whichever is shorter), a sign and the gamma code of the
    level for each of them. The paper has omega codes, which are longer below 32.
    """

    bits: int | None = None
    levels: int | None = None
    bucket: int = 512
    coding: Literal["fixed", "elias"] = "fixed"

    def __post_init__(self) -> None:
        check_block(self, "bucket", self._block)
        if self.bits is not None and self.levels is not None:
            raise ConfigError(f"QSGD: give bits or levels, not both; got {self.bits!r} and {self.levels!r}")
        if self.bits is not None and self.bits not in range(2, 17):
            raise ConfigError(f"QSGD: bits must be a whole number from 2 to 16, got {self.bits!r}")
        if self.levels is not None and self.levels not in range(1, 2**15):
            raise ConfigError(f"QSGD: levels must be a whole number from 1 to {2**15 - 1}, got {self.levels!r}")
        if self.coding not in ("fixed", "elias"):
            raise ConfigError(f'QSGD: coding must be "fixed" or "elias", got {self.coding!r}')

    @property
    def num_levels(self) -> int:
        return 2 ** ((self.bits or 4) - 1) - 1 if self.levels is None else self.levels

    @property
    def width(self) -> int:
        """How many bits a value has in fixed coding: one for the sign, and ceil(log2(s + 1))."""
        return (2 * self.num_levels).bit_length()

    @property
    def _block(self) -> int | None:
        return None if self.bucket == 0 and not isinstance(self.bucket, bool) else self.bucket

    @property
    def unbiased(self) -> bool:
        return True

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "qsgd")
        scales = norms(x, self._block)
        codes = quantised(x, scales, self._block, self.num_levels, random_bits(generator))
        if self.coding == "fixed":
            return joined(scales, pack(codes, self.width))
        return joined(scales, *(_elias(codes, self.num_levels) if len(codes) else ()))

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "qsgd")
        if self.coding == "fixed":
            reader.expect(self.max_bytes(length), length)
        scales = reader.scales(num_blocks(length, self._block))
        if self.coding == "fixed":
            codes = unpack(reader.rest(), self.width, length)
        else:
            codes = _from_elias(reader, length, self.num_levels) if length else np.empty(0, np.uint8)
            reader.end()
        if length and codes.max() > 2 * self.num_levels:
            raise reader.wrong(f"{codes.max()} is no level; there are {2 * self.num_levels + 1}")
        return torch.from_numpy(restored(codes, scales, self._block, self.num_levels))

    def max_bytes(self, length: int) -> int:
        scales = 4 * num_blocks(length, self._block)
        if self.coding == "fixed":
            return scales + packed_bytes(length, self.width)
        tail = self.num_levels.bit_length() - 1
        dense = 2 * packed_bytes(length, 1) + -(-length * (tail + 1) // 8) + -(-length * tail // 8)
        return scales + (1 + dense if length else 0)


def _elias(codes: Codes, levels: int) -> list[Bytes]:
    signed = codes.astype(np.int32) - levels
    places = np.flatnonzero(signed)
    taken = signed[places]
    distances = gaps_of(places) + 1
    sparse = 4 + gamma_size(distances) < packed_bytes(len(codes), 1)
    if sparse:
        where = [np.array([SPARSE, *len(places).to_bytes(4, "little")], np.uint8), pack_gamma(distances)]
    else:
        where = [np.array([DENSE], np.uint8), np.packbits(signed != 0, bitorder="little")]
    return [*where, np.packbits(taken < 0, bitorder="little"), pack_gamma(np.abs(taken).astype(np.int64))]


def _from_elias(reader: Reader, length: int, levels: int) -> Codes:
    mode = reader.word(1)
    if mode == SPARSE:
        count = reader.word(4)
        if count > length:
            raise reader.wrong(f"{count} of {length} values are not 0")
        distances, used = unpack_gamma(reader.rest(), count)
        reader.take(used)
        places = indices_of(distances - 1, length)
    elif mode == DENSE:
        places = np.flatnonzero(unpack(reader.take(packed_bytes(length, 1)), 1, length))
    else:
        raise reader.wrong(f"coding {mode} is none")
    negative = unpack(reader.take(packed_bytes(len(places), 1)), 1, len(places)).view(np.bool_)
    taken, used = unpack_gamma(reader.rest(), len(places))
    reader.take(used)
    if len(taken) and int(taken.max()) > levels:
        raise reader.wrong(f"{taken.max()} is no level; there are {levels}")
    codes = np.full(length, levels, np.uint8 if levels <= 127 else np.uint16)
    codes[places] = levels + np.where(negative, -taken, taken)
    return codes

"""The sign of every value, and their mean magnitude.

Source: S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roundelay.stages.codecs.packing import packed_bytes, unpack
from roundelay.stages.codecs.scaled import restored, sums
from roundelay.stages.codecs.vectors import Reader, check_block, joined, num_blocks, values, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """(|x|_1/d) sign(x), with the sign of 0 being +: a bit a value. Biased: alone it can converge to the wrong point,
    so that it belongs under error feedback. |x - C|^2 is |x|^2 - |x|_1^2/d, exactly.

    d is the length of a ``block``, or of the whole vector.
    """

    block: int | None = None

    def __post_init__(self) -> None:
        check_block(self, "block", self.block)

    @property
    def unbiased(self) -> bool:
        return False

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "sign")
        size = width(len(x), self.block)
        totals = sums(x, self.block, 1)
        means = totals / np.minimum(size, len(x) - size * np.arange(len(totals)))
        return joined(means.astype(np.float32), np.packbits(x >= 0, bitorder="little"))

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "sign")
        reader.expect(self.max_bytes(length), length)
        means = reader.scales(num_blocks(length, self.block))
        codes = unpack(reader.rest(), 1, length)
        return torch.from_numpy(restored(codes << np.uint8(1), means, self.block, 1))

    def max_bytes(self, length: int) -> int:
        return packed_bytes(length, 1) + 4 * num_blocks(length, self.block)

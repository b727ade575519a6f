"""TernGrad: no value, or the largest with a sign, at random.

Source: W. Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS 2017.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.stages.codecs.packing import pack_trits, trit_bytes, unpack_trits
from roundelay.stages.codecs.scaled import largest, quantised, restored, sums, totals
from roundelay.stages.codecs.vectors import (
    Floats,
    Reader,
    check_block,
    joined,
    num_blocks,
    random_bits,
    values,
    width,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TernGrad:
    """c sign(x) with probability |x|/c, else 0, where c = max|x| of a block: 1.6 bits a value. Unbiased, and the
    decoded vector's mean square is |x|_1 c.

    ``clip_sigma`` clips values beyond so many standard deviations of their block first (the paper takes 2.5): a smaller
    c and less variance, but a bias. The paper's blocks are layers; here the vector is one unless ``block`` is given.
    """

    clip_sigma: float | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        check_block(self, "block", self.block)
        if self.clip_sigma is not None and not 0 < self.clip_sigma < math.inf:
            raise ConfigError(f"TernGrad: clip_sigma must be a positive number, got {self.clip_sigma!r}")

    @property
    def unbiased(self) -> bool:
        return self.clip_sigma is None

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "terngrad")
        scales = largest(x, self.block)
        if self.clip_sigma is not None:
            scales = _clipped(x, scales, self.block, self.clip_sigma)
        return joined(scales, pack_trits(quantised(x, scales, self.block, 1, random_bits(generator))))

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "terngrad")
        reader.expect(self.max_bytes(length), length)
        scales = reader.scales(num_blocks(length, self.block))
        return torch.from_numpy(restored(unpack_trits(reader.rest(), length), scales, self.block, 1))

    def max_bytes(self, length: int) -> int:
        return trit_bytes(length) + 4 * num_blocks(length, self.block)


def _clipped(x: Floats, scales: Floats, block: int | None, clip_sigma: float) -> Floats:
    """Return the lesser of max|x| and so many standard deviations; max|x| where all values of a block are alike."""
    size = width(len(x), block)
    counts = np.minimum(size, len(x) - size * np.arange(len(scales)))
    means = totals(x, block) / counts
    deviations = np.sqrt(np.maximum(sums(x, block, 2) / counts - means * means, 0))
    bounds = np.where(deviations > 0, clip_sigma * deviations, np.inf)
    return np.minimum(scales, bounds).astype(np.float32)

"""Codecs that are casts to another float type, rounded to the nearest, ties to even."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import DataError
from roundelay.guard import all_finite
from roundelay.stages.codecs.vectors import Reader, joined, values


@dataclass(frozen=True, slots=True, kw_only=True)
class FP32:
    """32 bits a value: a float32 vector is decoded to its own bits, a float64 one is rounded."""

    @property
    def unbiased(self) -> bool:
        return True

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        return joined(values(vector, "fp32"))

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "fp32")
        reader.expect(self.max_bytes(length), length)
        return torch.from_numpy(reader.floats(length))

    def max_bytes(self, length: int) -> int:
        return 4 * length


@dataclass(frozen=True, slots=True, kw_only=True)
class FP16:
    """IEEE's half precision: the error is at most 2^-11 of a value from 2^-14 to 65504; larger ones are refused."""

    @property
    def unbiased(self) -> bool:
        return False

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        return _cast(vector, torch.float16, "fp16")

    def decode(self, data: Tensor, length: int) -> Tensor:
        return _restored(data, length, torch.float16, "fp16")

    def max_bytes(self, length: int) -> int:
        return 2 * length


@dataclass(frozen=True, slots=True, kw_only=True)
class BF16:
    """bfloat16: the error is at most 2^-8 of a value, over float32's whole range."""

    @property
    def unbiased(self) -> bool:
        return False

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        return _cast(vector, torch.bfloat16, "bf16")

    def decode(self, data: Tensor, length: int) -> Tensor:
        return _restored(data, length, torch.bfloat16, "bf16")

    def max_bytes(self, length: int) -> int:
        return 2 * length


def _cast(vector: Tensor, dtype: torch.dtype, who: str) -> Tensor:
    x = torch.from_numpy(values(vector, who))
    if not len(x):
        return torch.empty(0, dtype=torch.uint8)
    ends = torch.stack(torch.aminmax(x))  # rounding is monotonic: the least and the largest value tell for all
    if not torch.isfinite(ends.to(dtype)).all():
        raise DataError(f"{who}: values are from {ends[0]:g} to {ends[1]:g}, "
                        f"{dtype} ends at {torch.finfo(dtype).max:g}: did it diverge?")  # fmt: skip
    return x.to(dtype).view(torch.uint8)


def _restored(data: Tensor, length: int, dtype: torch.dtype, who: str) -> Tensor:
    reader = Reader(data, who)
    reader.expect(2 * length, length)
    halves = np.empty(length, np.int16)
    halves.view(np.uint8)[:] = reader.take(2 * length)
    x = torch.from_numpy(halves).view(dtype).to(torch.float32)
    if not all_finite(x):
        raise reader.wrong("a value is NaN or infinite")
    return x

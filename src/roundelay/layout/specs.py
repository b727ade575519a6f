"""What a layout consists of: one entry a tensor, of one of three kinds; and the values that it lays out."""

from dataclasses import dataclass
from enum import Enum
from math import prod

import torch
from torch import Tensor


class Kind(Enum):
    PARAMETER = "parameter"
    FLOAT_BUFFER = "float buffer"
    INTEGER_BUFFER = "integer buffer"


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor of a model.

    ``aliases`` are further names of the same tensor (tied weights); a ``local`` tensor stays on its client.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    aliases: tuple[str, ...] = ()
    local: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Vectors:
    """A model's values: ``params`` and ``buffers`` in the layout's float dtype, ``integers`` int64; each of shape
    (length,).
    """

    params: Tensor
    buffers: Tensor
    integers: Tensor

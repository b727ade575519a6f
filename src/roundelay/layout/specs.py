"""What a layout consists of: one entry a tensor, of one of three kinds; and the values that it lays out."""

import hashlib
from dataclasses import dataclass
from enum import Enum
from math import prod

import torch
from torch import Tensor


class Kind(Enum):
    PARAMETER = "parameter"
    FLOAT_BUFFER = "float buffer"
    INTEGER_BUFFER = "integer buffer"


class Scope(Enum):
    """Whose a tensor is: everybody's, and trained together; each client's own, which stays there; or ``FROZEN``: a
    parameter that is not trained (``requires_grad`` is False), which every side has from the model's factory.
    """

    SHARED = "shared"
    LOCAL = "local"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor of a model.

    ``aliases`` are further names of the same tensor (tied weights). A frozen tensor never travels; ``digest`` is the
    SHA-256 of its values, by which each side knows that it has the same one, and "" for any other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    aliases: tuple[str, ...] = ()
    scope: Scope = Scope.SHARED
    digest: str = ""

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


def digest_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's values: row-major, little-endian, of whatever device."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()

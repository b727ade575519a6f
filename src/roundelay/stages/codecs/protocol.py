"""What a codec is."""

from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """A frozen value: its fields are its configuration, and both ends hold the same one. Nothing is kept between calls:
    what was lost is the business of whoever wraps a codec (error feedback).
    """

    @property
    def unbiased(self) -> bool:
        """Whether the mean of what is decoded is the vector, to within float32's rounding."""
        ...

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        """Return the bytes that travel, uint8 (n,), of a float32 or float64 CPU vector (D,), which stays as it is. What
        is random is drawn from ``generator``, which the caller keys for this vector alone.

        Raises:
            DataError: a value is NaN, infinite, or larger than this codec's numbers.
        """
        ...

    def decode(self, data: Tensor, length: int) -> Tensor:
        """Return a float32 vector (length,) of its own memory. ``data`` comes from elsewhere: what is returned is
        finite, and no more is allocated than a small multiple of ``length`` and of the bytes that came.

        Raises:
            WireError: ``data`` is no encoding of that many values.
        """
        ...

    def max_bytes(self, length: int) -> int:
        """Return what no encoding of ``length`` values exceeds; where the width is fixed, what each of them has."""
        ...

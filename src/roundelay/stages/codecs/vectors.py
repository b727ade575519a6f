"""What all codecs share: vectors in and out, blocks of a vector, a reader of bytes that came, random bits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roundelay.errors import ConfigError, DataError, WireError
from roundelay.guard import all_finite

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[Any]  # Any: uint8 or uint16, as wide as a codec's levels need

PIECE = 65_536
"""How many values are worked on at a time: they and their intermediates stay in the second-level cache."""


def values(vector: Tensor, who: str) -> Floats:
    """Return the vector as float32, its own memory where it has that type.

    Raises:
        DataError: it is no float vector, or a value of it is NaN or infinite (in float32).
    """
    if vector.ndim != 1 or vector.dtype not in (torch.float32, torch.float64) or vector.device.type != "cpu":
        raise DataError(f"{who}: expected a float32 or float64 vector (D,) on the CPU, "
                        f"got {vector.dtype} of shape {tuple(vector.shape)} on {vector.device}")  # fmt: skip
    single = vector.detach().to(torch.float32).contiguous()
    if not all_finite(single):
        bad = (~torch.isfinite(single)).nonzero().flatten()
        raise DataError(f"{who}: {len(bad)} of {len(single)} values are NaN or infinite in float32, the first at index "
                        f"{int(bad[0])} ({float(vector[bad[0]])}): did it diverge?")  # fmt: skip
    return np.asarray(single.numpy(), np.float32)


def joined(*parts: npt.NDArray[Any]) -> Tensor:  # Any: arrays of any number type
    """Return the bytes of the arrays in a row."""
    return torch.from_numpy(np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]))


class Reader:
    """Bytes that came, taken from the front; whatever is wrong with them is a ``WireError`` that names the codec."""

    def __init__(self, data: Tensor, who: str) -> None:
        self._who = who
        if data.ndim != 1 or data.dtype != torch.uint8 or data.device.type != "cpu":
            raise self.wrong(f"expected bytes (n,), got {data.dtype} of shape {tuple(data.shape)}")
        self._bytes: Bytes = data.contiguous().numpy()
        self._at = 0

    def wrong(self, what: str) -> WireError:
        return WireError(f"{self._who}: {what}")

    @property
    def left(self) -> int:
        return len(self._bytes) - self._at

    def expect(self, num_bytes: int, length: int) -> None:
        """Refuse what has not so many bytes left, before anything is allocated for them."""
        if self.left != num_bytes:
            raise self.wrong(f"{length} values are {self._at + num_bytes} bytes, got {len(self._bytes)}")

    def take(self, num_bytes: int) -> Bytes:
        if num_bytes > self.left:
            raise self.wrong(f"expected at least {self._at + num_bytes} bytes, got {len(self._bytes)}")
        self._at += num_bytes
        return self._bytes[self._at - num_bytes : self._at]

    def rest(self) -> Bytes:
        return self._bytes[self._at :]

    def floats(self, count: int) -> Floats:
        """Take finite float32 numbers, in memory of their own."""
        came = self.take(4 * count)  # before anything is allocated
        numbers = np.empty(count, np.float32)
        numbers.view(np.uint8)[:] = came
        if not all_finite(torch.from_numpy(numbers)):
            raise self.wrong("a number is NaN or infinite")
        return numbers

    def scales(self, count: int) -> Floats:
        """Take finite float32 numbers of which none is negative."""
        numbers = self.floats(count)
        if count and numbers.min() < 0:
            raise self.wrong(f"a scale is negative: {numbers.min()}")
        return numbers

    def word(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes).tobytes(), "little")

    def end(self) -> None:
        if self.left:
            raise self.wrong(f"{self.left} bytes too many, after {self._at}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a vector, as rows of ``shape``, and which blocks' scales the rows have."""

    span: slice
    shape: tuple[int, int]
    blocks: slice

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


def pieces(length: int, block: int) -> Iterator[Piece]:
    """Cut a vector into parts of about ``PIECE`` values: several whole blocks each, or a part of one block."""
    if block <= PIECE:
        whole, rows = length // block, PIECE // block
        for first in range(0, whole, rows):
            last = min(first + rows, whole)
            yield Piece(slice(first * block, last * block), (last - first, block), slice(first, last))
        if whole * block < length:
            yield Piece(slice(whole * block, length), (1, length - whole * block), slice(whole, whole + 1))
        return
    for at in range(-(-length // block)):
        end = min((at + 1) * block, length)
        for start in range(at * block, end, PIECE):
            stop = min(start + PIECE, end)
            yield Piece(slice(start, stop), (1, stop - start), slice(at, at + 1))


def num_blocks(length: int, block: int | None) -> int:
    return -(-length // width(length, block))


def width(length: int, block: int | None) -> int:
    """Return how many values a block has; None makes the whole vector one block."""
    return max(1, length) if block is None else block


def check_block(component: object, name: str, block: int | None) -> None:
    """Refuse a block of no values."""
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        who = type(component).__name__
        raise ConfigError(f"{who}: {name} must be a whole number of at least 1, got {block!r}")


def random_bits(generator: torch.Generator) -> np.random.Philox:
    """Return a counter-based stream of words, keyed by two of the generator's; a third of the price of torch's own."""
    words = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return np.random.Philox(key=words.numpy().view(np.uint64))


def new_seed(generator: torch.Generator) -> npt.NDArray[np.uint64]:
    """Draw a seed that travels."""
    return torch.empty(1, dtype=torch.int64).random_(-(2**63), None, generator=generator).numpy().view(np.uint64)


def seeded_bits(seed: int) -> np.random.Philox:
    """Return the stream of a seed that travelled; numpy promises that raw words stay what they are."""
    return np.random.Philox(key=np.array([seed, 0x726F756E64656C61], np.uint64))

"""Some values of many.

Sources: S. U. Stich et al., "Sparsified SGD with Memory", NeurIPS 2018 (top-k, rand-k); F. Sattler et al., "Robust and
Communication-Efficient Federated Learning from Non-IID Data", 2019 (STC).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError, DataError
from roundelay.guard import all_finite
from roundelay.stages.codecs.packing import packed_bytes, unpack
from roundelay.stages.codecs.prefix import (
    gaps_of,
    indices_of,
    pack_bits,
    pack_rice,
    packed_bits,
    rice_bits,
    rice_limit,
    rice_size,
    unpack_bits,
    unpack_rice,
)
from roundelay.stages.codecs.vectors import (
    Bytes,
    Floats,
    Integers,
    Reader,
    joined,
    new_seed,
    seeded_bits,
    values,
)

PLAIN, BITMAP, RICE = 0, 1, 2
"""How indices are written: each in ceil(log2 D) bits, a bit for each of the D values, or the gaps between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The k largest magnitudes, as they are; of equal ones those that come first. |x - C|^2 <= (1 - k/D) |x|^2, always.

    ``k`` values, or a ``fraction`` of them (rounded, at least one). Indices are written in the shortest of three ways.
    """

    fraction: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        _check_share(self, self.fraction, self.k)

    @property
    def unbiased(self) -> bool:
        return False

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "topk")
        k = _count(self.fraction, self.k, len(x))
        if not k:
            return joined(np.empty(0, np.uint8))
        indices = largest_indices(x, k)
        mode, written = _written(indices, len(x))
        return joined(np.array([mode], np.uint8), x[indices], written)

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "topk")
        k = _count(self.fraction, self.k, length)
        if not k:
            return _nothing(reader)
        mode = reader.word(1)
        taken = reader.floats(k)
        indices = _read_indices(reader, mode, k, length)
        return _placed(taken, indices, length)

    def max_bytes(self, length: int) -> int:
        k = _count(self.fraction, self.k, length)
        plain = packed_bits(k, (length - 1).bit_length()) if k else 0
        return min(plain, packed_bytes(length, 1)) + (1 + 4 * k if k else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandK:
    """k values that a seed chooses: the seed and the values, 64 + 32k bits.

    Scaled by D/k, which makes it unbiased with a mean square error of (D/k - 1) |x|^2; with ``unbiased=False`` they are
    as they are, and the error is (1 - k/D) |x|^2: for error feedback.
    """

    fraction: float | None = None
    k: int | None = None
    unbiased: bool = True

    def __post_init__(self) -> None:
        _check_share(self, self.fraction, self.k)

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "randk")
        k = _count(self.fraction, self.k, len(x))
        if not k:
            return joined(np.empty(0, np.uint8))
        seed = new_seed(generator)
        with np.errstate(over="ignore"):
            taken = x[chosen_indices(int(seed[0]), k, len(x))] * np.float32(len(x) / k if self.unbiased else 1)
        if not all_finite(torch.from_numpy(taken)):
            raise DataError(f"randk: values times {len(x) / k:g} are beyond float32: did it diverge?")
        return joined(seed, taken)

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "randk")
        reader.expect(self.max_bytes(length), length)
        k = _count(self.fraction, self.k, length)
        if not k:
            return _nothing(reader)
        seed, taken = reader.word(8), reader.floats(k)
        return _placed(taken, chosen_indices(seed, k, length), length)

    def max_bytes(self, length: int) -> int:
        k = _count(self.fraction, self.k, length)
        return 8 + 4 * k if k else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class STC:
    """Sparse ternary compression: the k largest magnitudes, all as their mean m with a sign; gaps between them in
    Golomb codes. |x - C|^2 is |x|^2 - k m^2, exactly.
    """

    fraction: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        _check_share(self, self.fraction, self.k)

    @property
    def unbiased(self) -> bool:
        return False

    def encode(self, vector: Tensor, generator: torch.Generator) -> Tensor:
        x = values(vector, "stc")
        k = _count(self.fraction, self.k, len(x))
        if not k:
            return joined(np.empty(0, np.uint8))
        indices = largest_indices(x, k)
        taken = x[indices]
        mean = np.array([np.abs(taken.astype(np.float64)).mean()], np.float32)
        gaps = pack_rice(gaps_of(indices), rice_bits(k / len(x)))
        return joined(mean, np.packbits(taken >= 0, bitorder="little"), gaps)

    def decode(self, data: Tensor, length: int) -> Tensor:
        reader = Reader(data, "stc")
        k = _count(self.fraction, self.k, length)
        if not k:
            return _nothing(reader)
        mean = reader.scales(1)
        positive = unpack(reader.take(packed_bytes(k, 1)), 1, k).view(np.bool_)
        indices = indices_of(unpack_rice(reader.rest(), rice_bits(k / length), k), length)
        return _placed(np.where(positive, mean, -mean), indices, length)

    def max_bytes(self, length: int) -> int:
        k = _count(self.fraction, self.k, length)
        return 4 + packed_bytes(k, 1) + rice_limit(k, length, rice_bits(k / length)) if k else 0


def largest_indices(x: Floats, k: int) -> Integers:
    """Return the indices of the ``k`` largest magnitudes, in order; of equal ones the lowest are taken."""
    magnitudes = np.abs(x)
    least = np.partition(magnitudes, len(x) - k)[len(x) - k]
    taken = magnitudes > least
    equal = np.flatnonzero(magnitudes == least)
    taken[equal[: k - np.count_nonzero(taken)]] = True
    return np.flatnonzero(taken)


def chosen_indices(seed: int, k: int, length: int) -> Integers:
    """Return ``k`` of ``length`` indices, in order; each set of so many is as likely as any other.

    As if drawn one by one until there are k different ones: no more are drawn at a time than are missing.
    """
    if 2 * k > length:  # those that are left out, being fewer
        left_out = chosen_indices(seed, length - k, length)
        kept = np.ones(length, np.bool_)
        kept[left_out] = False
        return np.flatnonzero(kept)
    bits, mask = seeded_bits(seed), np.uint64(2 ** (length - 1).bit_length() - 1)
    taken = np.zeros(length, np.bool_)
    missing = k
    while missing:
        drawn = bits.random_raw(missing) & mask
        taken[drawn[drawn < length].astype(np.int64)] = True
        missing = k - int(np.count_nonzero(taken))
    return np.flatnonzero(taken)


def _placed(taken: Floats, indices: Integers, length: int) -> Tensor:
    x = np.zeros(length, np.float32)
    x[indices] = taken
    return torch.from_numpy(x)


def _nothing(reader: Reader) -> Tensor:
    reader.end()
    return torch.empty(0)


def _written(indices: Integers, length: int) -> tuple[int, Bytes]:
    """Return the shortest way to write the indices, and the bytes; of equally short ones the first."""
    k, bits = len(indices), rice_bits(len(indices) / length)
    gaps = gaps_of(indices)
    sizes = (packed_bits(k, (length - 1).bit_length()), packed_bytes(length, 1), rice_size(gaps, bits))
    mode = sizes.index(min(sizes))
    if mode == PLAIN:
        return mode, pack_bits(indices, (length - 1).bit_length())
    if mode == RICE:
        return mode, pack_rice(gaps, bits)
    taken = np.zeros(length, np.bool_)
    taken[indices] = True
    return mode, np.packbits(taken, bitorder="little")


def _read_indices(reader: Reader, mode: int, k: int, length: int) -> Integers:
    if mode == PLAIN:
        bits = (length - 1).bit_length()
        reader.expect(packed_bits(k, bits), length)
        indices = unpack_bits(reader.rest(), bits, k)
        if indices[-1] >= length or (np.diff(indices) <= 0).any():
            raise reader.wrong(f"indices do not increase, or are not below {length}")
        return indices
    if mode == BITMAP:
        reader.expect(packed_bytes(length, 1), length)
        indices = np.flatnonzero(unpack(reader.rest(), 1, length))
        if len(indices) != k:
            raise reader.wrong(f"expected {k} indices, got {len(indices)}")
        return indices
    if mode == RICE:
        return indices_of(unpack_rice(reader.rest(), rice_bits(k / length), k), length)
    raise reader.wrong(f"way {mode} of writing indices is none")


def _check_share(component: object, fraction: float | None, k: int | None) -> None:
    who = type(component).__name__
    if (fraction is None) == (k is None):
        raise ConfigError(f"{who}: give either fraction or k, got fraction = {fraction!r} and k = {k!r}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"{who}: fraction must be above 0 and at most 1, got {fraction!r}")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ConfigError(f"{who}: k must be a whole number of at least 1, got {k!r}")


def _count(fraction: float | None, k: int | None, length: int) -> int:
    """Return how many of ``length`` values are taken."""
    if k is not None:
        return min(k, length)
    assert fraction is not None
    return min(length, max(1, round(fraction * length)))

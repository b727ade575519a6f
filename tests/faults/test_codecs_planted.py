"""Bugs planted in codecs: the check of each promise must fail on each of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from codec_checks import (
    check_mean_square,
    check_square,
    check_top_k,
    check_unbiased,
    coded,
    draw,
    qsgd_square,
    sign_square,
    skewed,
    terngrad_square,
)  # fmt: skip

from roundelay.errors import WireError
from roundelay.stages.codecs import (
    DRIVE,
    EDEN,
    QSGD,
    Int8,
    RandK,
    Sign,
    TernGrad,
    TopK,
    blocks,
    hadamard,
    qsgd,
    rotations,
    scaled,
    signs,
    sparse,
    ternary,
    vectors,
)

Planting = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]


def put(module: object, name: str, make: Callable[..., object]) -> Planting:
    """Plant ``make(what is there)`` in its place."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, name, make(getattr(module, name)))

    return plant


class Coarse(np.random.Philox):
    """Words of which only the highest 4 of 31 bits are random."""

    def random_raw(self, size: int) -> np.ndarray:  # type: ignore[override]
        return super().random_raw(size).view(np.uint32).__and__(np.uint32(0x78000000)).view(np.uint64)


class Again(np.random.Philox):
    """One word over and over."""

    def random_raw(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.full(size, super().random_raw(1)[0])


def check_mean_of_many() -> None:
    """Of 400 values of 1/50, which is less than 4 bits can tell, an encoding sends about 8, as chance has it."""
    x = torch.cat([torch.ones(1), torch.full((400,), 0.02)])
    sums = torch.tensor([float(coded(TernGrad(), x, n)[1:].sum()) for n in range(200)])
    assert abs(float(sums.mean()) - 8) < 5 * math.sqrt(8 / 200)
    assert float(sums.var()) == pytest.approx(8 * 0.98, rel=0.5)


UNBIASED: dict[str, tuple[Planting, Check]] = {
    "rounded to the nearest": (
        put(qsgd, "quantised", lambda real: lambda x, c, b, s, bits: real(x, c, b, s, None)),
        lambda: check_unbiased(QSGD(), skewed(), 300),
    ),
    "draws of 4 bits": (put(ternary, "random_bits", lambda _: lambda g: Coarse(g.initial_seed())), check_mean_of_many),
    "one draw for all": (put(ternary, "random_bits", lambda _: lambda g: Again(g.initial_seed())), check_mean_of_many),
    "always clipped": (
        put(ternary, "largest", lambda real: lambda x, block: np.minimum(real(x, block), 2.5 * x.std())),
        lambda: check_unbiased(TernGrad(), skewed()),
    ),
    "random k as they are": (
        put(sparse, "chosen_indices", lambda real: lambda seed, k, n: real(seed, k, n) // 2 * 2),
        lambda: check_unbiased(RandK(fraction=0.5), skewed(), 300),
    ),
    "the first k": (
        put(sparse, "chosen_indices", lambda _: lambda seed, k, n: np.arange(k)),
        lambda: check_unbiased(RandK(fraction=0.5), skewed(), 300),
    ),
    "the scale of least error": (
        put(rotations, "_scale", lambda real: lambda y, q, length, least: real(y, q, length, True)),
        lambda: check_unbiased(DRIVE(), skewed(), 300),
    ),
    "rotated once": (
        lambda patch: (
            put(rotations, "rotated", lambda _: rotated_once)(patch),
            put(rotations, "rotated_back", lambda _: back_once)(patch),
        )[0],
        lambda: check_unbiased(DRIVE(), skewed(), 300),
    ),
    "never rotated": (
        lambda patch: (
            put(rotations, "rotated", lambda _: lambda x, other, bits: x * np.float32(len(x) ** 0.5))(patch),
            put(rotations, "rotated_back", lambda _: lambda x, other, bits: x * np.float32(len(x) ** 0.5))(patch),
        )[0],
        lambda: check_unbiased(EDEN(bits=2), skewed(), 300),
    ),
    "signs that do not depend on the seed": (
        put(rotations, "seeded_bits", lambda real: lambda seed: real(0)),
        lambda: check_unbiased(EDEN(bits=2), skewed(), 300),
    ),
}


def rotated_once(x: np.ndarray, other: np.ndarray, bits: np.random.Philox) -> np.ndarray:
    hadamard._flip(x, hadamard._signs(len(x), bits))
    return hadamard.transform(x, other)


def back_once(x: np.ndarray, other: np.ndarray, bits: np.random.Philox) -> np.ndarray:
    back = hadamard.inverse(x, other)
    hadamard._flip(back, hadamard._signs(len(x), bits))
    return back


@pytest.mark.parametrize(("plant", "check"), UNBIASED.values(), ids=UNBIASED)
def test_the_check_of_the_mean_catches(plant: Planting, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def norm_of_largest(real: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, block: scaled.largest(x, block)


ERRORS: dict[str, tuple[Planting, Check]] = {
    "max-norm in QSGD": (
        put(qsgd, "norms", norm_of_largest),
        lambda: check_mean_square(QSGD(bucket=64), skewed(), qsgd_square(QSGD(bucket=64), skewed()), 200),
    ),
    "one level too many": (
        put(QSGD, "num_levels", lambda _: property(lambda self: 2 ** (self.bits - 1))),
        lambda: check_mean_square(QSGD(bits=3), skewed(), 1 / 9 * nine_times(), 200),
    ),
    "Euclid's norm in TernGrad": (
        put(ternary, "largest", lambda real: lambda x, block: scaled.norms(x, block)),
        lambda: check_mean_square(TernGrad(), skewed(), terngrad_square(skewed()), 200),
    ),
    "the root mean square for signs": (
        put(signs, "sums", lambda real: lambda x, block, power: np.sqrt(real(x, block, 2) * len(x))),
        lambda: check_square(Sign(), skewed(), sign_square(skewed())),
    ),
    "one block's scale for all": (
        put(signs, "restored", lambda real: lambda codes, c, block, s: real(codes, c[:1].repeat(len(c)), block, s)),
        lambda: check_square(Sign(block=70), skewed(), sign_square(skewed(), 70)),
    ),
    "of equal ones any": (
        put(sparse, "largest_indices", lambda _: lambda x, k: np.sort(np.argsort(np.abs(x))[::-1][:k])),
        lambda: check_top_k(torch.tensor([1.0, -2.0, 1.0, 2.0, 1.0, 1.0, -1.0, 0.5]), 4),
    ),
    "all that are equal": (
        put(sparse, "largest_indices", lambda _: lambda x, k: np.flatnonzero(np.abs(x) >= np.sort(np.abs(x))[-k])[-k:]),
        lambda: check_top_k(torch.tensor([1.0, -2.0, 1.0, 2.0, 1.0, 1.0, -1.0, 0.5]), 4),
    ),
}


def nine_times() -> float:
    """9 times the square that 3 bits have: |x|^2 sum f(1-f) for s = 3."""
    x = skewed().double()
    fraction = x.abs() / x.norm() * 3 % 1
    return float(x.square().sum() * (fraction * (1 - fraction)).sum())


@pytest.mark.parametrize(("plant", "check"), ERRORS.values(), ids=ERRORS)
def test_the_check_of_the_error_catches(plant: Planting, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def check_lengths() -> None:
    """Bytes are an eighth of the bits, and what no encoding exceeds is that."""
    for codec, expected in ((QSGD(bucket=0), 4 + 500), (Sign(), 4 + 125), (TernGrad(), 4 + 200), (Int8(), 1000 + 16)):
        assert len(codec.encode(torch.ones(1000), draw())) == expected == codec.max_bytes(1000)
    sparse_one = TopK(k=10)
    assert len(sparse_one.encode(skewed(1000), draw())) <= sparse_one.max_bytes(1000) == 1 + 40 + 13


LENGTHS: dict[str, Planting] = {
    "bits counted as bytes": put(qsgd, "packed_bytes", lambda _: lambda count, bits: count * bits),
    "rounded down": put(signs, "packed_bytes", lambda _: lambda count, bits: count * bits // 8 - 1),
    "four to a byte": put(ternary, "trit_bytes", lambda _: lambda count: -(-count // 4)),
    "a scale for all blocks": put(blocks, "num_blocks", lambda _: lambda length, block: 1),
    "indices of 32 bits": put(sparse, "packed_bits", lambda _: lambda count, bits: 4 * count),
}


@pytest.mark.parametrize("plant", LENGTHS.values(), ids=LENGTHS)
def test_the_check_of_lengths_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    check_lengths()
    plant(monkeypatch)
    with pytest.raises((AssertionError, WireError, ValueError)):
        check_lengths()


def check_refusals() -> None:
    """What is no encoding is refused, by ``WireError``."""
    nan, one = np.float32(math.nan).tobytes(), np.float32(1).tobytes()
    nonsense = [
        (Int8(), nan + bytes(9), 9), (Sign(), one + b"\x01\x02", 9), (TernGrad(), one + b"\xf3", 5),
        (TopK(k=2), b"\x00" + one + one + b"\x11", 10), (TopK(k=2), b"\x00" + one + one + b"\xf0", 10),
        (TopK(k=2), b"\x02" + one + one + b"\x00\x42", 10), (QSGD(), one + b"\xff", 2),
    ]  # fmt: skip
    for codec, data, length in nonsense:
        with pytest.raises(WireError):
            codec.decode(torch.tensor(list(data), dtype=torch.uint8), length)
    with pytest.raises(WireError):
        Int8().decode(torch.zeros(1_000_000, dtype=torch.uint8), 9)


REFUSALS: dict[str, Planting] = {
    "NaN for a scale": put(vectors, "all_finite", lambda _: lambda vector: True),
    "bits after the last": put(
        signs, "unpack", lambda _: lambda p, bits, n: np.unpackbits(p, count=n, bitorder="little")
    ),
    "a byte of six trits": put(ternary, "unpack_trits", lambda _: lambda packed, count: np.zeros(count, np.uint8)),
    "indices in any order": put(sparse, "_read_indices", lambda _: lambda reader, mode, k, n: np.arange(k)),
    "indices past the end": put(
        sparse, "indices_of", lambda _: lambda gaps, n: np.minimum(np.cumsum(gaps + 1) - 1, n - 1)
    ),
    "any number of bytes": put(vectors.Reader, "expect", lambda _: lambda self, size, n: None),
}


@pytest.mark.parametrize("plant", REFUSALS.values(), ids=REFUSALS)
def test_the_check_of_refusals_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    check_refusals()
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError)):
        check_refusals()


def check_threads() -> None:
    """The same bytes for any number of torch threads."""
    x, threads, seen = torch.rand(3_000_001, generator=torch.Generator().manual_seed(1)), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            seen.append(Sign().encode(x, draw()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(data, seen[0]) for data in seen)


def test_the_check_of_threads_catches_sums_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_threads()
    put(signs, "sums", lambda _: lambda x, block, power: torch.from_numpy(x).abs().sum().numpy()[None])(monkeypatch)
    with pytest.raises(AssertionError):
        check_threads()

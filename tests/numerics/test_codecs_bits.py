"""How many bits codecs take, against their closed forms and bounds."""

import math

import numpy as np
import pytest
import torch
from codec_checks import draw, skewed
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay.stages.codecs import (
    BF16,
    DRIVE,
    EDEN,
    FP8,
    FP16,
    FP32,
    QSGD,
    STC,
    Codec,
    Int8,
    RandK,
    Sign,
    TernGrad,
    TopK,
)  # fmt: skip
from roundelay.stages.codecs.hadamard import blocks
from roundelay.stages.codecs.prefix import gaps_of, pack_rice, rice_bits


def up(number: float) -> int:
    return math.ceil(number - 1e-9)


def rotated(d: int, bits: int) -> int:
    """A seed, and for each block a scale and its padded values."""
    rest = d % 65_536
    sizes = [65_536] * (d // 65_536) + [2**i for i in range(15, 7, -1) if rest >> i & 1] + [256] * (rest % 256 > 0)
    return (8 + 4 * len(sizes) + up(sum(sizes) * bits / 8)) if d else 0


FIXED = {
    FP32(): lambda d: 4 * d,
    FP16(): lambda d: 2 * d,
    BF16(): lambda d: 2 * d,
    Int8(): lambda d: d + 4 * up(d / 256),
    FP8(block=100): lambda d: d + 4 * up(d / 100),
    QSGD(): lambda d: up(4 * d / 8) + 4 * up(d / 512),
    QSGD(levels=8, bucket=0): lambda d: up(d * (1 + math.ceil(math.log2(9))) / 8) + 4 * (d > 0),
    QSGD(bits=11): lambda d: d + up(3 * d / 8) + 4 * up(d / 512),
    TernGrad(): lambda d: up(d / 5) + 4 * (d > 0),
    Sign(): lambda d: up(d / 8) + 4 * (d > 0),
    Sign(block=10): lambda d: up(d / 8) + 4 * up(d / 10),
    RandK(k=7): lambda d: (8 + 4 * min(7, d)) if d else 0,
    DRIVE(): lambda d: rotated(d, 1),
    EDEN(bits=3): lambda d: rotated(d, 3),
}


@pytest.mark.parametrize("codec", FIXED, ids=str)
@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 2_000) | st.sampled_from([65_535, 65_536, 65_537, 131_072 + 300]))
def test_the_length_is_that_of_the_formula(codec: Codec, length: int) -> None:
    assert len(codec.encode(torch.randn(length), draw())) == FIXED[codec](length) == codec.max_bytes(length)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 1000))
def test_the_longest_is_not_exceeded(length: int, k: int, seed: int) -> None:
    x = torch.randn(length, generator=torch.Generator().manual_seed(seed)) ** 5
    for codec in (TopK(k=k), STC(k=k), QSGD(levels=k, coding="elias"), QSGD(bits=2, coding="elias", bucket=50)):
        assert len(codec.encode(x, draw(seed))) <= codec.max_bytes(length)


@pytest.mark.parametrize(
    ("share", "bits", "entropy"), [(0.1, 4.756, 4.690), (0.01, 8.108, 8.079), (0.001, 11.495, 11.408)]
)
def test_the_bits_of_an_index(share: float, bits: float, entropy: float) -> None:
    """b* + 1/(1 - (1 - p)^(2^b*)) for indices that are taken with probability p, near to their entropy."""
    best = rice_bits(share)
    assert best + 1 / (1 - (1 - share) ** 2**best) == pytest.approx(bits, abs=1e-3)
    indices = np.flatnonzero(np.random.default_rng(0).random(int(30_000 / share)) < share)
    assert 8 * len(pack_rice(gaps_of(indices), best)) / len(indices) == pytest.approx(bits, rel=5e-3)
    assert bits == pytest.approx(entropy, rel=0.02)


def test_sparse_ternary_compression_takes_a_sign_and_a_gap_for_each() -> None:
    length, k = 1_000_000, 10_000
    sent = 8 * len(STC(k=k).encode(torch.randn(length), draw()))
    assert sent == pytest.approx(k * (1 + 8.108) + 32, rel=2e-3)


def test_top_k_takes_the_shortest_way_to_write_indices() -> None:
    d = 100_000
    x = torch.randn(d)
    few, many = TopK(k=2), TopK(fraction=0.45)
    together = torch.zeros(d)
    together[-3:] = 1
    assert len(few.encode(x, draw())) == 1 + 2 * 4 + 5  # two indices of 17 bits
    assert len(many.encode(x, draw())) == 1 + 45_000 * 4 + d // 8  # a bit for each value
    assert len(TopK(k=1_000).encode(x, draw())) < 1 + 1_000 * (4 + 17 / 8) - 700  # gaps
    assert few.max_bytes(d) == 1 + 2 * 4 + 5


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_elias_coding_keeps_to_the_bound_where_few_are_sent(levels: int) -> None:
    """(3 + 3/2 log2(2 (s^2 + d)/(s (s + sqrt d)))) s (s + sqrt d) + 32 (QSGD, theorem 3.2, without its o(1))."""
    d = 2**16
    mean = levels * (levels + math.sqrt(d))
    bound = (3 + 1.5 * math.log2(2 * (levels**2 + d) / mean)) * mean + 32
    codec = QSGD(levels=levels, bucket=0, coding="elias")
    for x in (torch.randn(d), torch.rand(d), torch.ones(d)):
        sent = [8 * len(codec.encode(x, draw(n))) for n in range(5)]
        assert sum(sent) / 5 <= bound


def test_elias_coding_keeps_to_the_bound_where_many_are_sent() -> None:
    """2.8 d + 32 at s = sqrt d (QSGD, corollary 3.3). Where all are one level, the paper's own code takes 4 d."""
    d = 2**14
    assert 8 * len(QSGD(levels=128, bucket=0, coding="elias").encode(torch.ones(d), draw())) <= 3 * d + 64
    for x in (torch.randn(d), torch.rand(d), skewed(d)):
        assert 8 * len(QSGD(levels=128, bucket=0, coding="elias").encode(x, draw())) <= 2.8 * d + 32


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1_000_000))
def test_blocks_are_powers_of_two_that_waste_little(length: int) -> None:
    found, end = list(blocks(length)), 0
    for start, stop, size in found:
        assert start == end < stop <= start + size
        assert size in [2**i for i in range(8, 17)]
        end = stop
    assert end == length
    assert sum(size for _, _, size in found) - length < 256
    assert len(found) <= length // 65_536 + 9

"""The error of every codec against what is proven of it: unbiasedness, exact variances, contraction."""

import math
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from codec_checks import (
    LLOYD_MAX,
    STOCHASTIC,
    check_contracts,
    check_mean_square,
    check_square,
    check_top_k,
    check_unbiased,
    coded,
    qsgd_square,
    rounded_at_random,
    sign_delta,
    sign_square,
    skewed,
    terngrad_square,
)  # fmt: skip
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay.stages.codecs import BF16, DRIVE, EDEN, FP8, FP16, FP32, QSGD, STC, Codec, Int8, RandK, Sign, TernGrad
from roundelay.stages.codecs.rotations import CENTROIDS

VECTORS = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=70).map(torch.tensor)
SOME = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("codec", STOCHASTIC, ids=str)
def test_what_claims_to_be_unbiased_is(codec: Codec) -> None:
    assert codec.unbiased
    check_unbiased(codec, skewed())


BIASED: list[Codec] = [DRIVE(scale="least"), TernGrad(clip_sigma=1.0), RandK(k=100, unbiased=False)]


@pytest.mark.parametrize("codec", BIASED, ids=str)
def test_what_does_not_claim_it_is_not(codec: Codec) -> None:
    assert not codec.unbiased
    with pytest.raises(AssertionError):
        check_unbiased(codec, skewed(), num_draws=500)


def test_a_value_far_below_a_level_is_kept_in_the_mean() -> None:
    """Where one draw of a million goes up, the mean holds only if draws are fine: with 16 bits it would be 15 times as
    many, or none.
    """
    for length, share in ((5_000_000, 1e-6), (2_000_000, 1e-4)):
        x = torch.full((length,), share)
        x[0] = 1.0
        expected = length * share
        limit = min(expected - 0.5, 5 * math.sqrt(expected))
        assert abs(float(coded(TernGrad(), x)[1:].double().sum()) - expected) < limit


QSGDS = [QSGD(), QSGD(bucket=64), QSGD(levels=1, bucket=0), QSGD(bits=8), QSGD(levels=100)]


@pytest.mark.parametrize("codec", QSGDS, ids=str)
def test_the_variance_of_qsgd(codec: QSGD) -> None:
    x = skewed()
    check_mean_square(codec, x, qsgd_square(codec, x))
    d = min(len(x), codec.bucket or len(x))
    bound = min(d / codec.num_levels**2, math.sqrt(d) / codec.num_levels)
    assert qsgd_square(codec, x) <= bound * float(x.double().square().sum())


def test_the_variance_of_terngrad_int8_and_random_k() -> None:
    x = skewed()
    size = float(x.double().square().sum())
    check_mean_square(TernGrad(), x, terngrad_square(x))
    check_mean_square(TernGrad(block=50), x, terngrad_square(x, 50))
    check_mean_square(Int8(rounding="stochastic", block=64), x, rounded_at_random(x, 64, 127, math.inf))
    check_mean_square(RandK(k=60), x, (240 / 60 - 1) * size)
    check_mean_square(RandK(k=200), x, (240 / 200 - 1) * size)
    check_mean_square(RandK(k=60, unbiased=False), x, (1 - 60 / 240) * size)


def test_the_share_of_what_qsgd_sends() -> None:
    """E nnz <= s (s + sqrt d)."""
    x = torch.randn(512)
    for s in (1, 2, 4):
        sent = sum(int((coded(QSGD(levels=s), x, n) != 0).sum()) for n in range(200)) / 200
        assert sent <= s * (s + math.sqrt(512))


@SOME
@given(VECTORS)
def test_signs_and_their_mean(x: torch.Tensor) -> None:
    check_contracts(Sign(), x, sign_delta(x))
    y = coded(Sign(), x)
    assert torch.equal(y >= 0, x >= 0) or not x.any() or float(y.abs().max()) == 0
    assert torch.allclose(y.abs().double(), x.double().abs().mean(), rtol=1e-6, atol=1e-44)


def test_the_error_of_signs_and_of_stc_is_known_exactly() -> None:
    x = skewed()
    check_square(Sign(), x, sign_square(x))
    check_square(Sign(block=70), x, sign_square(x, 70))
    largest = x.double().abs().sort(descending=True).values[:30]
    check_square(STC(k=30), x, float(x.double().square().sum() - largest.mean() ** 2 * 30))


@SOME
@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, -2.0, 3.5, 1e-45]), min_size=1, max_size=60), st.data())
def test_the_largest_are_taken_and_of_equal_ones_the_first(values: list[float], data: st.DataObject) -> None:
    x = torch.tensor(values)
    k = data.draw(st.integers(1, len(x)))
    check_top_k(x, k)


@SOME
@given(VECTORS, st.sampled_from([16, 64, 256]))
def test_eight_bits_to_the_nearest(x: torch.Tensor, block: int) -> None:
    error = (coded(Int8(block=block), x) - x).abs().double()
    stochastic = (coded(Int8(block=block, rounding="stochastic"), x) - x).abs().double()
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        most = float(x[part].abs().max())
        assert float(error[part].max()) <= most / 254 * (1 + 1e-4) + 1e-44
        assert float(stochastic[part].max()) <= most / 127 * (1 + 1e-4) + 1e-44


@SOME
@given(VECTORS)
def test_small_floats(x: torch.Tensor) -> None:
    for format, relative, absolute in (("e4m3", 2**-4, 2**-10 / 448), ("e5m2", 2**-3, 2**-17 / 57344)):
        error = (coded(FP8(format=format, block=16), x) - x).abs().double()
        for start in range(0, len(x), 16):
            part = x[start : start + 16].abs().double()
            limit = torch.maximum(part * relative, part.max() * absolute) * (1 + 1e-4) + 1e-44
            assert (error[start : start + 16] <= limit).all()


@SOME
@given(VECTORS)
def test_casts(x: torch.Tensor) -> None:
    assert torch.equal(coded(FP32(), x), x)
    assert torch.equal(coded(BF16(), x), x.bfloat16().float())
    halves = (x / x.abs().max().clamp(min=1e-30)).clamp(-60000, 60000)
    assert torch.equal(coded(FP16(), halves), halves.half().float())
    normal = x.abs() >= 2.0**-126
    assert ((coded(BF16(), x) - x).abs()[normal] <= x.abs()[normal] * 2**-8).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_centroids_are_those_of_lloyd_and_max(bits: int) -> None:
    """Each is the mean of its cell, whose ends are midway between centroids; the error is Max's."""
    normal, half = NormalDist(), CENTROIDS[bits]
    ends = [0.0, *((a + b) / 2 for a, b in pairwise(half)), math.inf]
    error = 1.0
    for centroid, (low, high) in zip(half, pairwise(ends), strict=True):
        share = (1.0 if high == math.inf else normal.cdf(high)) - normal.cdf(low)
        mean = (normal.pdf(low) - (0.0 if high == math.inf else normal.pdf(high))) / share
        assert centroid == pytest.approx(mean, abs=1e-7)
        error -= 2 * share * centroid**2
    assert error == pytest.approx(LLOYD_MAX[bits], abs=1e-5)


@pytest.mark.parametrize("length", [65_536, 100_000])
def test_the_error_of_rotations(length: int) -> None:
    """vNMSE = D/(1 - D) for what is unbiased, D for what is least; of any vector, here of one with few large values."""
    draw = torch.Generator().manual_seed(1)
    for x in (torch.randn(length, generator=draw), torch.randn(length, generator=draw) ** 5):
        size = float(x.double().square().sum())

        def share(codec: Codec, x: torch.Tensor = x, size: float = size) -> float:
            return sum(float((coded(codec, x, n) - x).double().square().sum()) for n in range(4)) / 4 / size

        assert share(DRIVE()) == pytest.approx(math.pi / 2 - 1, rel=0.02)
        assert share(DRIVE(scale="least")) == pytest.approx(1 - 2 / math.pi, rel=0.02)
        for bits, least in LLOYD_MAX.items():
            assert share(EDEN(bits=bits)) == pytest.approx(least / (1 - least), rel=0.02)


@SOME
@given(VECTORS)
def test_rotations_have_the_projection_on_the_vector_exactly(x: torch.Tensor) -> None:
    x = x / 1e4
    for codec in (DRIVE(), EDEN(bits=1), EDEN(bits=4)):
        size = float(x.double().square().sum())
        if size > 1e-60:
            assert float(coded(codec, x).double() @ x.double()) == pytest.approx(size, rel=1e-4)


def test_clipping_in_terngrad_is_at_so_many_standard_deviations() -> None:
    x = skewed()
    sent = coded(TernGrad(clip_sigma=2.5), x)
    assert float(sent.abs().max()) == pytest.approx(2.5 * float(x.double().std(correction=0)), rel=1e-6)
    alike = torch.full((10,), 3.0)
    assert torch.equal(coded(TernGrad(clip_sigma=2.5), alike), alike)

"""What is proven of codecs, as checks against closed forms: tests call them, and plant bugs that they must catch."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.stages.codecs import DRIVE, EDEN, QSGD, Codec, Int8, RandK, TernGrad, TopK

ROUNDING = 2.0**-20
"""What float32 may cost, relative to the largest value, beyond the error that a codec is meant to have."""


def draw(number: int = 0) -> torch.Generator:
    return seeds.generator(5, number, 0, "client", "codec:params")


def coded(codec: Codec, x: Tensor, number: int = 0) -> Tensor:
    return codec.decode(codec.encode(x, draw(number)), len(x))


def decodings(codec: Codec, x: Tensor, num_draws: int) -> Tensor:
    """Return independent decodings of one vector, float64 (num_draws, D)."""
    return torch.stack([coded(codec, x, number) for number in range(num_draws)]).double()


def skewed(length: int = 240) -> Tensor:
    """Two values that are much larger than the others, which are not so small that a level is hardly ever sent for one,
    and a few zeros.
    """
    x = torch.randn(length, generator=torch.Generator().manual_seed(length))
    x += 0.5 * x.sign()
    x[:2] = torch.tensor([40.0, -40.0])
    x[5:9] = 0
    return x


def check_unbiased(codec: Codec, x: Tensor, num_draws: int = 1500) -> None:
    """|mean error| < 5 sigma/sqrt(N), value by value, and along the vector itself."""
    errors = decodings(codec, x, num_draws) - x.double()
    along = errors @ (x.double() / x.double().norm())
    for seen in (*errors.T, along):
        limit = 5 * float(seen.std()) / math.sqrt(num_draws) + ROUNDING * float(x.abs().max())
        assert abs(float(seen.mean())) < limit, f"{codec}: off by {float(seen.mean()):.3g}, at most {limit:.3g}"


def check_mean_square(codec: Codec, x: Tensor, expected: float, num_draws: int = 1000) -> None:
    """The mean of |C - x|^2 is what the closed form says, to five standard errors."""
    squares = (decodings(codec, x, num_draws) - x.double()).square().sum(dim=1)
    limit = 5 * float(squares.std()) / math.sqrt(num_draws) + ROUNDING * expected
    mean = float(squares.mean())
    assert abs(mean - expected) < limit, f"{codec}: {mean:.6g}, expected {expected:.6g} up to {limit:.3g}"


def check_square(codec: Codec, x: Tensor, expected: float) -> None:
    """|C - x|^2 is what the closed form says, whatever was drawn."""
    square = float((coded(codec, x).double() - x.double()).square().sum())
    assert math.isclose(square, expected, rel_tol=1e-5, abs_tol=1e-12), (
        f"{codec}: {square:.6g}, expected {expected:.6g}"
    )


def in_blocks(x: Tensor, block: int | None) -> Iterator[np.ndarray]:
    values = x.double().numpy()
    size = block or max(1, len(values))
    return (values[start : start + size] for start in range(0, len(values), size))


def rounded_at_random(x: Tensor, block: int | None, levels: int, norm: float) -> float:
    """sum over blocks of (c/s)^2 sum f(1-f): f is what a value has beyond the level below it; c the block's norm."""
    total = 0.0
    for part in in_blocks(x, block):
        step = np.linalg.norm(part, norm) / levels
        if step:
            fraction = np.abs(part) / step % 1
            total += step**2 * float((fraction * (1 - fraction)).sum())
    return total


def qsgd_square(codec: QSGD, x: Tensor) -> float:
    return rounded_at_random(x, codec.bucket, codec.num_levels, 2)


def terngrad_square(x: Tensor, block: int | None = None) -> float:
    """E|Q|^2 - |x|^2 = |x|_1 max|x| - |x|^2, block by block."""
    return sum(float(np.abs(b).sum() * np.abs(b).max() - (b**2).sum()) for b in in_blocks(x, block))


def sign_square(x: Tensor, block: int | None = None) -> float:
    return sum(float((b**2).sum() - np.abs(b).sum() ** 2 / len(b)) for b in in_blocks(x, block))


LLOYD_MAX = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950}
"""The least mean square error of 2^b levels for a normal variable of variance 1: J. Max, 1960."""

STOCHASTIC: list[Codec] = [
    Int8(rounding="stochastic", block=64), QSGD(bucket=64), QSGD(bits=2, bucket=0), QSGD(levels=20, coding="elias"),
    QSGD(bits=12, bucket=100), TernGrad(), TernGrad(block=50), RandK(fraction=0.25), RandK(fraction=0.8), DRIVE(),
    *(EDEN(bits=b) for b in (1, 2, 3, 4)),
]  # fmt: skip
"""Every codec that claims to be unbiased and is not exact."""


def check_top_k(x: Tensor, k: int) -> None:
    """The k largest magnitudes, of equal ones the first, as they are; nothing else."""
    order = sorted(range(len(x)), key=lambda i: (-abs(float(x[i])), i))[:k]
    expected = torch.zeros_like(x)
    expected[order] = x[order]
    assert torch.equal(coded(TopK(k=k), x), expected)


def check_contracts(codec: Codec, x: Tensor, delta: float) -> None:
    """|C - x|^2 <= (1 - delta) |x|^2."""
    error, size = ((v.double() ** 2).sum() for v in (coded(codec, x) - x, x))
    assert float(error) <= (1 - delta) * float(size) * (1 + 1e-6) + 1e-300


def sign_delta(x: Tensor) -> float:
    """|x|_1^2/(D |x|_2^2)."""
    size = float((x.double() ** 2).sum())
    return float(x.double().abs().sum()) ** 2 / (len(x) * size) if size else 1.0

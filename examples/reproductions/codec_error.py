"""The error of codecs beside what is proven of it: E|C(x) - x|^2 / |x|^2, of a normal vector and of its cubes.

    python examples/reproductions/codec_error.py

Closed forms: QSGD (|x|/s)^2 sum f(1-f) over each bucket (Alistarh et al. 2017); TernGrad |x|_1 max|x| - |x|^2 (Wen et
al. 2017); random k D/k - 1 (Stich et al. 2018); signs 1 - |x|_1^2/(D |x|^2) (Karimireddy et al. 2019); DRIVE pi/2 - 1
and 1 - 2/pi, EDEN D_b/(1 - D_b) with the error D_b of Lloyd's and Max's quantiser of a normal variable (Vargaftik et
al. 2021, 2022). Those of rotations hold for D to infinity, the others for every vector, to the last digit.
"""

import argparse
import math
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from roundelay import seeds
from roundelay.stages.codecs import DRIVE, EDEN, QSGD, STC, Codec, Int8, RandK, Sign, TernGrad, TopK

LLOYD_MAX = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950}
Form = Callable[[Tensor], float]
"""From a float64 vector to a mean square error, relative to |x|^2."""


def levels(s: int, block: int, order: float) -> Form:
    def form(x: Tensor) -> float:
        total = 0.0
        for part in x.split(block or len(x)):
            step = float(torch.linalg.vector_norm(part, order)) / s
            fraction = part.abs() / step % 1
            total += step**2 * float((fraction * (1 - fraction)).sum())
        return total / float(x.square().sum())

    return form


def terngrad(x: Tensor) -> float:
    return float(x.abs().sum() * x.abs().max() / x.square().sum()) - 1


def sign(x: Tensor) -> float:
    return 1 - float(x.abs().sum() ** 2 / (len(x) * x.square().sum()))


def random_k(share: float) -> Form:
    return lambda x: len(x) / round(share * len(x)) - 1


def top_k(share: float, alike: bool) -> Form:
    """What is left out; and, where all that is sent is sent as its mean, what that differs by."""

    def form(x: Tensor) -> float:
        taken = x.abs().sort(descending=True).values[: round(share * len(x))]
        kept = len(taken) * taken.mean() ** 2 if alike else taken.square().sum()
        return 1 - float(kept / x.square().sum())

    return form


def constant(value: float) -> Form:
    return lambda x: value


ROWS: list[tuple[Codec, Form]] = [
    (Int8(rounding="stochastic"), levels(127, 256, math.inf)),
    (QSGD(), levels(7, 512, 2)),
    (QSGD(bits=8), levels(127, 512, 2)),
    (QSGD(levels=1, bucket=0, coding="elias"), levels(1, 0, 2)),
    (TernGrad(), terngrad),
    (RandK(fraction=0.1), random_k(0.1)),
    (TopK(fraction=0.1), top_k(0.1, alike=False)),
    (STC(fraction=0.1), top_k(0.1, alike=True)),
    (Sign(), sign),
    (DRIVE(scale="least"), constant(1 - 2 / math.pi)),
    (DRIVE(), constant(math.pi / 2 - 1)),
    *((EDEN(bits=b), constant(least / (1 - least))) for b, least in LLOYD_MAX.items()),
]


def measured(codec: Codec, x: Tensor, num_draws: int) -> tuple[float, float, float]:
    """Return the mean of |C - x|^2 / |x|^2, its standard error, and the mean number of bits a value."""
    errors, bits = [], 0.0
    for draw in range(num_draws):
        data = codec.encode(x, seeds.generator(1, draw, 0, "client", "codec:params"))
        errors.append(float((codec.decode(data, len(x)).double() - x.double()).square().sum()))
        bits += 8 * len(data) / len(x) / num_draws
    found = torch.tensor(errors, dtype=torch.float64) / float(x.double().square().sum())
    return float(found.mean()), float(found.std() / math.sqrt(num_draws)), bits


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--values", type=int, default=131_072)
    parser.add_argument("--draws", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    normal = torch.randn(asked.values, generator=torch.Generator().manual_seed(1))
    table = Table("codec", "vector", "bits a value", "measured", "+-", "closed form", "measured / closed")
    for name, x in (("normal", normal), ("cubed", normal**3)):
        for codec, form in ROWS:
            mean, error, bits = measured(codec, x, asked.draws)
            closed = form(x.double())
            table.add_row(
                str(codec), name, f"{bits:.3f}", f"{mean:.6g}", f"{error:.1g}", f"{closed:.6g}", f"{mean / closed:.4f}"
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()

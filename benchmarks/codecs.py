"""What codecs cost: 25 million float32 values (100 MB) encoded and decoded, on one core with one torch thread.

    python benchmarks/codecs.py

The rate is 100 MB over both times, draws included. Beside it, in the same run: a copy of the vector into new memory
(*copy*), once for each codec, so that a noisy minute hits both; and the cast to half precision and back that torch
makes. Memory that the allocator hands out again is cheaper than new: a copy there and back can cost less than one that
is not. Times are processor time, of one thread, so that other work on the machine counts
only by what it does to caches and memory.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from roundelay import seeds
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
)

CODECS: list[tuple[Codec, int | None]] = [
    (FP32(), None),
    (FP16(), 200),
    (BF16(), 200),
    (Int8(), 200),
    (Int8(rounding="stochastic"), 200),
    (FP8(), None),
    (QSGD(), 200),
    (QSGD(bits=8), None),
    (QSGD(bits=3), None),
    (QSGD(coding="elias"), None),
    (TernGrad(), 200),
    (TernGrad(clip_sigma=2.5), None),
    (Sign(), 200),
    (TopK(fraction=0.01), 60),
    (TopK(fraction=0.1), 60),
    (RandK(fraction=0.01), None),
    (STC(fraction=0.01), None),
    (DRIVE(), 60),
    (EDEN(bits=1), 60),
    (EDEN(bits=2), 60),
    (EDEN(bits=4), 60),
]
"""Each with the rate that is aimed at, in MB/s."""


def seconds(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure(codec: Codec, x: torch.Tensor, repeats: int) -> tuple[int, list[float], list[float], list[float]]:
    """Return the bytes of an encoding, and the times of encoding, decoding and a copy."""
    there, back, copies = [], [], []
    for repeat in range(repeats + 1):  # the first is for the allocator
        generator = seeds.generator(1, repeat, 0, "client", "codec:params")
        took, data = seconds(lambda generator=generator: codec.encode(x, generator))
        there.append(took)
        back.append(seconds(lambda data=data: codec.decode(data, len(x)))[0])
        copies.append(seconds(x.clone)[0])
    return len(data), there[1:], back[1:], copies[1:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--values", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    describe_machine()
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds of processor time, medians (least)")
    x = torch.randn(asked.values, generator=torch.Generator().manual_seed(1)) * 0.01
    megabytes = x.nbytes / 1e6
    table = Table("codec", "bits a value", "encode", "decode", "MB/s of both", "aim", "x copy")
    casts = [seconds(lambda: x.half().float())[0] for _ in range(asked.repeats + 1)][1:]
    table.add_row("torch: half and back", "", "", "", f"{megabytes / statistics.median(casts):.0f}", "", "")
    for codec, aim in CODECS:
        size, there, back, copies = measure(codec, x, asked.repeats)
        both = statistics.median(a + b for a, b in zip(there, back, strict=True))
        shown = [f"{1e3 * statistics.median(some):.0f} ({1e3 * min(some):.0f})" for some in (there, back)]
        ratio = both / statistics.median(copies)
        bits = f"{8 * size / len(x):.3f}"
        table.add_row(str(codec), bits, *shown, f"{megabytes / both:.0f}", str(aim or ""), f"{ratio:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

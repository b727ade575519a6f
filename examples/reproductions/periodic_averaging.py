"""FedPAQ: for how long to train between two averages, and how coarsely to quantise what is averaged.

    python examples/reproductions/periodic_averaging.py

A. Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with Periodic Averaging and
Quantization", AISTATS 2020: n = 50 clients, r = 25 in a round, tau steps of SGD, updates through QSGD with s levels of
the whole vector's length. Here on a logistic regression of whether a digit is odd, 100 digits a client. A step's
computing is shifted exponential, half a second and half a second more in the mean; uploads queue at the base station,
where a vector of 32 bits a value takes 100 times as long as a step. So tau is long to compute and short to send, and
what one round's quantisation adds grows with it.
"""

import argparse
import math
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import roundelay as rd
from roundelay import network as net

BATCH, NUM_FEATURES, RATIO = 10, 784, 100
TAUS = {1: 400, 2: 200, 5: 100, 10: 70, 20: 50, 50: 40, 100: 30}
"""tau, and after how many rounds a run is given up."""

CODECS = {f"s = {s}": rd.QSGD(levels=s, bucket=0) for s in (1, 5, 10)} | {"32 bits": rd.FP32()}
TARGET = 0.28


def odd() -> rd.Data:
    """Return all 5,000 digits; what is measured is the loss that is minimised, so that nothing is held out."""
    parts = rd.data.digits()
    inputs, targets = (torch.cat(pair) for pair in zip(everything(parts.train), everything(parts.test), strict=True))
    examples = rd.data.TensorExamples(inputs, (targets % 2).float())
    return rd.Data(train=examples, test=examples)


def everything(examples: rd.data.Examples | None) -> tuple[Tensor, Tensor]:
    assert examples is not None
    return next(iter(examples.batches(torch.arange(len(examples)), len(examples))))


def model() -> nn.Module:
    linear = nn.Linear(NUM_FEATURES, 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)


def network() -> rd.Network:
    """Steps take a second in the mean; a vector as it is takes RATIO seconds, and the downlink nothing."""
    return rd.Network(
        cell=net.Links(uplink_bps=32 * (NUM_FEATURES + 1) / RATIO, downlink_bps=1e15),
        sharing=net.Fifo(),
        computing=net.ShiftedExponential(least_s_per_sample=0.5 / BATCH, rate_per_s=2 * BATCH),
        header_bits=0,
    )


def job(codec: rd.Codec, tau: int, data: rd.Data, seed: int) -> rd.Job:
    return rd.Job(
        model=model,
        data=data,
        partition=rd.IID(num_clients=50),
        learner=rd.LocalSGD(lr=0.05, batch_size=BATCH, local_batches=tau, loss=loss),
        uplink=rd.Uplink(codec=codec),
        num_rounds=TAUS[tau],
        clients_per_round=25,
        seed=seed,
        evaluation=rd.Evaluation(measures=(), batch_size=5000),
        stopping=rd.Stopping(metric="loss", target=TARGET),
        simulation=rd.Simulation(executor="serial", network=network()),
        tracking=None,
    )


def measured(codec: rd.Codec, tau: int, data: rd.Data, num_seeds: int) -> tuple[float, float, float]:
    """Return the simulated seconds to the target, infinitely many where it was not reached in every run; the rounds;
    the least loss.
    """
    found = []
    for seed in range(1, num_seeds + 1):
        rows = job(codec, tau, data, seed).run().rows
        least = min(row["loss"] for row in rows)
        found.append((rows[-1]["virtual_s"] if least <= TARGET else math.inf, len(rows), least))
    seconds, rounds, least = (fmean(values) for values in zip(*found, strict=True))
    return seconds, rounds, least


def compared(quick: bool) -> Table:
    taus, names = ((2, 20, 50), ["s = 1"]) if quick else (tuple(TAUS), list(CODECS))
    data, num_seeds = odd(), 1 if quick else 2
    table = Table("", "bytes", *(f"tau = {tau}" for tau in taus), "best tau", title=f"s to a loss of {TARGET}, rounds")
    for name in names:
        times, cells = dict[int, float](), list[str]()
        for tau in taus:
            times[tau], rounds, least = measured(CODECS[name], tau, data, num_seeds)
            cells.append(f"{times[tau]:.0f}, {rounds:.0f}" if times[tau] < math.inf else f"not below {least:.3f}")
        best = min(times, key=lambda tau: times[tau])
        table.add_row(name, str(CODECS[name].max_bytes(NUM_FEATURES + 1)), *cells, str(best))
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one s, three tau, one seed")
    Console(width=150).print(compared(parser.parse_args().quick))


if __name__ == "__main__":
    main()

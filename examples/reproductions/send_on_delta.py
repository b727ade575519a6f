"""How many updates need not be sent, on real digits: send-on-delta, and EventGraD's rule as one of your own.

    python examples/reproductions/send_on_delta.py

Send-on-delta: M. Miskowicz, Sensors 6, 2006; here of a client's step, whose last one the server uses again, as in LAG
(T. Chen et al., NeurIPS 2018). EventGraD: S. Ghosh, B. Aquino, V. Gupta, Neurocomputing 2021, with the adaptive
threshold of its code: the mean slope of the norm at the last two messages, times the horizon for every silent round
since. It is meant for neighbours that go on from their own parameters, not for clients that begin from a mean.

The second table is what a norm does not see: a client whose parameters turn, and are as long as before.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import roundelay as rd
from roundelay.stages.triggers import Moment

NUM_CLIENTS, LAST = 10, 5
"""Accuracy is the mean of the last ``LAST`` rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventGrad:
    """Send what has come far from what was sent last, by its ``norm``, or as a vector; in the first rounds, always."""

    horizon: float
    warmup: int = 5
    norm: bool = True

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        if moment.round <= self.warmup:
            return True
        threshold = moment.memory["slope"] * self.horizon ** (moment.silent_rounds + 1)
        return bool(self._change(step, start, moment) >= threshold)

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Mapping[str, Tensor]:
        newest = self._change(step, start, moment) / (moment.silent_rounds + 1)
        before = moment.memory.get("newest", torch.zeros(1))
        return {"sent": self._seen(start + step), "newest": newest, "slope": (before + newest) / 2}

    def _change(self, step: Tensor, start: Tensor, moment: Moment) -> Tensor:
        new = self._seen(start + step)
        return torch.linalg.vector_norm(new - moment.memory.get("sent", self._seen(start)))[None]

    def _seen(self, point: Tensor) -> Tensor:
        return torch.linalg.vector_norm(point)[None] if self.norm else point


def steps(threshold: float, on_silence: str = "reuse") -> rd.Uplink:
    """A step is sent that differs from the one sent last by this part of its own length."""
    return rd.Uplink(trigger=rd.SendOnDelta(threshold=threshold, relative=True), on_silence=on_silence)


def points(trigger: rd.Trigger) -> rd.Uplink:
    """Parameters are sent, and those of a silent client stay in the mean as they were sent last."""
    return rd.Uplink(difference=False, trigger=trigger, on_silence="reuse")


WAYS = {
    "all are sent": rd.Uplink(),
    "step changed by 0.5 of it": steps(0.5),
    "step changed by 0.7 of it": steps(0.7),
    "step changed by 0.9 of it": steps(0.9),
    "step changed by 0.9 of it, else 0": steps(0.9, "zero"),
    "step changed by 0.9 of it, else left out": steps(0.9, "exclude"),
    "EventGraD, horizon 0.9": points(EventGrad(horizon=0.9)),
    "EventGraD, horizon 0.98": points(EventGrad(horizon=0.98)),
    "EventGraD, horizon 1": points(EventGrad(horizon=1.0)),
    "EventGraD, horizon 1, at most 4 silent": points(rd.MaxSilence(rounds=4, then=EventGrad(horizon=1.0))),
    "the same by vectors": points(rd.MaxSilence(rounds=4, then=EventGrad(horizon=1.0, norm=False))),
}
QUICK = ("all are sent", "step changed by 0.9 of it", "EventGraD, horizon 0.9", "EventGraD, horizon 1")


def digits(way: rd.Uplink, num_rounds: int, seed: int) -> rd.Job:
    return rd.Job(
        model=partial(rd.models.MLP, 784, [64], 10),
        data=rd.data.digits,
        partition=rd.Dirichlet(num_clients=NUM_CLIENTS, alpha=1.0),
        learner=rd.LocalSGD(lr=0.05, batch_size=50),
        uplink=way,
        num_rounds=num_rounds,
        seed=seed,
        simulation=rd.Simulation(executor="serial"),
        tracking=None,
    )


def measured(way: rd.Uplink, num_rounds: int, seed: int) -> tuple[float, float, float]:
    """Return the accuracy, the share of updates that were not sent, and the megabytes that were."""
    rows = digits(way, num_rounds, seed).run().rows
    silent = sum(row.get("silent", 0) for row in rows) / (NUM_CLIENTS * num_rounds)
    return fmean(row["accuracy"] for row in rows[-LAST:]), silent, sum(row["bytes_up"] for row in rows) / 1e6


def savings(quick: bool) -> Table:
    num_rounds, num_seeds = (60, 1) if quick else (100, 3)
    table = Table("what is sent", "not sent, %", "Mbyte up", "accuracy, %", "points lost", "+-")
    first: list[float] = []
    for name in QUICK if quick else WAYS:
        found = [measured(WAYS[name], num_rounds, seed) for seed in range(1, num_seeds + 1)]
        first = first or [accuracy for accuracy, _, _ in found]
        lost = [100 * (all_sent - accuracy) for all_sent, (accuracy, _, _) in zip(first, found, strict=True)]
        accuracy, silent, sent = (fmean(values) for values in zip(*found, strict=True))
        table.add_row(
            name, f"{100 * silent:.1f}", f"{sent:.1f}", f"{100 * accuracy:.2f}", f"{fmean(lost):+.2f}",
            f"{stdev(lost) / len(lost) ** 0.5:.2f}" if len(lost) > 1 else "",
        )  # fmt: skip
    return table


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(64))


def turning(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """Be at 1 in every coordinate up to round 5, and at -1 from then on."""
    with torch.no_grad():
        model.get_parameter("x").fill_(1.0 if task.round <= 5 else -1.0)
    return 1, {}


def turns() -> Table:
    table = Table("|w - w sent| >= 1, where w becomes -w", "sent in 10 rounds", "x of the server", "x of the client")
    for compare in ("vectors", "norms"):
        trigger = rd.SendOnDelta(threshold=1.0, of="point", compare=compare)
        history = rd.Job(
            model=Point,
            data=rd.FederatedData.from_datasets({"turns": TensorDataset(torch.zeros(1, 1), torch.zeros(1))}),
            learner=turning,
            uplink=points(trigger),
            num_rounds=10,
            evaluation=rd.Evaluation(every=0),
            simulation=rd.Simulation(executor="serial"),
            tracking=None,
        ).run()
        sent = sum(1 - row["silent"] for row in history.rows)
        table.add_row(f"by {compare}", str(sent), f"{history.model.get_parameter('x').mean():+.1f}", "-1.0")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rules and rounds, one seed")
    quick = parser.parse_args().quick
    console = Console(width=120)
    console.print(savings(quick))
    console.print(turns())


if __name__ == "__main__":
    main()

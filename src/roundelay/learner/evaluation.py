"""How well a model does on examples."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from roundelay import metrics
from roundelay.data.examples import Examples
from roundelay.layout import Bound
from roundelay.learner.protocol import LossFunction, on_device

Metric = Callable[[Any, Any], Tensor]
"""``metric(outputs, targets)`` gives one value per example, of shape (B,)."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output (B, classes) is the target (B,), else 0."""
    return (outputs.argmax(-1) == targets).float()


@torch.no_grad()
def evaluate(
    bound: Bound, examples: Examples, loss: LossFunction, measures: Mapping[str, Metric], batch_size: int
) -> metrics.Sums:
    """Return the sums of "loss" and of every measure over ``examples``, in evaluation mode, in the examples' order."""
    bound.module.eval()
    totals: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", *measures)}
    for inputs, targets in examples.batches(torch.arange(len(examples)), batch_size):
        inputs, targets = on_device(inputs, bound.device), on_device(targets, bound.device)
        outputs = bound.module(inputs)
        totals["loss"] += loss(outputs, targets).double().cpu() * len(targets)
        for name, measure in measures.items():
            totals[name] += measure(outputs, targets).double().sum().cpu()
    return metrics.Sums({name: total.item() for name, total in totals.items()}, len(examples))

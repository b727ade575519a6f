"""Measures of whole sets, which are no means over examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.errors import ConfigError

__all__ = ["MacroF1"]


@dataclass(frozen=True, slots=True)
class MacroF1:
    """Metric "macro_f1": the mean over classes of F1 = 2 TP / (2 TP + FP + FN), each class counted once.

    A class that is neither there nor predicted is left out; of none, the metric is NaN. Outputs are scores (B,
    ``num_classes``), targets int64 (B,).
    """

    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"MacroF1 num_classes must be at least 2, got {self.num_classes!r}")

    @property
    def width(self) -> int:
        return self.num_classes**2

    @property
    def summed(self) -> bool:
        return True

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return confusion(outputs, targets, self.num_classes)

    def result(self, rows: Tensor) -> Mapping[str, float]:
        counts = rows.sum(0).view(self.num_classes, self.num_classes)
        hits, there, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        f1 = [2 * hit / (here + said) for hit, here, said in zip(hits.tolist(), there.tolist(), predicted.tolist(),
                                                                 strict=True) if here + said]  # fmt: skip
        return {"macro_f1": sum(f1) / len(f1) if f1 else math.nan}


def confusion(outputs: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return a batch's confusion matrix, (1, C * C) float64, a row of it for each target."""
    pairs = targets * num_classes + outputs.argmax(-1)
    return torch.bincount(pairs, minlength=num_classes**2).double()[None]

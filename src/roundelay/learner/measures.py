"""Measures of whole sets, which are no means over examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay.errors import ConfigError, MetricError

__all__ = ["AUC", "MacroF1"]


@dataclass(frozen=True, slots=True)
class OfClasses:
    """What measures of a confusion matrix share: outputs are scores (B, ``num_classes``), targets int64 (B,)."""

    num_classes: int
    summed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"{type(self).__name__} num_classes must be at least 2, got {self.num_classes!r}")

    @property
    def width(self) -> int:
        return self.num_classes**2

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the batch's confusion matrix, (1, C * C) float64, a row of it for each target."""
        pairs = targets * self.num_classes + outputs.argmax(-1)
        return torch.bincount(pairs, minlength=self.width).double()[None]

    def counted(self, rows: Tensor) -> tuple[list[float], list[float], list[float]]:
        """Return of each class how often it was hit, was there, and was predicted."""
        counts = rows.sum(0).view(self.num_classes, self.num_classes)
        return counts.diagonal().tolist(), counts.sum(1).tolist(), counts.sum(0).tolist()


@dataclass(frozen=True, slots=True)
class MacroF1(OfClasses):
    """Metric "macro_f1": the mean over classes of F1 = 2 TP / (2 TP + FP + FN), each class counted once.

    A class that is neither there nor predicted is left out; of none, the metric is NaN.
    """

    def result(self, rows: Tensor) -> Mapping[str, float]:
        classes = zip(*self.counted(rows), strict=True)
        f1 = [2 * hit / (here + said) for hit, here, said in classes if here + said]
        return {"macro_f1": sum(f1) / len(f1) if f1 else math.nan}


@dataclass(frozen=True, slots=True)
class AUC:
    """Metric "auc": the area under the ROC curve, the chance that an example of class ``positive`` scores higher than
    one of the other classes; equal scores count half. NaN where one of the two kinds is absent.

    Outputs are scores (B, C), of which the log-odds of class ``positive`` against all the others count, or one score
    an example, (B,) or (B, 1), high for class 1. Targets are int64 (B,). One row (score, is positive) an example.
    """

    positive: int = 1

    def __post_init__(self) -> None:
        if self.positive < 0:
            raise ConfigError(f"AUC positive must be a class, 0 or more, got {self.positive!r}")

    @property
    def width(self) -> int:
        return 2

    @property
    def summed(self) -> bool:
        return False

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scores = outputs.double()
        num_classes = scores.shape[1] if scores.ndim == 2 and scores.shape[1] > 1 else 2
        if scores.ndim not in (1, 2) or self.positive >= num_classes or targets.shape != scores.shape[:1]:
            raise MetricError(f"AUC of class {self.positive}: expected scores (B, C) of that class among others and "
                              f"targets (B,), got {tuple(outputs.shape)} and {tuple(targets.shape)}")  # fmt: skip
        if scores.numel() != len(scores):
            others = torch.cat([scores[:, : self.positive], scores[:, self.positive + 1 :]], dim=1)
            scores = scores[:, self.positive] - others.logsumexp(1)
        elif self.positive == 0:
            scores = -scores
        return torch.stack([scores.flatten(), (targets == self.positive).double()], dim=1)

    def result(self, rows: Tensor) -> Mapping[str, float]:
        scores, positive = rows[:, 0], rows[:, 1].bool()
        num_positive, num_negative = int(positive.sum()), int((~positive).sum())
        if not num_positive or not num_negative:
            return {"auc": math.nan}
        # Mann-Whitney: the sum of the positives' ranks, those of equal scores being their mean
        _, groups, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
        ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[groups]
        wins = float(ranks[positive].sum()) - num_positive * (num_positive + 1) / 2
        return {"auc": wins / (num_positive * num_negative)}

"""What is found of each class: recall, precision, and what they come to over classes of unequal size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.learner.measures import confusion

__all__ = ["ClassRates"]


@dataclass(frozen=True, slots=True)
class ClassRates:
    """Metrics "recall_k" (sensitivity) and "precision_k" (positive predictivity) of each class k, and the mean of the
    recalls, "balanced_accuracy".

    A rate of nothing is NaN: the recall of a class that is not there, the precision of one that is never predicted. The
    balanced accuracy is over the classes that are there. Outputs are scores (B, ``num_classes``), targets int64 (B,).
    """

    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"ClassRates num_classes must be at least 2, got {self.num_classes!r}")

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
        hits, there, predicted = (sums.tolist() for sums in (counts.diagonal(), counts.sum(1), counts.sum(0)))
        recalls = [_ratio(hit, number) for hit, number in zip(hits, there, strict=True)]
        precisions = [_ratio(hit, number) for hit, number in zip(hits, predicted, strict=True)]
        found = [recall for recall in recalls if not math.isnan(recall)]
        return {
            **{f"recall_{k}": recall for k, recall in enumerate(recalls)},
            **{f"precision_{k}": precision for k, precision in enumerate(precisions)},
            "balanced_accuracy": _ratio(math.fsum(found), len(found)),
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan

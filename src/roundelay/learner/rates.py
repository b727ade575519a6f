"""What is found of each class: recall, precision, and what they come to over classes of unequal size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from roundelay.learner.measures import OfClasses

__all__ = ["ClassRates"]


@dataclass(frozen=True, slots=True)
class ClassRates(OfClasses):
    """Metrics "recall_k" (sensitivity) and "precision_k" (positive predictivity) of each class k, and the mean of the
    recalls, "balanced_accuracy".

    A rate of nothing is NaN: the recall of a class that is not there, the precision of one that is never predicted. The
    balanced accuracy is over the classes that are there.
    """

    def result(self, rows: Tensor) -> Mapping[str, float]:
        hits, there, predicted = self.counted(rows)
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

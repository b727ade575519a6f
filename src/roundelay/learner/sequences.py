"""A loss and a measure for models that predict something at every position of a sequence.

Shapes: B examples, L positions, K classes. A target of -100, as torch has it, is none: padding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from roundelay.data.text_windows import IGNORED


def sequence_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all targets of the batch; of a batch that is padding only, 0.

    ``outputs`` are (B, L, K) and ``targets`` (B, L), or (B, K) and (B,).

    >>> targets = torch.tensor([[1, -100], [0, 1]])
    >>> round(sequence_cross_entropy(torch.zeros(2, 2, 4), targets).item(), 4)  # log 4, for each of three
    1.3863
    """
    total = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


@dataclass(frozen=True, slots=True)
class NextToken:
    """Of all targets of all examples, the share that has the largest output: "token_accuracy".

    What TensorFlow Federated and FedML report: padding does not count; an end of a speech and a character outside the
    vocabulary are targets like any other; a beginning of a speech is never one.
    """

    @property
    def width(self) -> int:
        return 2

    @property
    def summed(self) -> bool:
        return True

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one row: how many are right, and how many there are."""
        right = (outputs.argmax(-1) == targets).sum()
        return torch.stack([right, (targets != IGNORED).sum()])[None].double()

    def result(self, rows: Tensor) -> Mapping[str, float]:
        right, tokens = rows.sum(0).tolist()
        return {"token_accuracy": right / tokens if tokens else math.nan}

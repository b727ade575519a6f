"""Losses with settings of their own, for a learner's ``loss`` and for evaluation; plain ones are functions of torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WeightedCrossEntropy:
    """Cross-entropy in which an example of class k counts ``weights[k]`` times: for classes that are rare.

    It is a mean over examples, so that means of batches add up to that of all. torch's own, with ``weight``, divides by
    the weights that a batch happens to have: there, a batch that is all of one class counts as if it had no weights.

    >>> import torch
    >>> loss = WeightedCrossEntropy([1.0, 4.0])
    >>> round(float(loss(torch.zeros(2, 2), torch.tensor([0, 1]))) / math.log(2), 4)
    2.5
    """

    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"loss weights: expected a positive number for each class, got {list(self.weights)}")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = outputs.new_tensor(self.weights)
        return (weights[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()

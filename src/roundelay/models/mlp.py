"""A multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between: input (B, ...) of ``num_features`` values an example, output (B, num_classes).

    ``hidden`` are the widths between; McMahan et al. 2017's "2NN" is ``MLP(784, [200, 200], 10)``.

    >>> sum(p.numel() for p in MLP(784, [200, 200], 10).parameters())
    199210
    """

    def __init__(self, num_features: int, hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        widths = [num_features, *hidden, num_classes]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        for number, layer in enumerate(self.layers):
            values = layer(values.relu() if number else values)
        return values

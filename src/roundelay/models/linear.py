"""Multinomial logistic regression."""

from torch import Tensor, nn


class Logistic(nn.Module):
    """One linear layer: input (B, ...) of ``num_features`` values an example, output (B, num_classes) logits.

    (num_features + 1) * num_classes parameters, drawn small by PyTorch's default; the loss is convex in them.

    >>> sum(p.numel() for p in Logistic(784, 10).parameters())
    7850
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits

"""A small convolutional network for 28x28 images, sized for many clients on one core."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and a hidden layer; no batch norm, no dropout.

    Input (B, in_channels, 28, 28), output (B, num_classes). 46,730 parameters as it stands. ``padding`` is that of the
    convolutions; with 2, channels (32, 64) and 512 hidden units it is McMahan et al. 2017's CNN, 1,663,370 parameters.

    >>> sum(p.numel() for p in SmallCNN().parameters())
    46730
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 64,
        padding: int = 0,
    ) -> None:
        super().__init__()
        first, second = channels
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=padding)  # 28 -> 24, pooled 12
        self.conv2 = nn.Conv2d(first, second, 5, padding=padding)  # 12 -> 8, pooled 4
        self.pool = nn.MaxPool2d(2)
        side = (12 + padding + 2 * padding - 4) // 2
        self.hidden = nn.Linear(second * side**2, hidden)
        self.out = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        # Pooling before ReLU is the same function on a quarter of the values.
        features = self.pool(self.conv1(images)).relu()
        features = self.pool(self.conv2(features)).relu()
        logits: Tensor = self.out(self.hidden(features.flatten(1)).relu())
        return logits

"""A small one-dimensional convolutional network with batch norm, for windows of a signal such as heartbeats."""

from torch import Tensor, nn


class BeatCNN(nn.Module):
    """Three convolutions of strides 4, 2 and 2, each with batch norm and ReLU, and a hidden layer.

    Input (B, in_channels, length), output (B, num_classes); ``length`` is a multiple of 16. Where in the window a wave
    lies tells one beat from another, so that nothing is averaged over time. 51,250 parameters as it stands.

    >>> sum(p.numel() for p in BeatCNN().parameters())
    51250
    """

    def __init__(
        self,
        length: int = 288,
        in_channels: int = 1,
        num_classes: int = 2,
        channels: tuple[int, int, int] = (16, 32, 64),
        hidden: int = 32,
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv1d(in_channels, first, 15, stride=4, padding=7, bias=False)  # 288 -> 72
        self.norm1 = nn.BatchNorm1d(first)
        self.conv2 = nn.Conv1d(first, second, 7, stride=2, padding=3, bias=False)  # 72 -> 36
        self.norm2 = nn.BatchNorm1d(second)
        self.conv3 = nn.Conv1d(second, third, 5, stride=2, padding=2, bias=False)  # 36 -> 18
        self.norm3 = nn.BatchNorm1d(third)
        self.hidden = nn.Linear(third * (length // 16), hidden)
        self.out = nn.Linear(hidden, num_classes)

    def forward(self, windows: Tensor) -> Tensor:
        features = self.norm1(self.conv1(windows)).relu()
        features = self.norm2(self.conv2(features)).relu()
        features = self.norm3(self.conv3(features)).relu()
        logits: Tensor = self.out(self.hidden(features.flatten(1)).relu())
        return logits

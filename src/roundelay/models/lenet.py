"""LeNet for CIFAR-10, layer for layer that of PyTorch's CIFAR-10 tutorial and of NVFlare's hello-pt."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels), each with ReLU and 2x2 max pooling, then 400-120-84-num_classes.

    Input (B, in_channels, 32, 32), output (B, num_classes). 62,006 parameters as it stands.

    >>> sum(p.numel() for p in LeNet().parameters())
    62006
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)  # 32 -> 28, pooled 14
        self.conv2 = nn.Conv2d(6, 16, 5)  # 14 -> 10, pooled 5
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.conv1(images).relu())
        features = self.pool(self.conv2(features).relu())
        features = self.fc1(features.flatten(1)).relu()
        logits: Tensor = self.fc3(self.fc2(features).relu())
        return logits

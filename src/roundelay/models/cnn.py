"""The larger convolutional network of federated image benchmarks, as in LEAF, TensorFlow Federated, pfl-research."""

from torch import Tensor, nn


class CNN(nn.Module):
    """Two 3x3 convolutions (32 and 64 channels) with ReLU, one 2x2 max pooling, dropout, 128 hidden units, dropout.

    Input (B, in_channels, image_size, image_size), output (B, num_classes). 1,626,442 parameters as it stands;
    ``image_size`` is at least 6. With ``glorot`` every weight is drawn as TensorFlow draws them, and as pfl-research
    does for its benchmark (uniform, with variance 2 / (fan in + fan out)); biases are PyTorch's.

    >>> sum(p.numel() for p in CNN().parameters())
    1626442
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        hidden: int = 128,
        dropout: tuple[float, float] = (0.25, 0.5),
        glorot: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3)  # 32 -> 30
        self.conv2 = nn.Conv2d(32, 64, 3)  # 30 -> 28, pooled 14
        self.pool = nn.MaxPool2d(2)
        self.dropout1 = nn.Dropout(dropout[0])
        self.hidden = nn.Linear(64 * ((image_size - 4) // 2) ** 2, hidden)
        self.dropout2 = nn.Dropout(dropout[1])
        self.out = nn.Linear(hidden, num_classes)
        if glorot:
            for layer in (self.conv1, self.conv2, self.hidden, self.out):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv1(images).relu()
        features = self.pool(self.conv2(features)).relu()
        features = self.dropout1(features).flatten(1)
        logits: Tensor = self.out(self.dropout2(self.hidden(features).relu()))
        return logits

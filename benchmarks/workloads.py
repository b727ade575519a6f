"""The workloads that benchmarks run: cross entropy, plain SGD, one local epoch, random data of a fixed seed.

The data are noise, so a loss says nothing here; the workloads differ in what they make expensive: `small` and `cnn` the
training itself, `tiny` the handling of a client, `silo` a long client, `big` the moving of parameters, `gru` the many
small steps of a recurrent layer. Frameworks are compared on the first five.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEARNING_RATE = 0.1
SEED = 2026


class Logistic(nn.Module):
    """Logistic regression: 610 parameters for 60 features and 10 classes."""

    def __init__(self, num_features: int = 60, num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class LeNet(nn.Module):
    """LeNet-5 for 3 x 32 x 32 images with ReLU and max pooling: 62,006 parameters for 10 classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class Cnn(nn.Module):
    """Two 3 x 3 convolutions and two dense layers with dropout: 1,626,442 parameters for 3 x 32 x 32 and 10 classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 14 * 14, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout1(x).flatten(1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return self.fc2(x)


class Mlp(nn.Module):
    """Dense layers with ReLU between them; `widths` runs from the features to the classes."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class CharGru(nn.Module):
    """Next characters by an embedding, a GRU of 64 and a dense layer: 20,194 parameters for 82 characters."""

    def __init__(self, num_characters: int = 82) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_characters, 8)
        self.gru = nn.GRU(8, 64, batch_first=True)
        self.out = nn.Linear(64, num_characters)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(x))[0]).transpose(1, 2)  # classes second, as cross entropy has it


@dataclass(frozen=True, slots=True)
class Workload:
    """One federated job; `make_model()` draws its weights from torch's global generator, so seed that first."""

    name: str
    num_clients: int
    examples_per_client: int
    cohort: int
    batch_size: int
    make_model: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    num_classes: int
    rounds: int
    is_text: bool = False

    def make_data(self) -> tuple[Tensor, Tensor]:
        """Return new float32 inputs of shape (N, *input_shape) and int64 labels of shape (N,), the same at every call;
        of text, int64 characters (N, L) and those that follow them.

        Client i owns the rows [i * examples_per_client, (i + 1) * examples_per_client). `small` and `cnn` take 614 MB.
        """
        num_rows = self.num_clients * self.examples_per_client
        generator = torch.Generator().manual_seed(SEED)
        if self.is_text:
            (length,) = self.input_shape
            text = torch.randint(self.num_classes, (num_rows, length + 1), generator=generator)
            return text[:, :-1].contiguous(), text[:, 1:].contiguous()
        x = torch.randn(num_rows, *self.input_shape, generator=generator)
        y = torch.randint(self.num_classes, (num_rows,), generator=generator)
        return x, y


IMAGE = (3, 32, 32)
BIG_WIDTHS = (1024, 3072, 3072, 3072, 1024, 10)  # 25,186,314 parameters, 100.7 MB

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("small", 1000, 50, 50, 10, LeNet, IMAGE, 10, rounds=20),
        Workload("cnn", 1000, 50, 10, 10, Cnn, IMAGE, 10, rounds=10),
        Workload("tiny", 1000, 20, 200, 10, Logistic, (60,), 10, rounds=50),
        Workload("silo", 8, 200, 8, 32, LeNet, IMAGE, 10, rounds=40),
        Workload("big", 8, 8, 8, 8, partial(Mlp, BIG_WIDTHS), (1024,), 10, rounds=10),
        Workload("gru", 1000, 8, 50, 4, CharGru, (80,), 82, rounds=10, is_text=True),
    )
}

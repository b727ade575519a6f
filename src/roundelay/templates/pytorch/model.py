"""The network. Any class or function that returns a torch.nn.Module will do; job.toml names it."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(28 * 28, width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.hidden(images.flatten(1))))
        return logits

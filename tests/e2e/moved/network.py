"""The network and the data of the moved scripts: points in a plane, and on which side of a circle they lie."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """With a BatchNorm layer, so that float buffers and a counter travel too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.layers(points)
        return logits


def points_of(site: str, count: int = 128) -> tuple[Tensor, Tensor]:
    """Return the points (count, 2) of a site, which are its own, and their classes."""
    generator = torch.Generator().manual_seed(int(site.rpartition("-")[2]))
    points = torch.randn(count, 2, generator=generator)
    return points, (points.square().sum(1) > 1.4).long()

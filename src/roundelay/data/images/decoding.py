"""Images that are decoded when a batch needs them, and kept by nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from roundelay.data.images.pixels import Channels, normalised
from roundelay.errors import ConfigError

BILINEAR = 2
"""Pillow's number for it. Where an image becomes smaller, it takes the mean over what falls into a pixel."""


class Pictures(Protocol):
    """Images somewhere, by number."""

    def image(self, number: int) -> np.ndarray:
        """Return one image as uint8 of shape (H, W) or (H, W, C)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A map-style data set of pictures: item n is picture n, float32 (C, H, W), normalised, and its class."""

    pictures: Pictures
    targets: Sequence[int]
    mean: Channels
    std: Channels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image = self.pictures.image(index)
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return normalised(torch.from_numpy(np.ascontiguousarray(planes)), self.mean, self.std), self.targets[index]


@dataclass(frozen=True, slots=True)
class Form:
    """What every image is brought to: ``size`` is the side of a square, or (height, width); ``mean`` and ``std`` are
    one number a channel, 3 for colour, 1 for grey.
    """

    size: int | Sequence[int]
    mean: Channels
    std: Channels

    def __post_init__(self) -> None:
        sides = tuple(self.size) if isinstance(self.size, Sequence) else (self.size, self.size)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ConfigError(f"size: expected a number of pixels, or a height and a width, got {self.size!r}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ConfigError(f"mean and std: expected 3 numbers each for colour, or 1 for grey, got {len(self.mean)} "
                              f"and {len(self.std)}")  # fmt: skip
        if min(self.std) <= 0:
            raise ConfigError(f"std: expected numbers above 0, got {list(self.std)}")

    def fitted(self, image: Any) -> np.ndarray:  # Any: Pillow's Image, without importing Pillow for it
        """Return an image of Pillow's as uint8 (H, W) or (H, W, 3), stretched or shrunk to ``size``."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        pixels = image.convert("L" if len(self.mean) == 1 else "RGB").resize((width, height), BILINEAR)
        return np.array(pixels)

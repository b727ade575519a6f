"""What is changed in images before they are trained on, whole batches at once.

A learner's ``augment`` gets batches as the data set gives them: of most image sets, normalised. Evaluation sees them
unchanged. All draws come from the generator that is given, which is keyed by seed, round, attempt and client, so that
they do not depend on who trains or in which order. Nothing is changed in place.

Shapes: inputs (B, C, H, W), targets anything of B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roundelay.errors import ConfigError, DataError

__all__ = ["Compose", "HorizontalFlip", "Normalise", "RandomCrop"]


class Step(Protocol):
    """One change; a learner's ``augment`` too."""

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a batch in place of that one, and change nothing in place."""


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """An image's own size cut out of it at random, after ``padding`` pixels were put around it.

    They have the value ``fill``, or one for each channel: 0 is the mean colour where inputs are normalised. Black, as
    where others pad before they normalise, is -mean / std: for CIFAR-10 (-1.989, -1.980, -1.707).

    >>> inputs = torch.arange(4.0).view(1, 1, 2, 2)
    >>> RandomCrop(padding=1)(inputs, torch.tensor([7]), torch.Generator().manual_seed(1))
    (tensor([[[[1., 0.],
              [3., 0.]]]]), tensor([7]))
    """

    padding: int = 4
    fill: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if type(self.padding) is not int or self.padding < 1:
            raise ConfigError(f"random_crop padding: expected a whole number of at least 1, got {self.padding!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number, channels, height, width = _shape(inputs, "random_crop")
        fill = torch.as_tensor(self.fill, dtype=inputs.dtype, device=inputs.device)
        if fill.ndim and fill.shape != (channels,):
            raise ConfigError(f"random_crop fill: expected a number, or {channels}, one a channel, got {self.fill!r}")
        around = self.padding
        padded = fill.view(-1, 1, 1).expand(number, channels, height + 2 * around, width + 2 * around).clone()
        padded[:, :, around:-around, around:-around] = inputs
        tops, lefts = torch.randint(2 * around + 1, (2, number), generator=generator).to(inputs.device)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every crop that there is, as one view
        return windows[torch.arange(number, device=inputs.device), :, tops, lefts], targets


@dataclass(frozen=True, slots=True)
class HorizontalFlip:
    """Each image mirrored, left to right, with a ``probability`` of its own."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"horizontal_flip probability: expected a number from 0 to 1, got {self.probability!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number, *_ = _shape(inputs, "horizontal_flip")
        turned = (torch.rand(number, generator=generator) < self.probability).to(inputs.device)
        return torch.where(turned.view(-1, 1, 1, 1), inputs.flip(-1), inputs), targets


@dataclass(frozen=True, slots=True)
class Normalise:
    """(input - mean) / std, by channel: for data that comes as it was stored, and a model that is evaluated on such
    inputs too, as one that normalises them itself in evaluation mode. The image sets here are normalised already.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            got = f"{list(self.mean)} and {list(self.std)}"
            raise ConfigError(f"normalise: expected a mean and a std above 0 for each channel, got {got}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        _, channels, *_ = _shape(inputs, "normalise")
        if channels != len(self.mean):
            raise ConfigError(f"normalise: it has {len(self.mean)} numbers for each of mean and std, the images have "
                              f"{channels} channels")  # fmt: skip
        mean, std = (torch.tensor(values, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1)
                     for values in (self.mean, self.std))  # fmt: skip
        return (inputs - mean) / std, targets


@dataclass(frozen=True, slots=True)
class Compose:
    """Several changes, one after the other, which draw from one generator in this order."""

    steps: Sequence[Step]

    def __post_init__(self) -> None:
        if not self.steps or not all(callable(step) for step in self.steps):
            raise ConfigError(f"compose steps: expected a list of changes such as [RandomCrop()], got {self.steps!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for step in self.steps:
            inputs, targets = step(inputs, targets, generator=generator)
        return inputs, targets


def _shape(inputs: Tensor, name: str) -> torch.Size:
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise DataError(f"{name}: expected images, float of shape (B, C, H, W), got {inputs.dtype} of shape "
                        f"{tuple(inputs.shape)}")  # fmt: skip
    return inputs.shape

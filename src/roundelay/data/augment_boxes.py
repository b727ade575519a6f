"""Augmentations that move boxes with what they are around: ``augment(inputs, targets, generator)`` on batches of
detection, inputs (B, 3, H, W), targets (B, M, 6) as ``roundelay.data.boxes`` has them. Each image has draws of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from roundelay.data import boxes
from roundelay.errors import ConfigError

__all__ = ["CropBoxes", "FlipBoxes", "Mosaic"]

GREY = 0.5
"""What is seen beyond an image's edge."""


@dataclass(frozen=True, slots=True)
class FlipBoxes:
    """Mirror an image left to right, and top to bottom, each with a probability of its own. ``vertical`` is for what
    has no upside, as seen from the air.
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("horizontal", self.horizontal), ("vertical", self.vertical)):
            if not 0 <= value <= 1:
                raise ConfigError(f"FlipBoxes {name} must be a probability from 0 to 1, got {value!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draws = torch.rand(2, len(inputs), generator=generator).to(inputs.device)
        for axis, probability, drawn in ((0, self.horizontal, draws[0]), (1, self.vertical, draws[1])):
            flipped = drawn < probability
            inputs = torch.where(flipped[:, None, None, None], inputs.flip(3 - axis), inputs)
            targets = torch.where(flipped[:, None, None], _mirrored(targets, axis, inputs.shape[3 - axis]), targets)
        return inputs, targets


@dataclass(frozen=True, slots=True)
class CropBoxes:
    """See each image through a window elsewhere and of another size: ``smallest`` to ``largest`` times the image's
    sides, stretched to the image's size. A window within the image crops it, one larger than it is filled up with grey.

    An object of which less than ``min_visible`` of the area is left is ignored: it is neither there nor not there.
    """

    smallest: float = 0.6
    largest: float = 1.2
    min_visible: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.smallest <= self.largest:
            raise ConfigError(
                f"CropBoxes must have 0 < smallest <= largest, got {self.smallest!r} and {self.largest!r}"
            )
        if not 0 <= self.min_visible <= 1:
            raise ConfigError(f"CropBoxes min_visible must be a share from 0 to 1, got {self.min_visible!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number, _, height, width = inputs.shape
        draws = torch.rand(number, 3, generator=generator).to(inputs.device)
        side = self.smallest + (self.largest - self.smallest) * draws[:, 0]
        start = (1 - side)[:, None] * draws[:, 1:]  # of the window, in shares of the image; below 0 where it is larger
        shift = 2 * start + side[:, None] - 1
        window = torch.diag_embed(side[:, None].expand(-1, 2))
        grid = F.affine_grid(torch.cat([window, shift[:, :, None]], 2), list(inputs.shape), align_corners=False)
        seen = F.grid_sample(inputs - GREY, grid, padding_mode="zeros", align_corners=False) + GREY
        size = targets.new_tensor([width, height]).repeat(2)
        moved = (targets[..., boxes.BOX] - start.repeat(1, 2)[:, None] * size) / side[:, None, None]
        return seen, _with_boxes(targets, moved, (width, height), self.min_visible)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Put four images of the batch together, each at half its size in a quarter, with the given probability
    (Bochkovskiy et al. 2020, YOLOv4); the image itself is upper left. Targets have four times the rows.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"Mosaic probability must be from 0 to 1, got {self.probability!r}")

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        number, _, height, width = inputs.shape
        drawn = (torch.rand(number, generator=generator) < self.probability).to(inputs.device)
        others = torch.randint(number, (3, number), generator=generator).to(inputs.device)
        quarters = [torch.arange(number, device=inputs.device), *others]
        small = F.interpolate(inputs, (height // 2, width // 2), mode="bilinear", align_corners=False, antialias=True)
        put, rows = torch.full_like(inputs, GREY), []
        for at, chosen in enumerate(quarters):
            left, top = at % 2 * (width // 2), at // 2 * (height // 2)
            put[:, :, top : top + height // 2, left : left + width // 2] = small[chosen]
            scale = targets.new_tensor([width // 2 / width, height // 2 / height]).repeat(2)
            moved = targets[chosen][..., boxes.BOX] * scale + targets.new_tensor([left, top]).repeat(2)
            rows.append(_with_boxes(targets[chosen], moved, (width, height), 0.0))
        alone = F.pad(targets, (0, 0, 0, 3 * targets.shape[1]))
        alone[:, targets.shape[1] :, boxes.CLASS] = -1
        return (
            torch.where(drawn[:, None, None, None], put, inputs),
            torch.where(drawn[:, None, None], torch.cat(rows, 1), alone),
        )


def _mirrored(targets: Tensor, axis: int, size: int) -> Tensor:
    mirrored = targets.clone()
    low, high = 1 + axis, 3 + axis
    mirrored[..., low], mirrored[..., high] = size - targets[..., high], size - targets[..., low]
    return _without_none(mirrored)


def _with_boxes(targets: Tensor, moved: Tensor, size: tuple[int, int], min_visible: float) -> Tensor:
    """Return the targets with boxes elsewhere, cut at the image's edges. What is out of it is an object no more."""
    limit = moved.new_tensor(size).repeat(2)
    cut = torch.minimum(moved.clamp(min=0), limit)
    left, whole = boxes.areas(cut), boxes.areas(moved)
    changed = targets.clone()
    changed[..., boxes.BOX] = cut
    changed[..., boxes.IGNORED] = torch.where(left < min_visible * whole, 1.0, targets[..., boxes.IGNORED])
    changed[..., boxes.CLASS] = torch.where(left > 0, targets[..., boxes.CLASS], -1.0)
    return _without_none(changed)


def _without_none(targets: Tensor) -> Tensor:
    """Return the targets with zeros in the rows that are no object."""
    none = targets[..., boxes.CLASS, None] < 0
    return torch.where(none, targets.new_tensor([-1.0, 0, 0, 0, 0, 0]), targets)

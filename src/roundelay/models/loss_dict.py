"""Detectors that follow torchvision's convention, as any other model: ``detector(images, targets)`` in training gives a
dictionary of losses, ``detector(images)`` in evaluation a list of dictionaries of boxes, labels and scores.

Such a detector wants the targets in its forward pass, which a training step here has not at hand yet. So the forward
pass of the model around it only takes the images down; the detector runs when the loss, or boxes, are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from roundelay.data import boxes
from roundelay.errors import ConfigError, optional

FIRST_LABEL = 1
"""Of the first class; 0 is the background, as torchvision has it."""

KEEPS_STILL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
"""Layers that stay in evaluation mode when a loss is asked for in evaluation: a measurement changes no statistic."""


class LossDictDetector(nn.Module):
    """A detector of torchvision's convention as a model whose output is a ``Detected``.

    ``detector`` takes a list of images (3, H, W) from 0 to 1, and in training a list of ``{"boxes": (N, 4) float32,
    "labels": (N,) int64}``; class k has label k + ``first_label``. Its losses are added up. Objects to be ignored are
    left out.
    """

    def __init__(self, detector: nn.Module, first_label: int = FIRST_LABEL) -> None:
        super().__init__()
        self.detector, self.first_label = detector, first_label

    def forward(self, images: Tensor) -> "Asked":
        return Asked(self, images)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Images (B, 3, H, W) of which the detector will be asked; it is as it is then, so ask before the next step."""

    model: LossDictDetector
    images: Tensor

    def loss(self, targets: Tensor) -> Tensor:
        """Raises:
        ConfigError: the detector gives no losses by name, so it does not follow the convention.
        """
        detector, first = self.model.detector, self.model.first_label
        told = [{"boxes": rows[:, boxes.BOX], "labels": rows[:, boxes.CLASS].long() + first}
                for rows in map(boxes.wanted, targets)]  # fmt: skip
        with _giving_losses(detector):
            losses = detector(list(self.images), told)
        if not isinstance(losses, dict) or not losses:
            raise ConfigError(f"{type(detector).__name__} gave a {type(losses).__name__} in training; expected a "
                              "dictionary of losses, as torchvision's detectors give")  # fmt: skip
        return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()

    def detections(self) -> list[Tensor]:
        found = []
        for one in self.model.detector(list(self.images)):
            labels = one["labels"].to(one["boxes"].dtype) - self.model.first_label
            rows = torch.cat([labels[:, None], one["boxes"], one["scores"][:, None]], 1)
            found.append(rows[one["scores"].argsort(descending=True, stable=True)])
        return found


def torchvision_detector(name: str, num_classes: int, image_size: int = 200) -> LossDictDetector:
    """Return one of torchvision's detectors, untrained, by its name there, such as "fasterrcnn_mobilenet_v3_large_fpn".
    It sees images at ``image_size``, where its kind says how large.

    Raises:
        ConfigError: torchvision has no such detector.
        MissingExtra: torchvision is not installed.
    """
    with optional("torchvision", "torchvision"):
        from torchvision.models import detection
    make = getattr(detection, name, None)
    if not callable(make):
        raise ConfigError(f"torchvision.models.detection has no {name!r}; it has, for example, fasterrcnn_resnet50_fpn")
    sizes = {} if name.startswith("ssd") else {"min_size": image_size, "max_size": image_size}
    return LossDictDetector(make(weights=None, weights_backbone=None, num_classes=num_classes + FIRST_LABEL, **sizes))


@contextmanager
def _giving_losses(detector: nn.Module) -> Iterator[None]:
    """Have a detector give losses, whichever mode it is in, and leave it in that mode."""
    if detector.training:
        yield
        return
    for part in detector.modules():
        part.training = not isinstance(part, KEEPS_STILL)
    try:
        yield
    finally:
        detector.eval()

"""What a detector's forward pass gives, whoever made the detector, and what several of them need."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay.data import boxes

SCORE = 5
"""The column of a detection that holds its score; class and box stand where targets have them."""


@runtime_checkable
class Detected(Protocol):
    """What a detector sees in a batch of images. The loss is worked out when targets are at hand, boxes when they are
    asked for: a training step pays for no boxes, an evaluation for one forward pass.
    """

    def loss(self, targets: Tensor) -> Tensor:
        """Return the mean loss over the images; ``targets`` (B, M, 6) are as ``roundelay.data.boxes`` has them."""
        ...

    def detections(self) -> list[Tensor]:
        """Return for each image (D, 6): class, x1, y1, x2, y2, score; highest score first, on any device."""
        ...


def suppressed(found: Tensor, max_overlap: float, most: int) -> Tensor:
    """Return what greedy non-maximum suppression leaves of detections (D, 6), highest score first, at most ``most``.

    A detection goes where one of its class with a higher score overlaps it (intersection over union) by more than
    ``max_overlap``. Of equal scores the first stays.
    """
    found = found[found[:, SCORE].argsort(descending=True, stable=True)]
    same = found[:, None, boxes.CLASS] == found[None, :, boxes.CLASS]
    rivals = (boxes.overlaps(found[:, boxes.BOX], found[:, boxes.BOX]) > max_overlap) & same
    alive, kept = torch.ones(len(found), dtype=torch.bool, device=found.device), list[int]()
    for at in range(len(found)):
        if len(kept) == most:
            break
        if alive[at]:
            kept.append(at)
            alive &= ~rivals[at]
    return found[kept]

"""Pictures of what a trained detector finds, into a run's folder."""

from pathlib import Path

import torch
from torch import nn

from roundelay.data.detection import DetectionExamples
from roundelay.data.examples import Examples
from roundelay.models.detected import Detected
from roundelay.report.plots import plot_detections

PICTURE = "detections.png"


@torch.no_grad()
def draw_detections(folder: Path, model: nn.Module, examples: Examples | None, most: int = 5) -> list[Path]:
    """Draw what the model finds on at most ``most`` examples, as far apart as they lie in their order, so that several
    devices are shown. Returns the picture's path; nothing where the examples are no photographs with
    boxes, or the model is no detector of ours.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if not isinstance(examples, DetectionExamples):
        return []
    part = examples.select(torch.linspace(0, len(examples) - 1, min(most, len(examples))).long())
    images, targets = next(part.batches(torch.arange(len(part)), len(part)))
    model.eval()
    seen = model(images)
    if not isinstance(seen, Detected):
        return []
    plot_detections(images, targets, seen.detections(), folder / PICTURE, part.names(), part.album.classes)
    return [folder / PICTURE]

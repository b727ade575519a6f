"""A small single-stage detector: a grid of cells, of which each says whether it is at the middle of an object, where
its box lies and what it is, as in YOLO (Redmon et al. 2016).

Without anchors, with 3 x 3 cells for each object, as in FCOS and YOLOX (Tian et al. 2019, Ge et al. 2021); a cell's
confidence is trained towards the overlap that its box has (the quality focal loss of Li et al. 2020, equation 5), and
boxes by complete IoU (Zheng et al. 2020, equations 8 to 11).

Shapes: B images, K classes, G = rows x columns of the grid, M objects at most in an image.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roundelay.data import boxes
from roundelay.errors import ConfigError
from roundelay.models.detected import suppressed

STRIDE = 8
"""Pixels from cell to cell."""

RADIUS = 1.5
"""Cells so near to an object's middle, in cells along either axis, answer for it."""

BOX_WEIGHT = 2.0
MOST_CANDIDATES = 300
LARGEST_LOG = 4.0
"""A box's side is at most e to this times ``object_size``."""


class GridDetector(nn.Module):
    """Four convolutions down to a grid of ``STRIDE`` pixels, three residual blocks, and an answer for every cell.

    Input (B, 3, H, W) from 0 to 1, output a ``GridDetected``. ``object_size`` is the side, in pixels, of the boxes of
    an untrained model. GroupNorm in place of BatchNorm: nothing but parameters is averaged. Detections below
    ``min_score`` are dropped, of those that overlap by more than ``max_overlap`` the best is kept, at most ``most`` for
    an image.

    >>> sum(p.numel() for p in GridDetector().parameters())
    255253
    """

    def __init__(
        self,
        num_classes: int = 1,
        width: int = 16,
        object_size: float = 40.0,
        min_score: float = 0.02,
        max_overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.object_size = num_classes, object_size
        self.min_score, self.max_overlap, self.most = min_score, max_overlap, most
        self.down = nn.Sequential(
            _step(3, width, 2), _step(width, 2 * width, 2), _step(2 * width, 2 * width), _step(2 * width, 4 * width, 2)
        )
        self.blocks = nn.ModuleList(_Block(4 * width, dilation) for dilation in (1, 2, 1))
        self.answer = nn.Conv2d(4 * width, 5 + (num_classes if num_classes > 1 else 0), 1)
        assert self.answer.bias is not None
        with torch.no_grad():
            self.answer.weight.normal_(std=0.01)
            self.answer.bias.zero_()
            self.answer.bias[0] = -4.0  # nearly every cell is at the middle of nothing

    def forward(self, images: Tensor) -> "GridDetected":
        values = self.down(images.sub(0.5).mul(4.0))
        for block in self.blocks:
            values = block(values)
        return GridDetected.of(self.answer(values), self)


@dataclass(frozen=True, slots=True, eq=False)
class GridDetected:
    """What the cells say: confidence logits (B, G), boxes (B, G, 4) in pixels, class logits (B, G, K; of one class
    none), and the cells' own middles (G, 2).
    """

    confidence: Tensor
    boxes: Tensor
    classes: Tensor
    middles: Tensor
    detector: GridDetector

    @classmethod
    def of(cls, answer: Tensor, detector: GridDetector) -> "GridDetected":
        """Read the answer (B, 5 + K, rows, columns): confidence, middle in cells, log of the sides, classes."""
        rows, columns = answer.shape[2:]
        down, across = (torch.arange(number, device=answer.device) + 0.5 for number in (rows, columns))
        middles = torch.stack([across.repeat(rows), down.repeat_interleave(columns)], 1) * STRIDE
        cells = answer.flatten(2).transpose(1, 2)
        middle = middles + cells[..., 1:3] * STRIDE
        half = detector.object_size / 2 * cells[..., 3:5].clamp(max=LARGEST_LOG).exp()
        return cls(cells[..., 0], torch.cat([middle - half, middle + half], -1), cells[..., 5:], middles, detector)

    def loss(self, targets: Tensor) -> Tensor:
        """Return the mean over images of the confidences' loss of all cells, and of those that answer for an object
        twice the boxes' and the classes', all divided by how many answer.

        Raises:
            ConfigError: an object is of a class that the detector does not know.
        """
        highest, known = int(targets[..., boxes.CLASS].max()), self.detector.num_classes
        if highest >= known:
            raise ConfigError(f"the data has at least {highest + 1} classes, the detector knows {known}: give it "
                              "num_classes, as many as classes are listed")  # fmt: skip
        owner, answers, counts = self._owners(targets)
        rows = targets.gather(1, owner[..., None].expand(-1, -1, boxes.WIDTH))
        distance, overlap = complete_iou(self.boxes, rows[..., boxes.BOX])
        wanted = torch.where(answers, overlap.detach().clamp(0.0, 1.0), 0.0)
        error = (wanted - self.confidence.sigmoid()).square()
        losses = error * F.binary_cross_entropy_with_logits(self.confidence, wanted, reduction="none") * counts
        losses = losses + BOX_WEIGHT * torch.where(answers, distance, 0.0)
        if self.classes.shape[-1]:
            right = F.one_hot(rows[..., boxes.CLASS].long().clamp(min=0), self.classes.shape[-1]).to(self.classes)
            wrong = F.binary_cross_entropy_with_logits(self.classes, right, reduction="none").sum(-1)
            losses = losses + torch.where(answers, wrong, 0.0)
        return (losses.sum(1) / answers.sum(1).clamp(min=1)).mean()

    def detections(self) -> list[Tensor]:
        scores = self.confidence.sigmoid()[..., None]
        if self.classes.shape[-1]:
            scores = scores * self.classes.sigmoid()
        return [self._found(*image) for image in zip(scores, self.boxes, strict=True)]

    def _found(self, scores: Tensor, where: Tensor) -> Tensor:
        best = scores.flatten().topk(min(MOST_CANDIDATES, scores.numel()))
        chosen = best.indices[best.values >= self.detector.min_score]
        cell, number = chosen // scores.shape[1], chosen % scores.shape[1]
        found = torch.cat([number[:, None].to(where), where[cell], scores[cell, number, None]], 1)
        return suppressed(found.cpu(), self.detector.max_overlap, self.detector.most)

    def _owners(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each cell (B, G): the row of the object that it is nearest to, whether it answers for it, and
        whether its confidence counts: that of a cell within an ignored object does not, unless it answers for one.
        """
        object_boxes, there = targets[:, None, :, boxes.BOX], targets[:, None, :, boxes.CLASS] >= 0
        ignored = targets[:, None, :, boxes.IGNORED] > 0
        cells = self.middles[None, :, None]  # (1, G, 1, 2), objects (B, 1, M, ...)
        inside = ((cells > object_boxes[..., :2]) & (cells < object_boxes[..., 2:])).all(-1)
        away = (cells - (object_boxes[..., :2] + object_boxes[..., 2:]) / 2) / STRIDE
        reach = away.abs().amax(-1)
        near = there & ~ignored & ((reach <= 0.5) | (inside & (reach < RADIUS)))
        distances = away.square().sum(-1).masked_fill(~near, math.inf)
        nearest = distances.min(-1)
        answers = nearest.values < math.inf
        return nearest.indices, answers, (answers | ~(inside & there & ignored).any(-1)).float()


def complete_iou(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - CIoU and IoU of boxes (..., 4), each with its own true box."""
    low, high = torch.maximum(predicted[..., :2], true[..., :2]), torch.minimum(predicted[..., 2:], true[..., 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    iou = shared / (boxes.areas(predicted) + boxes.areas(true) - shared).clamp(min=1e-7)
    around = torch.maximum(predicted[..., 2:], true[..., 2:]) - torch.minimum(predicted[..., :2], true[..., :2])
    diagonal = around.square().sum(-1).clamp(min=1e-7)
    apart = (predicted[..., :2] + predicted[..., 2:] - true[..., :2] - true[..., 2:]).square().sum(-1) / 4
    lean, true_lean = (torch.atan2(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1]) for box in (predicted, true))
    shape = 4 / math.pi**2 * (true_lean - lean).square()
    with torch.no_grad():
        weight = shape / (1 - iou + shape).clamp(min=1e-7)
    return 1 - iou + apart / diagonal + weight * shape, iou


def _step(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.GroupNorm(out // 8, out), nn.ReLU(inplace=True)
    )


class _Block(nn.Module):
    """Two 3x3 convolutions beside the identity; a ``dilation`` lets the second see farther."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = _step(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.GroupNorm(channels // 8, channels)

    def forward(self, values: Tensor) -> Tensor:
        added: Tensor = self.norm(self.second(self.first(values)))
        return (values + added).relu()

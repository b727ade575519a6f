"""Boxes of objects in images: the form in which detection targets are batched, and the geometry that everybody needs.

A box is (x1, y1, x2, y2) in pixels, continuous and from the upper left: a whole image of width W is 0 to W. The targets
of a batch are float32 (B, M, 6), an object in each row: class, x1, y1, x2, y2, ignored. Rows that are no object have
class -1 and zeros. What is ignored (VOC's "difficult", COCO's "iscrowd") is trained on by nobody, and in measures
neither found nor missed.

Shapes: B images, M objects at most in one, N boxes.
"""

import torch
from torch import Tensor

CLASS, IGNORED, WIDTH = 0, 5, 6
"""Columns of a target row, and how many there are."""

BOX = slice(1, 5)


def padded(rows: Tensor, num_rows: int) -> Tensor:
    """Return (``num_rows``, 6): the given rows (N, 6), at most as many, and after them rows that are no object."""
    target = torch.zeros(num_rows, WIDTH)
    target[:, CLASS] = -1
    target[: len(rows)] = rows
    return target


def objects(target: Tensor) -> Tensor:
    """Return the rows of one image's target (M, 6) that are objects, those to be ignored among them."""
    return target[target[:, CLASS] >= 0]


def wanted(target: Tensor) -> Tensor:
    """Return the rows of one image's target (M, 6) that a detector should find."""
    return target[(target[:, CLASS] >= 0) & (target[:, IGNORED] == 0)]


def areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes (..., 4), 0 where a box is inside out."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersections over union of boxes (N, 4) with boxes (M, 4), as (N, M); 0 where a union is empty."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    union = areas(first)[:, None] + areas(second)[None] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(shared))

"""How well a detector does: the loss of any of them, and the measures of COCO and Pascal VOC.

Both measures match each image's detections with its objects where the image is, and keep a row for each detection and
one for each class that an image has objects of. Rows of all parts together give average precision exactly: the mean of
clients' own values is another number, and both can be had.

Shapes: R rows, D detections in order of score, T overlaps.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from roundelay.data import boxes
from roundelay.errors import ConfigError, optional
from roundelay.models.detected import SCORE, Detected

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

Array = np.ndarray[Any, np.dtype[Any]]  # Any: shapes and kinds of numbers are said where they matter

FALSE, TRUE, NEITHER = 0, 1, 2
"""What became of a detection: it found nothing, it found an object, or it is left out of account."""

DETECTION, OBJECTS = 1.0, 0.0
"""What a row is of; this is its first column, then come the class and the score."""

MOST = (1, 10, 100)
"""Detections of an image and class that COCO takes into account; its precision is at the last of them."""

AREAS = ("all", "small", "medium", "large")
OVERLAPS = 10

Points = Callable[[Array, Array], float]
"""Which recalls precision is averaged over: a function of both, (D,) each."""


def detection_loss(outputs: Detected, targets: Tensor) -> Tensor:
    """Return the detector's own loss; for ``LocalSGD(loss=...)``."""
    return outputs.loss(targets)


@dataclass(frozen=True, slots=True)
class CocoAP:
    """COCO's average precision, matched by pycocotools, as means over classes: "map" (over overlaps of 0.5 to 0.95),
    "map_50", "map_75", "map_small", "map_medium", "map_large" (objects of less than 32 squared pixels, 96 squared, or
    more), and the share of objects found by the first 1, 10 and 100 detections of an image and class, "recall_1" to
    "recall_100" (over overlaps too).

    What there are no objects for is NaN. After the score, a detection's row has its rank in image and class, and for
    each range of areas how it ended at the ten overlaps, in base 3; the row of objects has how many there are of them.

    Raises:
        MissingExtra: at the first batch: pycocotools is not installed.
    """

    @property
    def width(self) -> int:
        return 4 + len(AREAS)

    @property
    def summed(self) -> bool:
        return False

    def rows(self, outputs: Detected, targets: Tensor) -> Tensor:
        evaluation, rows = _coco(), list[Sequence[float]]()
        for found, target in zip(outputs.detections(), targets, strict=True):
            for number, seen, there in _by_class(found, target):
                rows += _coco_rows(evaluation, number, seen, there)
        return _stacked(rows, self.width)

    def result(self, rows: Tensor) -> Mapping[str, float]:
        classes = _classes(rows)
        precisions = np.full((len(AREAS), len(classes), OVERLAPS), math.nan)
        recalls = np.full((len(MOST), len(classes), OVERLAPS), math.nan)
        for at, values in enumerate(classes):
            for area in range(len(AREAS)):
                states, num_objects = _outcomes(values, 4 + area, MOST[-1])
                if num_objects:
                    precisions[area, at] = [_interpolated(one, num_objects, _hundredths) for one in states]
            for kind, most in enumerate(MOST):
                states, num_objects = _outcomes(values, 4, most)
                if num_objects:
                    recalls[kind, at] = (states == TRUE).sum(1) / num_objects
        return {
            "map": _mean(precisions[0]),
            "map_50": _mean(precisions[0, :, 0]),
            "map_75": _mean(precisions[0, :, 5]),
            **{f"map_{name}": _mean(precisions[area]) for area, name in enumerate(AREAS) if area},
            **{f"recall_{most}": _mean(recalls[kind]) for kind, most in enumerate(MOST)},
        }


@dataclass(frozen=True, slots=True)
class VocAP:
    """Pascal VOC's average precision, "voc_map": the mean over classes of the area under precision against recall at an
    overlap of ``overlap``, as since VOC 2010, or with ``eleven_points`` the mean precision at recall 0, 0.1, ... 1, as
    until 2009; and the share of objects found, "voc_recall".

    Unlike COCO's, a detection counts for the object that it overlaps most, found already or not. After the score, a
    detection's row has how it ended, the row of objects how many there are.
    """

    overlap: float = 0.5
    eleven_points: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= 1:
            raise ConfigError(f"VocAP overlap must be above 0 and at most 1, got {self.overlap!r}")

    @property
    def width(self) -> int:
        return 4

    @property
    def summed(self) -> bool:
        return False

    def rows(self, outputs: Detected, targets: Tensor) -> Tensor:
        rows = list[Sequence[float]]()
        for found, target in zip(outputs.detections(), targets, strict=True):
            for number, seen, there in _by_class(found, target):
                states = self._states(seen, there)
                rows += [(DETECTION, number, score, state) for score, state in zip(seen[:, SCORE], states, strict=True)]
                rows.append((OBJECTS, number, 0.0, float((there[:, boxes.IGNORED] == 0).sum())))
        return _stacked(rows, self.width)

    def result(self, rows: Tensor) -> Mapping[str, float]:
        precisions, recalls = list[float](), list[float]()
        for values in _classes(rows):
            detections = values[values[:, 0] == DETECTION]
            num_objects = values[values[:, 0] == OBJECTS, 3].sum()
            if num_objects > 0:
                states = detections[(-detections[:, 2]).argsort(kind="stable"), 3]
                points = _tenths if self.eleven_points else _steps
                precisions.append(_interpolated(states, num_objects, points))
                recalls.append(float((states == TRUE).sum() / num_objects))
        return {"voc_map": _mean(np.array(precisions)), "voc_recall": _mean(np.array(recalls))}

    def _states(self, seen: Array, there: Array) -> list[float]:
        overlaps = boxes.overlaps(*(torch.from_numpy(rows[:, boxes.BOX]) for rows in (seen, there))).numpy()
        states, taken = list[float](), set[int]()
        for row in overlaps:
            best = int(row.argmax()) if len(row) else -1
            if best < 0 or row[best] < self.overlap:
                states.append(FALSE)
            elif there[best, boxes.IGNORED]:
                states.append(NEITHER)
            else:
                states.append(FALSE if best in taken else TRUE)
                taken.add(best)
        return states


def _by_class(found: Tensor, target: Tensor) -> Iterator[tuple[float, Array, Array]]:
    """Yield each class that is seen or there, its detections (D, 6), highest score first, and its objects (M, 6)."""
    seen, there = found.cpu().double().numpy(), boxes.objects(target).cpu().double().numpy()
    for number in np.union1d(seen[:, boxes.CLASS], there[:, boxes.CLASS]):
        own = seen[seen[:, boxes.CLASS] == number]
        yield float(number), own[(-own[:, SCORE]).argsort(kind="stable")], there[there[:, boxes.CLASS] == number]


def _stacked(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).view(-1, width)


def _classes(rows: Tensor) -> list[Array]:
    """Return the rows of each class that has any."""
    values = rows.numpy()
    return [values[values[:, 1] == number] for number in np.unique(values[:, 1])]


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


# ---- COCO -----------------------------------------------------------------------------------------------------------


def _coco() -> "COCOeval":
    with optional("pycocotools", "detection"):
        from pycocotools.cocoeval import COCOeval
    return COCOeval(iouType="bbox")


def _coco_rows(evaluation: "COCOeval", number: float, seen: Array, there: Array) -> list[Sequence[float]]:
    # What COCOeval.evaluate() does for one image and class. That method itself prints, and wants an index of a file.
    evaluation._dts = {(0, 0): [{"id": at, **_coco_box(row), "score": row[SCORE]} for at, row in enumerate(seen, 1)]}
    evaluation._gts = {(0, 0): [
        {"id": at, **_coco_box(row), "iscrowd": int(row[boxes.IGNORED]), "ignore": int(row[boxes.IGNORED])}
        for at, row in enumerate(there, 1)
    ]}  # fmt: skip
    evaluation.ious = {(0, 0): evaluation.computeIoU(0, 0)}
    found = [evaluation.evaluateImg(0, 0, area, MOST[-1]) for area in evaluation.params.areaRng]
    codes = np.stack([_code(one["dtMatches"] > 0, one["dtIgnore"]) for one in found], 1)
    detections = zip(found[0]["dtScores"], codes, strict=True)
    rows: list[Sequence[float]] = [
        (DETECTION, number, score, rank, *code) for rank, (score, code) in enumerate(detections)
    ]
    return [*rows, (OBJECTS, number, 0.0, 0.0, *(float((one["gtIgnore"] == 0).sum()) for one in found))]


def _coco_box(row: Array) -> dict[str, Any]:  # Any: numbers, and a list of them
    x1, y1, x2, y2 = row[boxes.BOX].tolist()
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _code(matched: Array, ignored: Array) -> Array:
    """Return how detections ended, (T, D), as a number in base 3 for each, (D,)."""
    states = np.where(ignored, NEITHER, np.where(matched, TRUE, FALSE))
    codes: Array = (states * 3.0 ** np.arange(OVERLAPS)[:, None]).sum(0)
    return codes


def _outcomes(values: Array, column: int, most: int) -> tuple[Array, float]:
    """Return how a class's detections ended, (T, D), in order of score, and how many objects there are of it."""
    detections = values[(values[:, 0] == DETECTION) & (values[:, 3] < most)]
    codes = detections[(-detections[:, 2]).argsort(kind="stable"), column]
    states = codes.clip(0, 3.0**OVERLAPS - 1).astype(np.int64) // 3 ** np.arange(OVERLAPS)[:, None] % 3
    return states, float(values[values[:, 0] == OBJECTS, column].sum())


# ---- precision against recall ---------------------------------------------------------------------------------------


def _interpolated(states: Array, num_objects: float, points: Points) -> float:
    """Return the mean precision of detections in order of score (D,). Precision at a recall is the best at that recall
    or a higher one.
    """
    counted = states[states != NEITHER] == TRUE
    hits = counted.cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    return points(hits / num_objects, np.maximum.accumulate(precision[::-1])[::-1])


def _at(recalls: Array, recall: Array, precision: Array) -> float:
    places = recall.searchsorted(recalls, side="left")
    return float(np.append(precision, 0.0)[places].mean())


def _hundredths(recall: Array, precision: Array) -> float:
    return _at(np.linspace(0.0, 1.0, 101), recall, precision)


def _tenths(recall: Array, precision: Array) -> float:
    return _at(np.arange(11) / 10, recall, precision)


def _steps(recall: Array, precision: Array) -> float:
    return float((np.diff(recall, prepend=0.0) * precision).sum())

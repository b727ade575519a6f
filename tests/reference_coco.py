"""COCO's metrics by pycocotools, in its own way: from what its files hold to its own summary."""

import contextlib
import io
import math
from collections.abc import Sequence

import pytest
from torch import Tensor

from roundelay.data import boxes

NUM_CLASSES = 3
STATS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "recall_1", "recall_10", "recall_100")


def by_pycocotools(found: Sequence[Tensor], targets: Tensor) -> dict[str, float]:
    """Evaluate in pycocotools' own way, from files' content on; what it marks by -1 is NaN here."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")

    def box(row: Tensor) -> list[float]:
        x1, y1, x2, y2 = row[1:5].double().tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    objects = [(image, row) for image, target in enumerate(targets) for row in boxes.objects(target)]
    annotations = [
        {"id": number, "image_id": image, "category_id": int(row[0]), "bbox": box(row),
         "area": box(row)[2] * box(row)[3], "iscrowd": int(row[5])}
        for number, (image, row) in enumerate(objects, 1)
    ]  # fmt: skip
    guesses = [
        {"image_id": image, "category_id": int(row[0]), "bbox": box(row), "score": float(row[5])}
        for image, seen in enumerate(found)
        for row in seen
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(len(targets))],
            "annotations": annotations,
            "categories": [{"id": number} for number in range(NUM_CLASSES)],
        }
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(guesses), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: math.nan if value == -1 else float(value) for name, value in zip(STATS, evaluation.stats, strict=False)
    }

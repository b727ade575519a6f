"""Photographs with rectangles drawn on them, in the forms of Pascal VOC and COCO."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("red", "blue")
COLOURS = ((230, 30, 30), (30, 30, 230))
GROUND = (90, 140, 90)

Box = tuple[int, int, int, int, int]
"""Class, x1, y1, x2, y2 in pixels from the upper left; x2 and y2 are the first pixels beyond."""


@dataclass(frozen=True)
class Photograph:
    stem: str
    boxes: Sequence[Box]
    width: int = 64
    height: int = 64
    hard: frozenset[int] = frozenset()
    """Which of the boxes are difficult, or crowds."""

    def drawn(self) -> np.ndarray:
        pixels = np.full((self.height, self.width, 3), GROUND, dtype=np.uint8)
        for number, x1, y1, x2, y2 in self.boxes:
            pixels[y1:y2, x1:x2] = COLOURS[number]
        return pixels

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.drawn()).save(file, quality=95)


def some(number: int, seed: int = 0, most: int = 3, side: tuple[int, int] = (12, 28)) -> list[Photograph]:
    """Return photographs of 64 x 64 with up to ``most`` boxes each, which may overlap; one in six has none."""
    draws = np.random.default_rng(seed)
    taken = []
    for at in range(number):
        boxes = []
        for _ in range(0 if at % 6 == 5 else int(draws.integers(1, most + 1))):
            width, height = (int(size) for size in draws.integers(*side, size=2))
            x, y = int(draws.integers(0, 64 - width)), int(draws.integers(0, 64 - height))
            boxes.append((int(draws.integers(len(CLASSES))), x, y, x + width, y + height))
        taken.append(Photograph(f"{at:04d}", boxes))
    return taken


def voc_folder(root: Path, devices: Mapping[str, tuple[Sequence[Photograph], Sequence[Photograph]]]) -> Path:
    """Write each device's photographs for training and for testing; VOC counts pixels from 1."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.names").write_text("\n".join(CLASSES) + "\n")
    for device, parts in devices.items():
        place = root / device
        for part, taken in zip(("train", "test"), parts, strict=True):
            if not taken:
                continue
            listed = place / "ImageSets" / "Main" / f"{part}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{one.stem}\n" for one in taken))
            for one in taken:
                one.write(place / "JPEGImages" / f"{one.stem}.jpg")
                file = place / "Annotations" / f"{one.stem}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(annotation(one))
    return root


def annotation(one: Photograph) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[number]}</name><difficult>{int(at in one.hard)}</difficult><bndbox>"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for at, (number, x1, y1, x2, y2) in enumerate(one.boxes)
    )
    size = f"<size><width>{one.width}</width><height>{one.height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{one.stem}.jpg</filename>{size}{objects}</annotation>"


def coco_document(taken: Sequence[Photograph]) -> dict[str, list[dict[str, object]]]:
    annotations = [
        {"image_id": image, "category_id": 10 * number + 7, "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": (x2 - x1) * (y2 - y1), "iscrowd": int(at in one.hard)}
        for image, one in enumerate(taken, 100) for at, (number, x1, y1, x2, y2) in enumerate(one.boxes)
    ]  # fmt: skip
    return {
        "images": [{"id": image, "file_name": f"{one.stem}.jpg", "width": one.width, "height": one.height}
                   for image, one in enumerate(taken, 100)],
        "annotations": [{"id": number, **told} for number, told in enumerate(annotations, 1)],
        "categories": [{"id": 10 * number + 7, "name": name} for number, name in reversed(list(enumerate(CLASSES)))],
    }  # fmt: skip


def coco_folder(root: Path, devices: Mapping[str, tuple[Sequence[Photograph], Sequence[Photograph]]]) -> Path:
    for device, parts in devices.items():
        place = root / device
        (place / "annotations").mkdir(parents=True, exist_ok=True)
        for part, taken in zip(("train", "val"), parts, strict=True):
            if not taken:
                continue
            (place / "annotations" / f"instances_{part}.json").write_text(json.dumps(coco_document(taken)))
            for one in taken:
                one.write(place / part / f"{one.stem}.jpg")
    return root

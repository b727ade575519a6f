"""COCO: one JSON file for all photographs of a part."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roundelay.data.detection.annotated import Annotated, Row, checked_box, class_number
from roundelay.data.detection.devices import Device, device_folders, listed_classes, text_of, together
from roundelay.data.examples import Data
from roundelay.data.federated import FederatedData
from roundelay.errors import DataError

WANTED = (
    "a folder for each device, with annotations/instances_train*.json (and instances_test*.json or "
    "instances_val*.json) and the images in images/ or in folders named as the parts are, such as train2017/"
)
PARTS = {"train": ("train",), "test": ("test", "val")}

Entry = Mapping[str, Any]  # Any: what JSON can hold
Document = Mapping[str, Sequence[Entry]]


def coco(
    folder: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    image_size: int = 200,
    pooled: bool = False,
    cache_mib: int = 256,
) -> Data | FederatedData:
    """Read photographs in the form of COCO, a folder for each device (or one folder that is a device itself).

    Devices are clients, each with its own test part where it has one; ``pooled``, all are one data set for a
    partitioner. ``classes`` come from ``classes.names``, else from the categories of the first device, in order of id.
    Photographs are stretched to ``image_size`` squared when they are needed; ``cache_mib`` MiB of them are kept. An
    object's area is that of its box, not of its outline.

    Raises:
        DataError: a file is absent, empty, damaged or says what cannot be; the message names it. A damaged photograph
            is found when it is first needed.
    """
    root = Path(folder)
    places = device_folders(root, lambda path: bool(_files(path, "train")), WANTED)
    names = tuple(classes) if classes is not None else listed_classes(root)
    devices = []
    for place in places:
        parts: dict[str, list[Annotated]] = {"train": [], "test": []}
        for part, found in parts.items():
            for file in _files(place, part):
                document = _document(file)
                categories = _categories(document, file)
                names = tuple(categories.values()) if names is None else names
                found += _photographs(document, categories, names, file, place)
        devices.append(Device(place.resolve().name, **parts))
    assert names is not None
    return together(devices, names, image_size, pooled, cache_mib, "coco")


def _files(place: Path, part: str) -> list[Path]:
    return sorted(file for word in PARTS[part] for file in place.glob(f"annotations/instances_{word}*.json"))


def _document(file: Path) -> Document:
    try:
        document = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: it is not JSON ({error}); replace it with a fresh copy") from error
    for key in ("images", "annotations", "categories"):
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file}: expected lists of objects under images, annotations and categories, as COCO's "
                            f"instances_*.json has them; {key!r} is none")  # fmt: skip
    checked: Document = document
    return checked


def _categories(document: Document, file: Path) -> dict[int, str]:
    entries = enumerate(document["categories"], 1)
    named = {_int(entry, "id", f"{file}, category {at}"): str(entry.get("name", "")) for at, entry in entries}
    if not named or "" in named.values() or len(set(named.values())) != len(document["categories"]):
        raise DataError(f"{file}: expected categories with ids and names, each once, got {document['categories'][:5]}")
    return dict(sorted(named.items()))


def _photographs(
    document: Document,
    categories: Mapping[int, str],
    classes: Sequence[str],
    file: Path,
    place: Path,
) -> list[Annotated]:
    sizes: dict[int, tuple[int, int]] = {}
    files: dict[int, str] = {}
    for at, entry in enumerate(document["images"], 1):
        where = f"{file}, image {at}"
        image = _int(entry, "id", where)
        if image in files or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            raise DataError(f"{where}: expected an id of its own and a file_name, got {dict(entry)}; correct it")
        files[image], sizes[image] = entry["file_name"], (_int(entry, "width", where), _int(entry, "height", where))
        if min(sizes[image]) < 1:
            raise DataError(f"{where}: expected a width and a height in pixels, got {sizes[image]}; correct it")
    rows: dict[int, list[Row]] = {image: [] for image in files}
    for at, entry in enumerate(document["annotations"], 1):
        where = f"{file}, annotation {entry.get('id', at)}"
        image, category = _int(entry, "image_id", where), _int(entry, "category_id", where)
        if image not in files or category not in categories:
            what = f"image {image}" if image not in files else f"category {category}"
            raise DataError(f"{where}: {what} is not in the file; correct it, or take the annotation out")
        number = class_number(categories[category], classes, where)
        box = checked_box(_corners(entry, where), *sizes[image], f"{where} ({files[image]})")
        rows[image].append((float(number), *box, float(bool(entry.get("iscrowd", 0)))))
    folders = (place / file.stem.removeprefix("instances_"), place / "images", place)
    return [
        Annotated(f"{place.resolve().name}/{Path(name).stem}", _image(folders, name, file), *sizes[image], rows[image])
        for image, name in files.items()
    ]


def _corners(entry: Entry, where: str) -> tuple[float, float, float, float]:
    found = entry.get("bbox")
    if not isinstance(found, list) or len(found) != 4 or not all(_is_number(value) for value in found):
        raise DataError(f"{where}: expected bbox to be [x, y, width, height], got {found!r}; correct it")
    x, y, width, height = (float(value) for value in found)
    return x, y, x + width, y + height


def _image(folders: Sequence[Path], name: str, file: Path) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folders[1] / name}: no such image; put it there, or take it out of {file}")


def _int(entry: Entry, key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: expected a whole number as {key}, got {value!r}; correct it")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

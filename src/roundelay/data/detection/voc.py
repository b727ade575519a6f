"""Pascal VOC: an XML file a photograph, and lists of which are for training."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from roundelay.data.detection.annotated import Annotated, Row, checked_box, class_number
from roundelay.data.detection.devices import CLASSES_FILE, Device, device_folders, listed_classes, text_of, together
from roundelay.data.examples import Data
from roundelay.data.federated import FederatedData
from roundelay.errors import DataError

WANTED = (
    "a folder for each device, with ImageSets/Main/train.txt (and test.txt), JPEGImages/*.jpg and Annotations/*.xml"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def voc(
    folder: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    image_size: int = 200,
    pooled: bool = False,
    cache_mib: int = 256,
) -> Data | FederatedData:
    """Read photographs in the form of Pascal VOC, a folder for each device (or one folder that is a device itself).

    Devices are clients, each with its own ``test.txt`` where it has one; ``pooled``, all are one data set for a
    partitioner. ``classes`` come from ``classes.names``, a name a line, unless they are given. Photographs are
    stretched to ``image_size`` squared when they are needed; ``cache_mib`` MiB of them are kept. VOC counts pixels from
    1 and its corners are pixels within the box: xmin 1, xmax 10 here is x 0 to 10.

    Raises:
        DataError: a file is absent, empty, damaged or says what cannot be; the message names it. A damaged photograph
            is found when it is first needed.
    """
    root = Path(folder)
    places = device_folders(root, lambda path: (path / "Annotations").is_dir(), WANTED)
    names = tuple(classes) if classes is not None else listed_classes(root)
    if names is None:
        raise DataError(f"{root / CLASSES_FILE}: no such file; put the names of the classes there, one a line, or give "
                        "classes = [...]")  # fmt: skip
    devices = [
        Device(place.resolve().name, _part(place, "train", names), _part(place, "test", names)) for place in places
    ]
    return together(devices, names, image_size, pooled, cache_mib, "voc")


def _part(place: Path, part: str, classes: Sequence[str]) -> list[Annotated]:
    file = place / "ImageSets" / "Main" / f"{part}.txt"
    if part == "test" and not file.exists():
        return []
    stems = [line.split()[0] for line in text_of(file).splitlines() if line.strip()]
    return [_photograph(place, stem, classes, file) for stem in stems]


def _photograph(place: Path, stem: str, classes: Sequence[str], named_in: Path) -> Annotated:
    file = place / "Annotations" / f"{stem}.xml"
    if not file.is_file():
        raise DataError(f"{file}: no such file; put the annotation there, or take {stem} out of {named_in}")
    root = parsed(file)
    width, height = (_whole(root, f"size/{side}", file) for side in ("width", "height"))
    rows = [_row(found, number, width, height, classes, file) for number, found in enumerate(root.iter("object"), 1)]
    candidates = [place / "JPEGImages" / f"{stem}{suffix}" for suffix in SUFFIXES]
    image = next((path for path in candidates if path.is_file()), None)
    if image is None:
        raise DataError(f"{candidates[0]}: no such image; put it there, or take {stem} out of {named_in}")
    return Annotated(f"{place.resolve().name}/{stem}", image, width, height, rows)


def _row(found: Element, number: int, width: int, height: int, classes: Sequence[str], file: Path) -> Row:
    where = f"{file}, object {number}"
    name = (found.findtext("name") or "").strip()
    xmin, ymin, xmax, ymax = (_number(found, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    box = checked_box((xmin - 1, ymin - 1, xmax, ymax), width, height, where)
    difficult = (found.findtext("difficult") or "0").strip()
    return (float(class_number(name, classes, where)), *box, float(difficult not in ("0", "")))


def _number(element: Element, path: str, where: str | Path) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected a number as {path}, got {text!r}; correct it")
    return value


def _whole(element: Element, path: str, where: Path) -> int:
    value = _number(element, path, where)
    if value < 1 or value != int(value):
        raise DataError(f"{where}: expected a whole number of pixels as {path}, got {value:g}; correct it")
    return int(value)


def parsed(file: Path) -> Element:
    """Return the root of an XML file. One with a document type is refused: entities that are defined there can grow
    without bound, and no annotation needs any.

    Raises:
        DataError: the file is empty, no XML, or has a document type.
    """
    content = file.read_bytes()
    if not content.strip():
        raise DataError(f"{file}: the annotation is empty; replace it with a fresh copy (an image without objects "
                        "has an annotation with a size and no object)")  # fmt: skip
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*declared: object) -> NoReturn:
        raise DataError(f"{file}: it has a document type (<!DOCTYPE ...>), which no annotation needs; take it out")

    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError) as error:  # ValueError: an encoding that is none
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: it is not XML ({error}); replace it with a fresh copy") from error
    root: Element = builder.close()
    return root

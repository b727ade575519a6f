"""What an annotation says of one photograph, checked; the rest of this room turns many of them into examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundelay.errors import DataError

Row = tuple[float, float, float, float, float, float]
"""Class, x1, y1, x2, y2, ignored, as in ``roundelay.data.boxes``; pixels of the file as it is."""

ROUNDING = 1.0
"""A box that reaches out of its photograph by less than so many pixels was rounded; by more, it is of another one."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A photograph and its boxes. ``name`` is "device/stem"; width and height are in pixels."""

    name: str
    file: Path
    width: int
    height: int
    rows: Sequence[Row]


def checked_box(
    corners: tuple[float, float, float, float], width: int, height: int, where: str
) -> tuple[float, float, float, float]:
    """Return the box within its photograph of ``width`` x ``height``; ``where`` names annotation and object.

    Raises:
        DataError: it has no area, or reaches out of the photograph.
    """
    x1, y1, x2, y2 = corners
    if not (x1 < x2 and y1 < y2):  # NaN too
        raise DataError(f"{where}: expected a box with an area, got x {x1:g} to {x2:g}, y {y1:g} to {y2:g}; correct it "
                        "or take the object out")  # fmt: skip
    outside = max(-x1, -y1, x2 - width, y2 - height)
    if outside >= ROUNDING:
        raise DataError(f"{where}: the box x {x1:g} to {x2:g}, y {y1:g} to {y2:g} is outside its image of {width} x "
                        f"{height} pixels; correct it, or is it of another image?")  # fmt: skip
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def class_number(name: str, classes: Sequence[str], where: str) -> int:
    """Return the position of ``name`` in ``classes``.

    Raises:
        DataError: it is not there.
    """
    if name not in classes:
        known = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise DataError(f"{where}: class {name!r} is not known; known are {known}: correct it, or add it to the "
                        "list of classes of all devices (classes.names, or classes = [...])")  # fmt: skip
    return classes.index(name)

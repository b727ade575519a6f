"""What a detector finds on photographs, beside what is there."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from roundelay.data import boxes
from roundelay.models.detected import SCORE
from roundelay.report.plots.canvas import INK, LINE_COLOURS, canvas, save, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 2.1
"""Inches across a photograph."""


def plot_detections(
    images: Tensor,
    targets: Tensor,
    found: Sequence[Tensor],
    path: str | os.PathLike[str],
    names: Sequence[str],
    classes: Sequence[str],
    min_score: float = 0.2,
) -> None:
    """Draw photographs (N, 3, H, W) from 0 to 1 twice: above with the objects of ``targets`` (N, M, 6), dashed where
    they are to be ignored; below with detections (D, 6) that score ``min_score`` or more. A colour is a class.

    Raises:
        ConfigError: the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    figure, only = canvas(path, width=SIDE * len(images), height=2 * SIDE + 0.6)
    only.remove()
    places = figure.subplots(2, len(images), squeeze=False)
    title(places[0, 0], "there", pad=4)
    title(places[1, 0], f"found, score {min_score:g} or more", pad=4)
    for column, (image, target, seen) in enumerate(zip(images, targets, found, strict=True)):
        kept = seen[seen[:, SCORE] >= min_score]
        for axes, rows, is_found in zip(places[:, column], (boxes.objects(target), kept), (False, True), strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.grid(visible=False)
            axes.set_axis_off()
            for row in rows.tolist():
                _draw(axes, row, is_found, len(classes))
        places[1, column].text(0.0, -0.03, names[column], transform=places[1, column].transAxes, va="top", fontsize=8,
                               color=INK)  # fmt: skip
    if len(classes) > 1:
        from matplotlib.patches import Patch

        shown = [Patch(color=_colour(number), label=name) for number, name in enumerate(classes)]
        figure.legend(handles=shown, loc="outside right center", frameon=False, labelcolor=INK, fontsize=9)
    save(figure, path)


def _draw(axes: "Axes", row: Sequence[float], is_found: bool, num_classes: int) -> None:
    from matplotlib.patches import Rectangle

    number, x1, y1, x2, y2, last = row
    dashed = not is_found and last > 0
    axes.add_patch(
        Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=_colour(int(number)), linewidth=1.3,
                  linestyle="--" if dashed else "-")
    )  # fmt: skip
    if is_found:
        axes.text(x1 + 1, y1 + 2, f"{last:.2f}", color="white", fontsize=5, va="top",
                  bbox={"facecolor": _colour(int(number)), "edgecolor": "none", "pad": 0.5})  # fmt: skip


def _colour(number: int) -> str:
    return LINE_COLOURS[(number + 1) % len(LINE_COLOURS)]

"""What all pictures have in common: an empty figure, colours, and how it is written."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from roundelay.errors import ConfigError, optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's scheme, less its yellow, which is too pale for a line.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
INK, FAINT = "#333333", "#DDDDDD"


def canvas(path: str | os.PathLike[str], width: float, height: float = 4.2) -> "tuple[Figure, Axes]":
    if Path(path).suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"path: expected a file name that ends in .png or .svg, got {os.fspath(path)!r}")
    with optional("matplotlib", "plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def title(axes: "Axes", text: str, pad: float = 10) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK, pad=pad)


def words(metric: str) -> str:
    return metric.replace("_", " ").replace("/", " ")


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    from matplotlib import rc_context

    # Without a fixed salt and without the date, each writing of the same picture would be another file.
    with rc_context({"svg.hashsalt": "roundelay"}):
        metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)

"""A metric by round, a line a run."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from roundelay.errors import ConfigError
from roundelay.report.plots.canvas import INK, LINE_COLOURS, LINE_STYLES, canvas, save, title, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rounds(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    metric: str,
    path: str | os.PathLike[str],
) -> None:
    """Draw ``row[metric]`` over ``row["round"]``, a line a run; rows without the metric are left out.

    Raises:
        ConfigError: no row of any run has the metric, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    lines = {
        name: [(row["round"], row[metric]) for row in rows if metric in row and "round" in row]
        for name, rows in runs.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        known = sorted({key for rows in runs.values() for row in rows for key in row} - {"round"})
        raise ConfigError(f"metric: expected one of {', '.join(known) or 'none (the runs are empty)'}, got {metric!r}")
    figure, axes = canvas(path, width=7.0)
    for number, (name, points) in enumerate(lines.items()):
        rounds, values = zip(*points, strict=True)
        axes.plot(
            rounds,
            values,
            label=name,
            color=LINE_COLOURS[number % len(LINE_COLOURS)],
            linestyle=LINE_STYLES[number // len(LINE_COLOURS) % len(LINE_STYLES)],
            linewidth=1.8,
            marker="o" if len(points) <= 25 else None,
            markersize=3.5,
        )
    axes.margins(x=0.02)
    _whole_numbers(axes)
    axes.set_xlabel("round")
    axes.set_ylabel(words(metric))
    only = f": {next(iter(lines))}" if len(lines) == 1 else ""
    title(axes, f"{words(metric).capitalize()} by round{only}")
    if len(lines) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=INK)
    save(figure, path)


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    low, high = axes.get_xlim()
    if high - low < 2:
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)

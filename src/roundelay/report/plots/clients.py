"""A metric client by client, worst first."""

import os
from collections.abc import Mapping

from roundelay.errors import ConfigError
from roundelay.report.plots.canvas import INK, LINE_COLOURS, canvas, save, title, words

MAX_NAMED = 60
"""Up to so many clients have a bar and a name; more are one line of steps."""


def plot_clients(values: Mapping[str, float], metric: str, path: str | os.PathLike[str]) -> None:
    """Draw each client's value, in the order given, and a line at their mean, each client counted once.

    Raises:
        ConfigError: there is no client, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    if not values:
        raise ConfigError(f"values: expected {metric} of at least one client, got none")
    named = len(values) <= MAX_NAMED
    figure, axes = canvas(path, width=min(11.0, 5.0 + 0.15 * len(values)) if named else 7.0)
    heights = list(values.values())
    if named:
        axes.bar(range(len(values)), heights, width=0.82, color=LINE_COLOURS[0])
        axes.set_xticks(range(len(values)), list(values), rotation=45 if len(values) > 15 else 0)
        axes.set_xlabel("client, worst first")
    else:
        axes.stairs(heights, range(len(values) + 1), color=LINE_COLOURS[0], linewidth=1.8, fill=True)
        axes.set_xlabel(f"{len(values):,} clients, worst first")
    mean = sum(heights) / len(heights)
    axes.axhline(mean, color=INK, linestyle="--", linewidth=1.2)
    axes.annotate(f"mean {mean:.3g}", (1.0, mean), xycoords=("axes fraction", "data"), xytext=(4, 0),
                  textcoords="offset points", va="center", color=INK, fontsize=9, annotation_clip=False)  # fmt: skip
    axes.set_ylabel(words(metric))
    title(axes, f"{words(metric).capitalize()} by client")
    save(figure, path)

"""How old updates were when they landed."""

import os
from collections.abc import Mapping

from roundelay.errors import ConfigError
from roundelay.report.plots.canvas import INK, LINE_COLOURS, canvas, save, title


def plot_staleness(counts: Mapping[str, Mapping[int, int]], path: str | os.PathLike[str]) -> None:
    """Draw each setting's share of updates by staleness, side by side: ``counts[setting][staleness]``.

    Raises:
        ConfigError: no update landed, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    known = {name: table for name, table in counts.items() if sum(table.values())}
    if not known:
        raise ConfigError("staleness: no update landed in any of the runs")
    figure, axes = canvas(path, width=7.0)
    width = 0.84 / len(known)
    for number, (name, table) in enumerate(known.items()):
        total = sum(table.values())
        mean = sum(age * count for age, count in table.items()) / total
        left = -0.42 + (number + 0.5) * width
        axes.bar(
            [age + left for age in table], [100 * count / total for count in table.values()], width,
            color=LINE_COLOURS[number % len(LINE_COLOURS)], edgecolor="white", linewidth=0.4,
            label=f"{name}: mean {mean:.2f}, {total:,} updates",
        )  # fmt: skip
    most = max(max(table) for table in known.values())
    axes.set_xlim(-0.6, max(most, 2) + 0.6)
    if most <= 20:
        axes.set_xticks(range(max(most, 2) + 1))
    axes.set_xlabel("staleness, versions")
    axes.set_ylabel("updates, %")
    title(axes, "Staleness: version at landing less version at dispatch")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, labelcolor=INK, fontsize=10)
    save(figure, path)

"""A cell from above: where its UEs are, and how fast each could send."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roundelay.errors import ConfigError
from roundelay.report.plots.canvas import FAINT, INK, canvas, save, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

MAX_NAMED = 30
"""Up to so many UEs have their names beside them."""


@dataclass(frozen=True, slots=True)
class Place:
    """A UE: metres east and north of the base station, and its mean uplink rate alone in the whole band."""

    client: str
    x_m: float
    y_m: float
    line_of_sight: bool
    uplink_bps: float


def plot_cell(places: Sequence[Place], path: str | os.PathLike[str], name: str = "") -> None:
    """Draw UEs around the base station, by colour of rate; those with no rate at all are crosses.

    Raises:
        ConfigError: there are no UEs, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    if not places:
        raise ConfigError("places: expected at least one UE")
    figure, axes = canvas(path, width=7.0, height=5.6)
    from matplotlib.colors import LogNorm
    from matplotlib.colors import Normalize as Linear

    rates = [place.uplink_bps / 1e6 for place in places if place.uplink_bps > 0] or [1.0]
    low, high = min(rates), max(rates)
    norm = LogNorm(low, high) if high > 10 * low else Linear(low, high if high > low else low + 1)
    kinds = ((True, "o", "in line of sight"), (False, "^", "out of sight"))
    size = 70 if len(places) <= 100 else 22
    for seen, marker, label in kinds:
        these = [place for place in places if place.line_of_sight is seen and place.uplink_bps > 0]
        if these:
            drawn = axes.scatter(
                [place.x_m for place in these], [place.y_m for place in these], s=size, marker=marker,
                c=[place.uplink_bps / 1e6 for place in these], cmap="cividis", norm=norm, edgecolors=INK,
                linewidths=0.6, label=f"{label} ({len(these):,})", zorder=3,
            )  # fmt: skip
    mute = [place for place in places if not place.uplink_bps > 0]
    if mute:
        axes.scatter(
            [place.x_m for place in mute], [place.y_m for place in mute], s=size, marker="x", color="#D55E00",
            label=f"no rate ({len(mute):,})", zorder=3,
        )  # fmt: skip
    reach = 1.08 * max(1.0, *(max(abs(place.x_m), abs(place.y_m)) for place in places))
    axes.scatter([0], [0], s=190, marker="*", color="#D55E00", edgecolors=INK, label="base station", zorder=4)
    if len(places) <= MAX_NAMED:
        _name(axes, places, reach)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.grid(axis="both", color=FAINT, linewidth=0.8)
    axes.set_xlabel("east of the base station, m")
    axes.set_ylabel("north of it, m")
    if len(mute) < len(places):
        _scale(figure, axes, drawn, norm)
    title(axes, f"{name}: {len(places):,} UEs" if name else f"{len(places):,} UEs")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, labelcolor=INK, fontsize=9,
        handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    save(figure, path)


def _scale(figure: "Figure", axes: "Axes", drawn: "PathCollection", norm: "Normalize") -> None:
    scale = figure.colorbar(drawn, ax=axes, pad=0.02, shrink=0.85)
    scale.set_label("mean uplink rate alone in the band, Mbit/s", color=INK)
    scale.outline.set_visible(False)
    if norm.vmin is not None and norm.vmax is not None and norm.vmax > 10 * norm.vmin:
        scale.set_ticks(_steps(norm.vmin, norm.vmax))
        scale.ax.minorticks_off()
    scale.ax.yaxis.set_major_formatter("{x:g}")


def _name(axes: "Axes", places: Sequence[Place], reach: float) -> None:
    for place, (right, up) in zip(places, _corners(places, reach), strict=True):
        axes.annotate(
            place.client, (place.x_m, place.y_m), xytext=(6 * right, 3 * up), textcoords="offset points",
            fontsize=8, color=INK, ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top",
        )  # fmt: skip


def _steps(low: float, high: float) -> list[float]:
    """Return the 1, 2 and 5 of each power of ten that lie between two rates."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def _corners(places: Sequence[Place], reach: float) -> list[tuple[int, int]]:
    """Choose for each name the corner of its UE that is farthest from other UEs and from names that are placed."""
    taken = [(place.x_m, place.y_m) for place in places]
    chosen = []
    for place in places:
        others = [spot for spot in taken if spot != (place.x_m, place.y_m)]

        def room(corner: tuple[int, int], x_m: float = place.x_m, y_m: float = place.y_m) -> float:
            spot = (x_m + corner[0] * 0.06 * reach, y_m + corner[1] * 0.04 * reach)
            return min((math.dist(spot, other) for other in others), default=0.0)  # noqa: B023 - called at once

        corner = max(((1, 1), (1, -1), (-1, 1), (-1, -1)), key=room)
        taken.append((place.x_m + corner[0] * 0.06 * reach, place.y_m + corner[1] * 0.04 * reach))
        chosen.append(corner)
    return chosen

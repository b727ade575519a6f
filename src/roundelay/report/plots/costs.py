"""A metric against simulated time, uplink bits or joules: a line a setting, a band where it has several seeds."""

import os
from collections.abc import Sequence

from roundelay.report.comparing import Axis, Compared, Line, line_of
from roundelay.report.plots.canvas import FAINT, INK, LINE_COLOURS, LINE_STYLES, canvas, save, title, words
from roundelay.report.units import prefix_of

AXES: dict[Axis, tuple[str, str, str]] = {
    "time_s": ("simulated time", "s", ""),
    "uplink_bits": ("uplink", "bit", "bits"),
    "energy_j": ("energy of the UEs", "J", "energy"),
}
"""What an axis is called, its unit, and what there is less of."""


def plot_costs(
    settings: Sequence[Compared], axis: Axis, metric: str, target: float, path: str | os.PathLike[str]
) -> bool:
    """Draw the lines of those settings that the axis is known of; return whether there were any.

    Raises:
        ConfigError: the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    lines = [(one, line) for one in settings if (line := line_of(one.setting, axis)) is not None]
    if not lines:
        return False
    name, unit, _ = AXES[axis]
    factor, prefix = prefix_of(max(line.at[-1] for _, line in lines))
    if axis == "time_s" and factor > 1:
        factor, prefix = 1.0, ""
    figure, axes = canvas(path, width=7.0)
    for number, (one, line) in enumerate(lines):
        at = [x / factor for x in line.at]
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        axes.plot(
            at, line.mean, label=_label(one, axis), color=colour, drawstyle="steps-post", linewidth=1.8,
            linestyle=LINE_STYLES[number // len(LINE_COLOURS) % len(LINE_STYLES)],
            marker="o" if len(at) <= 25 else None, markersize=3.5,
        )  # fmt: skip
        if len(one.setting.runs) > 1:
            axes.fill_between(at, line.low, line.high, step="post", color=colour, alpha=0.2, linewidth=0)
    axes.axhline(target, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"target {target:.4g}", (0.01, target), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="left", va="bottom", fontsize=9, color=INK,
    )  # fmt: skip
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(f"{name}, {prefix}{unit}")
    axes.set_ylabel(words(metric))
    title(axes, f"{words(metric).capitalize()} against {name}{_what_band(lines)}")
    # Below the axes: a name and what it came to are too long to stand beside them.
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, labelcolor=INK, fontsize=10)
    save(figure, path)
    return True


def _label(one: Compared, axis: Axis) -> str:
    """Name a setting, with what it gained over the first one; beside a speed-up stands what bounds it."""
    name = one.setting.name
    if one.cost is None:
        num_runs = len(one.setting.runs)
        some = f"in {one.reached} of {num_runs} seeds only" if one.reached else "never"
        return f"{name}: at the target {some}"
    ratio = one.ratios.get(axis)
    if ratio is None:
        return name
    if axis == "time_s":
        bound = "" if one.bound is None else rf" (bound $1 + T_{{tx}}/T_{{comp}}$ = {one.bound:.2f})"
        return f"{name}: speed-up {ratio:.2f}{bound}"
    what = AXES[axis][2]
    less = "fewer" if axis == "uplink_bits" else "less"
    return f"{name}: {ratio:.2f} times {less} {what}" if ratio >= 1 else f"{name}: {1 / ratio:.2f} times more {what}"


def _what_band(lines: Sequence[tuple[Compared, Line]]) -> str:
    return ": mean and range of seeds" if any(len(one.setting.runs) > 1 for one, _ in lines) else ""

"""Who did what when: a row for each UE, and two for the base station."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from roundelay.errors import ConfigError
from roundelay.report.accounts import Doing, Journey
from roundelay.report.plots.canvas import INK, canvas, save, title
from roundelay.simulation.network.cell.rates import NS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours; what is queueing has stripes too, and what is waiting is thin, so that grey prints tell them.
LOOKS: dict[Doing, tuple[str, str, float, str]] = {
    "receiving": ("#56B4E9", "", 0.76, "receiving"),
    "computing": ("#0072B2", "", 0.76, "computing"),
    "queueing": ("#F0C36D", "////", 0.76, "queueing for the band"),
    "sending": ("#D55E00", "", 0.76, "on air, sending"),
    "waiting": ("#BBBBBB", "", 0.16, "waiting"),
}
"""Colour, stripes, height and name of what a UE does."""

MAX_ROWS = 40
"""More clients than these are not all drawn: the first by name are."""

MAX_NAMED_ENDS = 6
"""Ends of more rounds than these are lines without a word."""


def plot_gantt(
    journeys: Sequence[Journey], ends_ns: Mapping[int, int], rounds: tuple[int, int], path: str | os.PathLike[str],
    name: str = "",
) -> None:  # fmt: skip
    """Draw what went on between the beginning of the first of these ``rounds`` and the end of the last.

    Raises:
        ConfigError: there are no such rounds, nothing went on in them, or the suffix is not .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    first, last = rounds[0], min(rounds[1], max(ends_ns, default=0))
    if first > last:
        raise ConfigError(f"rounds: {name or 'the run'} has {last} rounds, and {first} to {rounds[1]} shall be drawn")
    begin_ns, end_ns = ends_ns.get(first - 1, 0), ends_ns[last]
    seen = [
        journey for journey in journeys
        if journey.stretches and journey.stretches[-1].end_ns > begin_ns and journey.asked_ns < end_ns
    ]  # fmt: skip
    if not seen:
        raise ConfigError(f"rounds: nothing went over the network in rounds {first} to {last}")
    clients = sorted({journey.client for journey in seen})
    shown = clients[:MAX_ROWS]
    rows = {client: number for number, client in enumerate(shown)}
    figure, axes = canvas(path, width=8.0, height=1.9 + 0.24 * (len(shown) + 2))
    unit_ns, unit = (NS, "s") if end_ns - begin_ns >= NS else (NS // 1000, "ms")
    for journey in seen:
        if journey.client in rows:
            _draw(axes, journey, rows[journey.client], begin_ns, end_ns, unit_ns)
    _draw_station(axes, seen, len(shown), begin_ns, end_ns, unit_ns)
    _draw_ends(axes, {number: ns for number, ns in ends_ns.items() if begin_ns < ns <= end_ns}, unit_ns)
    axes.set_yticks(range(len(shown) + 2), [*shown, "BS sends", "BS receives"])
    axes.set_ylim(len(shown) + 1.6, -0.6)
    axes.set_xlim(begin_ns / unit_ns, end_ns / unit_ns)
    axes.grid(visible=False)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(f"simulated time, {unit}")
    which = f"round {first}" if first == last else f"rounds {first} to {last}"
    some = "" if len(shown) == len(clients) else f", {len(shown)} of {len(clients)} UEs"
    title(axes, f"{name}: {which}{some}" if name else f"{which.capitalize()}{some}", pad=16)
    _legend(axes, seen)
    save(figure, path)


def busy(journeys: Iterable[Journey], doing: Doing, begin_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """Return when at least one UE was doing that, as spans that do not touch."""
    spans = sorted(
        (max(part.start_ns, begin_ns), min(part.end_ns, end_ns))
        for journey in journeys for part in journey.stretches
        if part.doing == doing and part.end_ns > begin_ns and part.start_ns < end_ns
    )  # fmt: skip
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _draw(axes: "Axes", journey: Journey, row: int, begin_ns: int, end_ns: int, unit_ns: int) -> None:
    for part in journey.stretches:
        start, end = max(part.start_ns, begin_ns), min(part.end_ns, end_ns)
        if start < end:
            colour, stripes, height, _ = LOOKS[part.doing]
            axes.barh(
                row, (end - start) / unit_ns, height, left=start / unit_ns, color=colour, hatch=stripes,
                edgecolor="white", linewidth=0.3,
            )  # fmt: skip
    if journey.outcome != "arrived" and begin_ns <= journey.done_ns <= end_ns:
        axes.plot(journey.done_ns / unit_ns, row, marker="x", color="black", markersize=6, clip_on=False)


def _draw_station(axes: "Axes", seen: Sequence[Journey], row: int, begin_ns: int, end_ns: int, unit_ns: int) -> None:
    of_ues: tuple[Doing, Doing] = ("receiving", "sending")  # while they receive, the base station sends
    for number, doing in enumerate(of_ues):
        spans = [(start / unit_ns, (end - start) / unit_ns) for start, end in busy(seen, doing, begin_ns, end_ns)]
        axes.broken_barh(spans, (row + number - 0.38, 0.76), color=LOOKS[doing][0], linewidth=0)
    axes.axhline(row - 0.5, color=INK, linewidth=0.8)


def _draw_ends(axes: "Axes", ends_ns: Mapping[int, int], unit_ns: int) -> None:
    for number, ns in sorted(ends_ns.items()):
        axes.axvline(ns / unit_ns, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
        if len(ends_ns) <= MAX_NAMED_ENDS:
            axes.annotate(
                f"end of {number}", (ns / unit_ns, 1), xycoords=("data", "axes fraction"), xytext=(-3, 2),
                textcoords="offset points", fontsize=8, ha="right", color=INK,
            )  # fmt: skip


def _legend(axes: "Axes", seen: Sequence[Journey]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    done = {part.doing for journey in seen for part in journey.stretches}
    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, hatch=stripes, edgecolor="white", label=label)
        for doing, (colour, stripes, _, label) in LOOKS.items() if doing in done
    ]  # fmt: skip
    if any(journey.outcome != "arrived" for journey in seen):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="broken off or lost"))
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=INK, fontsize=9
    )

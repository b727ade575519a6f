"""Runs side by side: what each took to reach a target, in simulated seconds, uplink bits and joules.

Runs of one resolved job that differ in nothing but the seed (and in where they are kept) are one *setting*: one line of
a picture with a band around it, one row of the table.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from roundelay.errors import ConfigError
from roundelay.metrics import higher_is_better
from roundelay.report.accounts import Account, Journey, Split
from roundelay.tracking.run_folder import Row

Axis = Literal["time_s", "uplink_bits", "energy_j"]
AXES: tuple[Axis, ...] = ("time_s", "uplink_bits", "energy_j")


@dataclass(frozen=True, slots=True)
class Point:
    """A round that measured the metric, and what all rounds up to its end took; None where nothing modelled that."""

    round: int
    value: float
    time_s: float | None
    uplink_bits: int | None
    energy_j: float | None


@dataclass(frozen=True, slots=True)
class Told:
    """What a comparison needs of a run. ``account`` is None where there was no network."""

    name: str
    job: Mapping[str, Any]  # Any: what TOML holds
    curve: Sequence[Point]
    account: Account | None = None
    journeys: Sequence[Journey] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    runs: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Means over a setting's runs of what each took until it first reached the target."""

    rounds: float
    time_s: float | None
    uplink_bits: float | None
    energy_j: float | None


@dataclass(frozen=True, slots=True)
class Compared:
    """A setting's ``cost`` is None unless all of its runs reached the target, which ``reached`` of them did. ``ratios``
    say how many times less it took than the first setting; ``bound`` is the first's 1 + T_tx / T_comp.
    """

    setting: Setting
    reached: int
    cost: Cost | None
    ratios: Mapping[Axis, float]
    bound: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """A setting's metric over an axis: the mean of its runs, and their range. A value holds until the next."""

    at: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve_of(rows: Iterable[Row], metric: str) -> list[Point]:
    """Return the rounds in which a metric was measured, with the running totals of all rounds up to each."""
    bits, energy_j, points = None, None, []  # type: int | None, float | None, list[Point]
    for row in rows:
        if row.get("uplink_bits") is not None:
            bits = (bits or 0) + row["uplink_bits"]
        if row.get("joules") is not None:
            energy_j = (energy_j or 0.0) + row["joules"]
        if row.get(metric) is not None:
            points.append(Point(row["round"], row[metric], row.get("virtual_s") or None, bits, energy_j))
    return points


def settings_of(runs: Sequence[Told]) -> list[Setting]:
    """Put the seeds of one configuration together, in the order in which they were given."""
    alike: list[tuple[Mapping[str, Any], list[Told]]] = []  # Any: what TOML holds
    for run in runs:
        job = {key: value for key, value in run.job.items() if key not in ("seed", "name", "tracking")}
        same = next((group for known, group in alike if known == job), None)
        if same is None or run.job.get("seed") in (other.job.get("seed") for other in same):
            alike.append((job, [run]))  # the same seed once more is no further sample
        else:
            same.append(run)
    return [Setting(name, tuple(group)) for name, (_, group) in zip(_names(g for _, g in alike), alike, strict=True)]


def _names(groups: Iterable[Sequence[Told]]) -> Iterator[str]:
    taken: set[str] = set()
    for group in groups:
        name = group[0].name
        if len(group) > 1:
            alike = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*(run.name for run in group), strict=False))
            stem = "".join(letter for letter, *_ in alike).rstrip("-_. ").removesuffix("seed").rstrip("-_. ")
            name = f"{stem or name} ({len(group)} seeds)"
        for number in itertools.count(2):
            if name not in taken:
                break
            name = f"{group[0].name} [{number}]"
        taken.add(name)
        yield name


def scaled_apart(runs: Iterable[Told]) -> bool:
    """Tell whether runs of one seed had their computing scaled by different factors. A codec does not move the factor;
    another cell or cohort does.
    """
    factors: dict[object, set[float]] = {}
    for run in runs:
        if run.account is not None and run.account.calibration is not None:
            factors.setdefault(run.job.get("seed"), set()).add(run.account.calibration)
    return any(len(known) > 1 for known in factors.values())


def best_of_all(runs: Sequence[Told], metric: str) -> float | None:
    """Return the best value that every run reaches; None where one never measured it."""
    better, worse = (max, min) if higher_is_better(metric) else (min, max)
    bests = [better(point.value for point in run.curve) for run in runs if run.curve]
    return worse(bests) if bests and len(bests) == len(runs) else None


def parse_target(text: str) -> tuple[str, float]:
    """Read "accuracy=0.9".

    Raises:
        ConfigError: it is something else.
    """
    metric, _, value = text.partition("=")
    try:
        target = float(value)
    except ValueError:
        target = math.nan
    if not metric.strip() or not math.isfinite(target):
        raise ConfigError(f"--target must be a metric and a number, such as accuracy=0.9, got {text!r}")
    return metric.strip(), target


def reached(curve: Iterable[Point], target: float, metric: str) -> Point | None:
    """Return the first round whose metric is as good as the target."""
    if higher_is_better(metric):
        return next((point for point in curve if point.value >= target), None)
    return next((point for point in curve if point.value <= target), None)


def compared(settings: Sequence[Setting], metric: str, target: float) -> list[Compared]:
    """Hold every setting against the first."""
    found = []
    for setting in settings:
        points = [point for run in setting.runs if (point := reached(run.curve, target, metric)) is not None]
        found.append((setting, len(points), _mean_cost(points) if len(points) == len(setting.runs) else None))
    first = found[0][2] if found else None
    limit = bound_of(settings[0], metric, target) if settings else None
    return [
        Compared(setting, count, cost, {} if setting is settings[0] else _ratios(first, cost), limit)
        for setting, count, cost in found
    ]


def bound_of(setting: Setting, metric: str, target: float) -> float | None:
    """Return 1 + T_tx / T_comp of a setting's runs, over the rounds up to the target, or over all where it was never
    reached; None where there was no network.
    """
    together = Split(0, 0)
    for run in setting.runs:
        if run.account is None:
            return None
        point = reached(run.curve, target, metric)
        together = together.and_also(run.account.split(None if point is None else point.round))
    return together.bound


def _mean_cost(points: Sequence[Point]) -> Cost:
    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if len(known) == len(points) else None

    return Cost(
        statistics.fmean(point.round for point in points), mean(point.time_s for point in points),
        mean(point.uplink_bits for point in points), mean(point.energy_j for point in points),
    )  # fmt: skip


def _ratios(first: Cost | None, cost: Cost | None) -> dict[Axis, float]:
    if first is None or cost is None:
        return {}
    pairs = ((axis, getattr(first, axis), getattr(cost, axis)) for axis in AXES)
    return {axis: before / after for axis, before, after in pairs if before is not None and after}


def line_of(setting: Setting, axis: Axis) -> Line | None:
    """Return a setting's metric over an axis, from where all of its runs have a value to the end of the last; None
    where the axis was not modelled. What a run ended with, it keeps.
    """
    curves = [
        [(at, point.value) for point in run.curve if (at := getattr(point, axis)) is not None] for run in setting.runs
    ]
    if not all(curves):
        return None
    begin = max(curve[0][0] for curve in curves)
    grid = sorted({at for curve in curves for at, _ in curve if at >= begin})
    values = [[next(value for at, value in reversed(curve) if at <= x) for curve in curves] for x in grid]
    return Line(
        tuple(grid), tuple(map(statistics.fmean, values)), tuple(map(min, values)), tuple(map(max, values))
    )  # fmt: skip

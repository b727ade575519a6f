"""From run folders to what is compared and drawn of their network."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roundelay.components import build, namespace
from roundelay.errors import ConfigError
from roundelay.report.accounts import (
    account,
    ends_of,
    journeys_of,
    staleness_of,
    staleness_told,
)
from roundelay.report.comparing import AXES, Compared, Setting, Told, best_of_all, compared, curve_of, settings_of
from roundelay.report.plots import Place, plot_cell, plot_costs, plot_gantt, plot_staleness
from roundelay.report.runs import RunRecord, json_of
from roundelay.simulation import network
from roundelay.simulation.network.radio import Radio
from roundelay.tracking.run_folder import read_rows

MEAN_OVER = 100
"""So many fading blocks make the mean rate on a map."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``target`` is None where not every run has the metric; then nothing is compared."""

    metric: str
    target: float | None
    settings: Sequence[Setting]
    compared: Sequence[Compared]


def told_of(run: RunRecord, metric: str) -> Told:
    """Read what a comparison needs of a run."""
    job = tomllib.loads((run.path / "job.toml").read_text())
    curve, ledger = curve_of(run.rows, metric), read_rows(run.path / "ledger.jsonl")
    if not ledger:
        return Told(run.path.name, job, curve)
    ends_ns = ends_of(run.rows)
    journeys = journeys_of(ledger, ends_ns)
    staleness = staleness_told(read_rows(run.path / "clients.jsonl")) or staleness_of(journeys, ends_ns)
    buffered = str(job.get("workflow", {}).get("use", "")).lower().rpartition(":")[2] == "buffered"
    factor = json_of(run.path / "calibration.json").get("factor")
    found = account(journeys, staleness, buffered=buffered, calibration=factor)
    return Told(run.path.name, job, curve, found, journeys)


def comparison(runs: Sequence[Told], metric: str, target: float | None) -> Comparison:
    """Put runs of one configuration together, and hold every setting against the first.

    Raises:
        ConfigError: the target is of a metric that a run never measured.
    """
    settings = settings_of(runs)
    without = [run.name for run in runs if not run.curve]
    if target is not None and without:
        raise ConfigError(f"run {without[0]} never measured {metric}, of which a target is given")
    target = best_of_all(runs, metric) if target is None else target
    return Comparison(metric, target, settings, [] if target is None else compared(settings, metric, target))


def draw_compared(told: Comparison, folder: Path, suffix: str = ".png") -> list[Path]:
    """Draw all settings into one picture an axis, and one of their staleness; return what was drawn."""
    pictures = []
    if told.target is not None:
        for axis in AXES:
            path = folder / f"{told.metric}_{axis.rpartition('_')[0]}{suffix}"
            if plot_costs(told.compared, axis, told.metric, told.target, path):
                pictures.append(path)
    counts = {setting.name: _staleness(setting) for setting in told.settings}
    if any(counts.values()):
        pictures.append(folder / f"staleness{suffix}")
        plot_staleness(counts, pictures[-1])
    return pictures


def draw_network(
    run: RunRecord, told: Told, folder: Path, rounds: tuple[int, int], ending: str = ".png"
) -> list[Path]:  # fmt: skip
    """Draw a run's Gantt chart and, where its cell is a radio, the map; return what was drawn. ``ending`` is how the
    names of the files end.
    """
    pictures = []
    if told.journeys:
        pictures.append(folder / f"gantt{ending}")
        plot_gantt(told.journeys, ends_of(run.rows), rounds, pictures[-1], told.name)
    places = places_of(run, told)
    if places:
        pictures.append(folder / f"cell{ending}")
        plot_cell(places, pictures[-1], told.name)
    return pictures


def places_of(run: RunRecord, told: Told) -> list[Place]:
    """Return where a run's UEs are, each with its mean uplink rate alone in the whole band; none where no radio was.

    Nothing of this is in the folder: it follows from the job's radio, its seed and the clients' names.
    """
    table = told.job.get("simulation", {}).get("network", {}).get("cell")
    clients = _clients(run, told)
    if table is None or not clients:
        return []
    radio = build(table, namespace(network), "simulation.network.cell")
    if not isinstance(radio, Radio):
        return []
    channel = radio.channel(told.job["seed"], clients)
    xy_m = radio.placement.positions(told.job["seed"], clients).xy_m
    rows, blocks = np.arange(len(clients)), range(MEAN_OVER if channel.block_ns else 1)
    rates = np.mean([channel.bps(rows, radio.bandwidth_hz, block, "up") for block in blocks], axis=0)
    return [
        Place(client, float(xy_m[n, 0]), float(xy_m[n, 1]), bool(channel.line_of_sight[n]), float(rates[n]))
        for n, client in enumerate(clients)
    ]


def _clients(run: RunRecord, told: Told) -> list[str]:
    counts: dict[str, Any] = json_of(run.path / "label_counts.json")  # Any: what JSON holds
    return list(counts["clients"]) if counts else sorted({journey.client for journey in told.journeys})


def _staleness(setting: Setting) -> dict[int, int]:
    together: dict[int, int] = {}
    for run in setting.runs:
        for age, count in ({} if run.account is None else run.account.staleness).items():
            together[age] = together.get(age, 0) + count
    return together

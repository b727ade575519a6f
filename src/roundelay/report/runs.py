"""Reading run folders: the list of them, one in full, several side by side, and their pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundelay.components import unknown_message
from roundelay.errors import ConfigError
from roundelay.report.clients import last_evaluations
from roundelay.report.plots import plot_clients, plot_partition, plot_rounds
from roundelay.tracking.run_folder import Row, read_rows, require_run_folder


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run folder holds; Any: rows and JSON hold names, numbers and text."""

    path: Path
    rows: Sequence[dict[str, Any]]
    info: dict[str, Any]
    state: dict[str, Any]

    def last(self, metric: str) -> float | None:
        values = [row[metric] for row in self.rows if row.get(metric) is not None]
        return values[-1] if values else None

    def total(self, column: str) -> float:
        return sum(row.get(column) or 0 for row in self.rows)


def read_run(path: str | Path) -> RunRecord:
    """Read one run folder.

    Raises:
        ConfigError: it is none.
    """
    folder = Path(path)
    require_run_folder(folder)
    return RunRecord(
        folder, read_rows(folder / "metrics.jsonl"), json_of(folder / "run.json"), json_of(folder / "state.json")
    )


def list_runs(root: str | Path) -> list[RunRecord]:
    """Return the runs under ``root``, oldest first."""
    folders = [path.parent for path in Path(root).glob("*/job.toml")]
    return sorted(
        (read_run(folder) for folder in folders), key=lambda run: (run.info.get("started", ""), run.path.name)
    )


def require_metric(tables: Sequence[Sequence[Row]], metric: str) -> None:
    """Raise a ConfigError that lists what there is, where no row of any run has the metric."""
    rows = [row for table in tables for row in table]
    if rows and all(row.get(metric) is None for row in rows):
        known = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
        raise ConfigError(unknown_message(f"metric {metric!r}", metric, known))


def plot_run(path: str | Path, metric: str = "accuracy") -> list[Path]:
    """Draw a run's pictures into its folder: the metric against rounds, and client by client; who holds which labels.
    Returns their paths.
    """
    run, pictures = read_run(path), []
    if run.last(metric) is not None:
        pictures.append(run.path / f"{metric}.png")
        plot_rounds({run.path.name: run.rows}, metric, pictures[-1])
    evaluated = last_evaluations(run.path)
    if evaluated is not None and (values := evaluated.by_client(own := evaluated.like(metric))):
        pictures.append(run.path / "clients.png")
        plot_clients(values, own, pictures[-1])
    counts = json_of(run.path / "label_counts.json")
    if counts:
        pictures.append(run.path / "partition.png")
        plot_partition(torch.tensor(counts["counts"]), counts["clients"], pictures[-1])
    return pictures


def plot_compared(runs: Sequence[RunRecord], metric: str, path: str | Path) -> Path:
    """Draw one line per run into one picture."""
    plot_rounds({run.path.name: run.rows for run in runs}, metric, Path(path))
    return Path(path)


def json_of(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run folder, an empty one where there is no file.

    Raises:
        ConfigError: it holds something else.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes().decode()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged: expected an object in JSON ({error}); bring it back from a copy"
        ) from error

"""Runs in MLflow, through its extra."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roundelay.errors import optional
from roundelay.files import save_atomically

KEPT = "mlflow.json"
"""The file of the run folder that keeps the run's id, and where that run is."""

MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000
"""What MLflow takes in one call, and as a parameter's value."""

NOT_IN_NAMES = re.compile(r"[^\w .:-]")
"""What no part of a name may hold; parts stand between slashes."""

STATUS = {"finished": "FINISHED", "failed": "FAILED"}


def packages() -> Any:  # Any: the package, which may not be there
    """Return the packages.

    Raises:
        MissingExtra: they are not installed.
    """
    with optional("mlflow-skinny", "mlflow"):
        import mlflow.entities
        import mlflow.tracking
    return mlflow


def absolute(uri: str) -> str:
    """Return a tracking URI that names the same database from any working directory.

    >>> absolute("http://host:5000"), absolute("sqlite:////var/mlflow.db")
    ('http://host:5000', 'sqlite:////var/mlflow.db')
    """
    scheme, separator, path = uri.partition("sqlite:///")
    return f"sqlite:///{Path(path).resolve()}" if separator and not scheme and path else uri


class MLflow:
    """One run in the experiment of the job's name, with the job's settings as parameters. Steps are rounds.

    ``uri`` is where MLflow keeps runs: "http://host:5000", or "sqlite:///runs/mlflow.db" for a file of this machine.
    The run's id is kept in the run folder, so that a resumed run is the same one there.
    """

    def __init__(self, uri: str, folder: Path, settings: Mapping[str, Any]) -> None:  # Any: what TOML holds
        self._mlflow = packages()
        self._client = self._mlflow.tracking.MlflowClient(tracking_uri=uri)
        kept = folder / KEPT
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if known.get("uri") == uri:
            self._id = known["run_id"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._begun(folder.name, settings)
            text = json.dumps({"uri": uri, "run_id": self._id})
            save_atomically(kept, lambda file: file.write(text.encode()))
        told = self._client.get_metric_history(self._id, "admitted")
        self._last_round = max((metric.step for metric in told), default=0)

    def _begun(self, name: str, settings: Mapping[str, Any]) -> str:
        experiment = str(settings["name"])
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else found.experiment_id
        run: str = self._client.create_run(number, run_name=name).info.run_id
        params = [self._mlflow.entities.Param(key, text[:LONGEST_PARAM]) for key, text in _flat(settings)]
        for at in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run, params=params[at : at + MOST_PARAMS])
        return run

    def append(self, row: Mapping[str, Any]) -> None:  # Any: a row holds names, numbers and text
        if row["round"] <= self._last_round:
            return
        told = {name: value for name, value in row.items() if name != "round" and isinstance(value, int | float)}
        self._log(told, row["round"])
        self._last_round = row["round"]

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        """Write a number that a client logged, below the client's name."""
        self._log({f"{client}/{name}": value}, step)

    def close(self, state: str) -> None:
        self._client.set_terminated(self._id, STATUS.get(state, "KILLED"))

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(_named(name), value, now_ms, step) for name, value in numbers.items()]
        for at in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[at : at + MOST_METRICS])


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys, and their values as text."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield _named(f"{before}{name}"), str(value)


def _named(name: str) -> str:
    """Return a name that MLflow takes, which is a path of its own characters that leads nowhere else."""
    parts = [NOT_IN_NAMES.sub("_", part) for part in name.split("/")]
    return "/".join(part if part.strip(".") else "_" * max(1, len(part)) for part in parts)

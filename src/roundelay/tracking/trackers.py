"""Whom a run's numbers are told beside its own tables: TensorBoard, Weights & Biases, MLflow."""

import logging
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from roundelay.errors import MissingExtra
from roundelay.tracking import mlflow, wandb
from roundelay.tracking.run_folder import Row, Tracking
from roundelay.tracking.tensorboard import TensorBoard

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]  # Any: what TOML holds


class Tracker(Protocol):
    def append(self, row: Row) -> None:
        """Take a round's row, its numbers at least. One that was taken before is not taken twice."""

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        """Take a number that a client logged."""

    def close(self, state: str) -> None:
        """Send what is left; ``state`` is what has become of the run: finished, stopped, interrupted or failed."""


class Trackers:
    """All trackers that a run has. What one on another machine raises is said once, as a warning; it is told nothing
    from then on, and the training goes on.
    """

    def __init__(self, tracking: Tracking | None) -> None:
        """Raises:
        MissingExtra: a package that is asked for is not installed.
        """
        self._tracking, self._trackers = tracking, list[Tracker]()
        if tracking is not None and tracking.wandb is not None:
            wandb.package()
        if tracking is not None and tracking.mlflow is not None:
            mlflow.packages()

    def open(self, folder: Path, resolved: str, rows: Sequence[Row]) -> None:
        """Begin, or go on after ``rows``: whoever lacks some is told them now. ``resolved`` is the run's job file."""
        tracking = self._tracking
        if tracking is None:
            return
        settings = {name: value for name, value in tomllib.loads(resolved).items() if name != "tracking"}
        if tracking.tensorboard:
            first = rows[-1]["round"] + 1 if rows else 1
            self._trackers.append(TensorBoard(folder / "tensorboard", first_round=first))
        outside: dict[str, Callable[[], Tracker]] = {}
        if (project := tracking.wandb) is not None:
            outside["Weights & Biases"] = lambda: wandb.WandB(project, folder, settings)
        if (uri := tracking.mlflow) is not None:
            outside["MLflow"] = lambda: mlflow.MLflow(uri, folder, settings)
        for name, make in outside.items():
            tracker = _Outside(name, make)
            for row in rows:
                tracker.append(row)
            self._trackers.append(tracker)

    def append(self, row: Row) -> None:
        for tracker in self._trackers:
            tracker.append(row)

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        for tracker in self._trackers:
            tracker.append_scalar(client, name, value, step)

    def close(self, state: str) -> None:
        for tracker in self._trackers:
            tracker.close(state)


class _Outside:
    """A tracker that may fail."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._lock, self._tracker = name, threading.Lock(), None  # type: str, threading.Lock, Tracker | None
        self._attempt(lambda: setattr(self, "_tracker", make()))

    def append(self, row: Row) -> None:
        with self._lock:
            if (tracker := self._tracker) is not None:
                self._attempt(lambda: tracker.append(row))

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        with self._lock:
            if (tracker := self._tracker) is not None:
                self._attempt(lambda: tracker.append_scalar(client, name, value, step))

    def close(self, state: str) -> None:
        with self._lock:
            if (tracker := self._tracker) is not None:
                self._attempt(lambda: tracker.close(state))
                self._tracker = None

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except MissingExtra:
            raise
        except Exception as error:  # this is the border to code, and to networks, that we do not know
            self._tracker = None
            log.warning("%s is told nothing more of this run: %s: %s. The training goes on; all numbers are in "
                        "metrics.jsonl, and a resumed run tells what is missing",
                        self._name, type(error).__name__, str(error).strip() or "no reason given")  # fmt: skip

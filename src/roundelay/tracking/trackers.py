"""Whom a run's numbers are told beside its own tables: TensorBoard, Weights & Biases, MLflow."""

import logging
import queue
import threading
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from roundelay.tracking import mlflow, wandb
from roundelay.tracking.run_folder import Row, Tracking
from roundelay.tracking.tensorboard import TensorBoard

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a run that has ended waits for what trackers on other machines have not taken yet."""

KEPT_HERE = "all numbers are in metrics.jsonl, and a resumed run tells what is missing"

Settings = Mapping[str, Any]  # Any: what TOML holds


class Tracker(Protocol):
    def append(self, row: Row) -> None:
        """Take a round's row, its numbers at least. One that was taken before is not taken twice."""

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        """Take a number that a client logged."""

    def close(self, state: str) -> None:
        """Send what is left; ``state`` is what has become of the run: finished, stopped, interrupted or failed."""


class Trackers:
    """All trackers that a run has. One on another machine is told from a thread of its own: the training neither waits
    for it nor ends for it.
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
        folder = folder.resolve()  # scripts in threads of this process have working directories of their own
        settings = {name: value for name, value in tomllib.loads(resolved).items() if name != "tracking"}
        if tracking.tensorboard:
            first = rows[-1]["round"] + 1 if rows else 1
            self._trackers.append(TensorBoard(folder / "tensorboard", first_round=first))
        outside: dict[str, Callable[[], Tracker]] = {}
        if (project := tracking.wandb) is not None:
            outside["Weights & Biases"] = lambda: wandb.WandB(project, folder, settings)
        if tracking.mlflow is not None:
            uri = mlflow.absolute(tracking.mlflow)
            outside["MLflow"] = lambda: mlflow.MLflow(uri, folder, settings)
        for name, make in outside.items():
            self._trackers.append(_Outside(name, make, rows))

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
    """A tracker that may fail, or take its time. What it raises is said once, and it is told nothing from then on."""

    def __init__(self, name: str, make: Callable[[], Tracker], rows: Sequence[Row]) -> None:
        self._name = name
        self._steps: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._tell, args=(make,), name=f"roundelay-{name}", daemon=True)
        self._thread.start()
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        self._put(lambda tracker: tracker.append(row))

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        self._put(lambda tracker: tracker.append_scalar(client, name, value, step))

    def close(self, state: str) -> None:
        self._put(lambda tracker: tracker.close(state))
        self._put(None)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            log.warning("%s has not taken everything within %g s; %s", self._name, PATIENCE_S, KEPT_HERE)

    def _put(self, step: Callable[[Tracker], None] | None) -> None:
        if self._thread.is_alive():  # else nobody takes it
            self._steps.put(step)

    def _tell(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
            while (step := self._steps.get()) is not None:
                step(tracker)
        except Exception as error:  # this is the border to code, and to networks, that we do not know
            reason = str(error).strip() or "no reason given"
            kind = type(error).__name__
            log.warning("%s is told nothing more of this run: %s: %s; %s", self._name, kind, reason, KEPT_HERE)

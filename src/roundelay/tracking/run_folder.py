"""A run's folder: what was asked for, with what it ran, and every number that came out.

job.toml        the resolved configuration                run.json       versions, commit, seed, machine
state.json      how far it is, and its SHA-256             label_counts.json
metrics.jsonl   one row per round                          clients.jsonl  one row per client and round
ledger.jsonl    every message and computation of a modelled network; scalars.jsonl  what clients logged
last.pt best.pt state dicts                                checkpoint.pt  what ``resume`` goes on from
memory/         what clients remember, where it is kept on disk
split.json      which example belongs to which client      attacks.json  who does harm, where attacks are asked for
journal/        what happened, where clients are devices
tensorboard/    curves; wandb.json, mlflow.json  which run this is there; wandb/  what was told offline
"""

import fcntl
import json
import math
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, Any

import torch

from roundelay.errors import ConfigError
from roundelay.files import remove_unfinished, save_atomically
from roundelay.stopwatch import real_s

TABLES = ("metrics.jsonl", "clients.jsonl", "scalars.jsonl", "ledger.jsonl")

JOURNAL = "journal"
"""A run on real devices has a folder of that name inside its own."""

Row = Mapping[str, Any]  # Any: a row holds names, numbers and text


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where a run is kept. ``name`` names its folder under ``root``, else the job's name and the time do.

    ``checkpoint_every_s`` is how much real time of finished rounds a crash may cost; 0 checkpoints after every round.

    Beside the folder's own tables, rounds are told TensorBoard; Weights & Biases, under the project ``wandb``; MLflow,
    at the tracking URI ``mlflow``. The latter two are another's machines: one that fails is left alone, and said.
    Whatever it is, a resumed run ends in the same bits. ``best.pt`` is the model with the best value of the metric
    ``best``, by default the one that may stop the run; ``better`` is "higher" or "lower", where the metric's name does
    not say so.
    """

    root: str = "runs"
    name: str | None = None
    checkpoint_every_s: float = 10.0
    tensorboard: bool = False
    wandb: str | None = None
    mlflow: str | None = None
    best: str | None = None
    better: str | None = None

    def __post_init__(self) -> None:
        if not self.checkpoint_every_s >= 0:
            raise ConfigError(f"tracking checkpoint_every_s must be at least 0, got {self.checkpoint_every_s!r}")
        if self.wandb is not None and not self.wandb.rpartition("/")[2]:
            raise ConfigError(f'tracking wandb: expected "project" or "entity/project", got {self.wandb!r}')
        if self.mlflow is not None and not self.mlflow:
            raise ConfigError(
                'tracking mlflow: expected a tracking URI such as "sqlite:///runs/mlflow.db", got nothing'
            )
        if self.better not in (None, "higher", "lower"):
            raise ConfigError(f'tracking better must be "higher" or "lower", got {self.better!r}')


class RunFolder:
    def __init__(self, path: Path) -> None:
        """Take a folder that is there; nobody else can, until this one is closed or its process is gone.

        Raises:
            ConfigError: another process is running this run.
        """
        self.path = path
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(f"the run in {path} is going on in another process") from error
        self._tables: list[IO[str]] = []  # metrics, clients, scalars, ledger
        self.close = weakref.finalize(self, _close, self._lock, self._tables)  # also when a run is dropped unstarted

    @staticmethod
    def create(tracking: Tracking, job_name: str) -> "RunFolder":
        """Make a new folder; an existing one is never written into.

        Raises:
            ConfigError: the folder is there already.
        """
        root = Path(tracking.root)
        stem = tracking.name or f"{job_name}-{datetime.now():%Y%m%d-%H%M%S}"
        for attempt in range(1000):
            path = root / (stem if attempt == 0 else f"{stem}-{attempt + 1}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if tracking.name:
                    raise ConfigError(
                        f"the run folder {path} is there already; resume it, or choose another tracking name"
                    ) from None
            else:
                return RunFolder(path)
        raise ConfigError(f"cannot find a free name for a run folder under {root}")

    @staticmethod
    def reopen(path: Path) -> "RunFolder":
        """Take the folder of an interrupted run.

        Raises:
            ConfigError: it is no run folder, or its run is going on.
        """
        require_run_folder(path)
        folder = RunFolder(path)
        remove_unfinished(path)
        return folder

    def write_json(self, name: str, content: object) -> None:
        text = json.dumps(content, indent=1, allow_nan=False, default=str)
        save_atomically(self.path / name, lambda file: file.write(text.encode()))

    def write_text(self, name: str, text: str) -> None:
        save_atomically(self.path / name, lambda file: file.write(text.encode()))

    def open_tables(self, keep_rounds: int) -> None:
        """Open the tables for appending, without the rows of rounds beyond ``keep_rounds``, which will be run again."""
        for name in TABLES:
            kept = [row for row in read_rows(self.path / name) if row["round"] <= keep_rounds]
            self.write_text(name, "".join(_line(row) for row in kept))
            self._tables.append((self.path / name).open("a"))

    def append(self, row: Row, clients: Iterable[Row]) -> None:
        metrics, of_clients = self._tables[:2]
        metrics.write(_line(row))
        metrics.flush()
        of_clients.writelines(map(_line, clients))

    def append_scalar(self, row: Row) -> None:
        """Write a number that a client logged, as it comes."""
        scalars = self._tables[2]
        scalars.write(_line(row))
        scalars.flush()

    def append_ledger(self, rows: Iterable[Row]) -> None:
        self._tables[3].writelines(map(_line, rows))

    def sync(self) -> None:
        """Make the tables as durable as the checkpoint that follows them."""
        for table in self._tables:
            table.flush()
            os.fsync(table.fileno())


def require_run_folder(path: Path) -> None:
    """Raise a ConfigError where no run is kept."""
    if not (path / "job.toml").exists():
        raise ConfigError(f"{path} is not a run folder: it has no job.toml")


def _close(lock: int, tables: Iterable[IO[str]]) -> None:
    for table in tables:
        table.close()
    os.close(lock)


def read_rows(path: Path) -> list[dict[str, Any]]:  # Any: see Row
    """Return the rows of a JSONL table; none where it is absent. A last line that a crash cut off is left out.

    Raises:
        ConfigError: another line is no row; names file and line.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(row_of(line))
        except (ValueError, RecursionError) as error:
            if number != len(lines):
                raise ConfigError(f"{path}, line {number} is no row of a table: {error}") from error
    return rows


def row_of(line: bytes) -> dict[str, Any]:  # Any: see Row
    """Raises:
    ValueError, RecursionError: the line is no row of a table.
    """
    row = json.loads(line.decode())
    if not isinstance(row, dict) or not isinstance(row.get("round"), int):
        raise ValueError("expected an object with the number of a round")
    return row


def surroundings(seed: int, devices: Sequence[str]) -> dict[str, Any]:  # Any: text and numbers
    """Describe what a run's bits may depend on, and when and where it ran."""
    packages = {name: installed_version(name) for name in ("roundelay", "torch", "numpy")}
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
        "versions": {"python": platform.python_version(), **packages},
        "git_commit": _git_commit(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "intra_op_threads_per_client": 1,
        "devices": list(devices),
        "import_path": list(sys.path),  # where the modules that job.toml names were found
    }


def _git_commit() -> str | None:
    try:
        shown = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                               capture_output=True, text=True, timeout=10, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None


def _line(row: Row) -> str:
    plain = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}
    return json.dumps(plain) + "\n"


class Clock:
    """Says when the next checkpoint is due, in real time."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, real_s()

    def due(self) -> bool:
        if real_s() - self._last < self._every_s:
            return False
        self._last = real_s()
        return True

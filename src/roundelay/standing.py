"""Where a run stands after each round, and the folder in which that is kept: rows, best model, checkpoints, resume."""

import math
import threading
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from roundelay.bookkeeping import Finished
from roundelay.client.exchange import Scalar
from roundelay.errors import ConfigError
from roundelay.federation import Flight, Version
from roundelay.history import best_of
from roundelay.intake import ClientReport
from roundelay.messages import Memory
from roundelay.prepared import Prepared, measured_metrics
from roundelay.simulation.memory import ClientMemory, Disk
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from roundelay.tracking.run_folder import Clock, Row, RunFolder, read_rows, surroundings
from roundelay.tracking.trackers import Trackers
from roundelay.trainer import LARGE_BYTES, Trainer


class Standing:
    """What the next round, and a resumed run, go on from.

    ``version`` is None before the first round. ``flights`` are the tasks under way, each with the virtual
    nanosecond of its arrival; ``network`` is what a modelled network goes on from, ``trace_hash`` the hash of its
    ledger. ``rows`` and ``records`` are what the history will hold. ``watched`` is the metric by which ``best.pt``
    is chosen.
    """

    def __init__(
        self, job: Prepared, trainer: Trainer, first_memory: Memory, watched: str, resume: Path | None
    ) -> None:
        """Open the run folder, if the job has one. Of the ``trainer``, what is frozen goes into the files of weights.

        Raises:
            ConfigError: ``resume`` is not a folder of this job.
        """
        self._job, self._trainer, self._layout = job, trainer, trainer.layout
        self._first_memory, self.watched = first_memory, watched
        self.version: Version | None = None
        self.flights: Sequence[tuple[Flight, int]] = ()
        self.network: Mapping[str, Any] | None = None
        self.trace_hash: str | None = None
        self.virtual_ns = 0
        self.rows: list[Row] = []
        self.records: dict[str, Mapping[str, object]] = {}
        self._best, self._best_version = math.nan, None  # type: float, Version | None
        self.memory: ClientMemory
        self._trackers = Trackers(job.tracking)
        self._folder = self._open_folder(resume)
        self._clock = Clock(job.tracking.checkpoint_every_s if job.tracking else math.inf)
        if self._folder:
            self._trackers.open(self._folder.path, job.resolved, self.rows)
        self._held: dict[str, tuple[int, Sequence[int] | None]] = {}
        self._scalars = threading.Lock()  # of what clients say while the run goes on

    @property
    def folder(self) -> Path | None:
        return self._folder.path if self._folder else None

    @property
    def num_rounds_done(self) -> int:
        return self.version.number if self.version else 0

    def latest(self) -> Version:
        """Return the version that the last round led to, or the initial one."""
        return self.version or self._initial()

    def _initial(self) -> Version:
        vectors = self._layout.flatten(self._job.work.initial_module().state_dict())
        return Version(0, {"params": vectors.params}, vectors.buffers, vectors.integers)

    # ---- opening ----

    def _open_folder(self, resume: Path | None) -> RunFolder | None:
        job = self._job
        if resume is not None:
            folder = RunFolder.reopen(resume)
            try:
                self._go_on_from(folder)
            except BaseException:
                folder.close()
                raise
            return folder
        if job.tracking is None:
            self.memory = self._client_memory(None)
            return None
        folder = RunFolder.create(job.tracking, job.name)
        self.memory = self._client_memory(folder.path)
        folder.write_text("job.toml", job.resolved)
        folder.write_json("run.json", surroundings(job.work.seed, job.simulation.worker_devices()))
        if job.split is not None:
            job.split.save(folder.path / "split.json")
        if job.label_counts is not None:
            folder.write_json("label_counts.json", {"clients": job.work.data.clients, "counts": job.label_counts})
        if job.roles:
            played = {client: [type(role).__name__ for role in job.roles[client]] for client in sorted(job.roles)}
            folder.write_json("attacks.json", played)
        folder.open_tables(keep_rounds=0)
        return folder

    def _client_memory(self, folder: Path | None) -> ClientMemory:
        if self._job.simulation.memory == "process":
            return ClientMemory(self._first_memory)
        return ClientMemory(self._first_memory, Disk(None if folder is None else folder / "memory"))

    def _go_on_from(self, folder: RunFolder) -> None:
        require_same_job(folder.path, self._job.resolved)
        self.memory = self._client_memory(folder.path)
        kept = folder.path / "checkpoint.pt"
        if not kept.exists():
            self.memory.restore(None)
        else:
            checkpoint = load_checkpoint(kept, self._layout)
            self.version, self.virtual_ns, self._best = checkpoint.version, checkpoint.virtual_ns, checkpoint.best
            self.memory.restore(checkpoint.memory)
            self.flights, self.network = checkpoint.flights, checkpoint.network
            if self.network is not None:
                self.trace_hash = self.network["trace_hash"]
        folder.write_text("job.toml", self._job.resolved)
        folder.open_tables(keep_rounds=self.num_rounds_done)
        self.rows.extend(read_rows(folder.path / "metrics.jsonl"))
        for row in self.rows:
            self._watch(row)
        values = (row.get(self.watched) for row in self.rows)
        if best_of(values, self.watched, self._better) != self._best:
            self._best = math.nan  # best.pt was chosen by another metric, or before that was told to be another way

    # ---- keeping ----

    def finish_round(self, finished: Finished, row: Row, now_ns: int) -> bool:
        """Stand at a round's end; checkpoint where one is due, and return whether that was so."""
        before = self.version
        self.version, self.flights, self.virtual_ns = finished.version, finished.flights, now_ns
        if finished.network is not None:
            self.network, self.trace_hash = finished.network.state, finished.network.trace_hash
            if self._folder:
                self._folder.append_ledger(finished.network.ledger)
        self.memory.finish_round()
        self.rows.append(row)
        self._watch(row)
        # what they report with their training speaks of the model that they received
        self._keep_best(row, before or self._initial() if self.watched.startswith("train_") else finished.version)
        if self._folder:
            self._folder.append(row, (_client_row(row["round"], report) for report in finished.reports))
            self._trackers.append(row)
            if self._clock.due():
                self.checkpoint()
                return True
        return False

    def keep_scalar(self, client: str, number: int, scalar: Scalar) -> None:
        """Track a number that a client logged; called by the agents of several clients at once."""
        with self._scalars:
            if self._folder:
                self._folder.append_scalar({"round": number, "client": client, **asdict(scalar)})
                self._trackers.append_scalar(client, scalar.name, scalar.value, scalar.step)

    def keep_data(self, client: str, holding: "Held") -> None:
        """Note what a client tells of its data; when all have told their label counts, they make the usual table."""
        with self._scalars:
            self._held[client] = (holding.num_examples, holding.label_counts)
            if self._folder is None:
                return
            told = {name: {"num_examples": size, "label_counts": counts} for name, (size, counts) in self._held.items()}
            self._folder.write_json("data.json", told)
            clients = self._job.work.data.clients
            if len(self._held) < len(clients):
                return
            counts = [self._held[name][1] for name in clients]
            if all(counts):
                width = max(len(row) for row in counts if row is not None)
                rows = [[*row, *[0] * (width - len(row))] for row in counts if row is not None]
                table = {"clients": clients, "counts": rows}
                self._folder.write_json("label_counts.json", table)

    def keep_record(self, name: str, content: Mapping[str, object]) -> None:
        self.records[name] = content
        if self._folder:
            self._folder.write_json(f"{name}.json", content)

    def _watch(self, row: Row) -> None:
        """Turn to what clients report, which shows when they do, where the other metric is neither asked for nor ever
        measured.
        """
        tracking = self._job.tracking
        wanted = self._job.plan.stopping.asked or (tracking is not None and tracking.best is not None)
        unmeasured = self.watched not in row and self.watched not in measured_metrics(self._job)
        if unmeasured and "train_loss" in row and not wanted:
            self.watched = "train_loss"

    @property
    def _better(self) -> str | None:
        """Which values of the watched metric are better, where the job says so."""
        job = self._job
        if job.tracking is not None and job.tracking.best == self.watched:
            return job.tracking.better
        return job.plan.stopping.better if job.plan.stopping.metric == self.watched else None

    def _keep_best(self, row: Row, version: Version) -> None:
        metric = self.watched
        value = row.get(metric)
        if value is not None and value != self._best and best_of((self._best, value), metric, self._better) == value:
            self._best = value
            self._best_version = version if self._folder else None
        held = self._best_version
        if held is not None and held is not version and held.vectors.params.nbytes > LARGE_BYTES:
            self._write_best()  # a small one is held until the next checkpoint

    def checkpoint(self) -> None:
        if self._folder is None or self.version is None:
            return
        path = self._folder.path
        self._folder.sync()
        self._write_best()
        save_weights(path / "last.pt", self._named(self.version))
        kept = Checkpoint(self.version, self.memory.state(), self.virtual_ns, self._best, self.flights, self.network)
        save_checkpoint(path / "checkpoint.pt", kept, self._layout)
        self.memory.checkpointed()

    def _write_best(self) -> None:
        if self._folder is not None and self._best_version is not None:
            save_weights(self._folder.path / "best.pt", self._named(self._best_version))
            self._best_version = None

    def _named(self, version: Version) -> Mapping[str, Tensor]:
        return {**self._layout.unflatten(version.vectors, copy=False), **self._trainer.bound.frozen()}

    def note(self, state: str, **facts: object) -> None:
        """Write down how far the run is, and what has become of it."""
        if self._folder:
            self._folder.write_json("state.json", {"state": state, "rounds_done": self.num_rounds_done, **facts})

    def close(self, state: str, reason: str) -> None:
        """Keep all that a resumed run needs, and give the folder back."""
        try:
            self.checkpoint()
            trace = {} if self.trace_hash is None else {"trace_hash": self.trace_hash}
            self.note(state, reason=reason, sha256=self._layout.sha256(self.latest().vectors), **trace)
        finally:
            try:
                self._trackers.close(state)
            finally:
                if self._folder:
                    self._folder.close()


class Held(Protocol):
    """What a client tells of its data."""

    @property
    def num_examples(self) -> int: ...

    @property
    def label_counts(self) -> Sequence[int] | None: ...


FREE_TO_CHANGE = {"name", "num_rounds", "evaluation", "stopping", "tracking", "simulation", "deployment"}
"""Parts of a job that a resumed run may give anew: they say how long and how it runs, not what has come out so far."""

FIXED_INSIDE = (
    ("simulation", "duration"),
    ("simulation", "network"),
    ("simulation", "load"),
    ("simulation", "memory"),
    ("simulation", "num_clients"),
    ("evaluation", "client_test_fraction"),
)
"""What in those parts decides who there is, is in time, trains on what, or where the checkpoint's memories are."""


def fixed_part(resolved: str) -> dict[str, Any]:  # Any: what TOML holds
    """Return what a resumed run cannot change of a resolved job, by dotted key."""
    given = tomllib.loads(resolved)
    fixed = {key: value for key, value in given.items() if key not in FREE_TO_CHANGE}
    inside = {f"{table}.{key}": given.get(table, {}).get(key) for table, key in FIXED_INSIDE}
    return {**fixed, **{name: value for name, value in inside.items() if value is not None}}


def require_same_job(folder: Path, resolved: str) -> None:
    """Raises:
    ConfigError: the run in ``folder`` is one of another job than this resolved one.
    """
    kept, given = fixed_part((folder / "job.toml").read_text()), fixed_part(resolved)
    for name in sorted({*kept, *given}):
        then, now = kept.get(name), given.get(name)
        if then != now:
            raise ConfigError(
                f"{folder} is a run of another job: its {name} is {then!r}, this job's is {now!r}; "
                f"a resumed run can change {', '.join(sorted(FREE_TO_CHANGE))}"
            )


def _client_row(number: int, report: ClientReport) -> Row:
    row: dict[str, Any] = {
        "round": number, "attempt": report.attempt, "client": report.client, "status": report.status,
    }  # fmt: skip
    if report.silent:
        row["silent"] = True
    if report.status in ("admitted", "evaluated", "silent"):
        row["num_examples"] = report.num_examples
        return {**row, **report.metrics, **row}  # whatever names clients choose: the columns are ours
    return {**row, "reason": report.reason}

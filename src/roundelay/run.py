"""One run of a job: the loop on a private thread, and the folder in which every round is kept.

The thread waits after each round until the caller asks for the next one, so ``break`` stops training where it stands,
and a job runs inside Jupyter, whose own event loop it never meets.
"""

import logging
import math
import queue
import shutil
import tempfile
import threading
import tomllib
import weakref
from asyncio import Runner
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roundelay.algorithms.protocol import rehearse
from roundelay.attacks import slowed
from roundelay.bookkeeping import Finished, Given
from roundelay.client.exchange import Scalar
from roundelay.client.launch import ScriptLearner
from roundelay.errors import ConfigError, RoundelayError
from roundelay.federation import Flight, Version
from roundelay.intake import ClientReport
from roundelay.layout import Layout
from roundelay.metrics import higher_is_better
from roundelay.prepared import Prepared, check, watched_metric
from roundelay.simulation.executors.scripts import Sites
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.intercepted import Intercepted
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.memory import ClientMemory, Disk
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_weights
from roundelay.tracking.run_folder import Clock, RunFolder, read_rows, surroundings
from roundelay.tracking.tensorboard import TensorBoard
from roundelay.trainer import Trainer
from roundelay.workflows.rounds import Rounds

log = logging.getLogger(__name__)

Row = Mapping[str, Any]  # Any: a row holds names, numbers and text


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round: its row of the table, what became of each client, and the model that it led to.

    ``clients`` has one report per client and attempt, then one per client that evaluated on its own data.
    """

    number: int
    row: Row
    clients: Sequence[ClientReport]
    _version: Version
    _layout: Layout

    @property
    def metrics(self) -> dict[str, float]:
        """The row's numbers by name: accuracy, loss, train_loss, bytes_up, seconds, ..."""
        return {name: float(value) for name, value in self.row.items() if isinstance(value, int | float)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the global model after this round, for ``load_state_dict``."""
        return self._layout.unflatten(self._version.vectors)


@dataclass(frozen=True, slots=True)
class History:
    """What a run came to: ``rows`` is the per-round table, ``model`` the final global model, ``sha256`` its hash.

    ``records`` holds what a workflow kept beside the rounds, by name: "cross_site" of ``CrossSite``.
    """

    rows: Sequence[Row]
    model: nn.Module
    sha256: str
    run_folder: Path | None
    stopped: str
    records: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every number that was recorded."""
        merged: dict[str, float] = {}
        for row in self.rows:
            merged.update({k: float(v) for k, v in row.items() if isinstance(v, int | float)})
        return merged

    def best(self, metric: str) -> float:
        """Return the best value of a metric over all rounds; NaN where it was never recorded."""
        return best_of((row[metric] for row in self.rows if row.get(metric) is not None), metric)

    def clients(self) -> list[dict[str, Any]]:  # Any: see Row
        """Return the per-client table, one row per client and round, read from the run folder."""
        if self.run_folder is None:
            raise ConfigError("the per-client table is kept in the run folder, and this job has tracking = None")
        return read_rows(self.run_folder / "clients.jsonl")


class Run:
    """Iterate over it to train: each step is one round. Leaving the loop stops the run and closes what it holds.

    ``watched`` is the metric by which ``best.pt`` is chosen.
    """

    def __init__(self, job: Prepared, resume: Path | None = None) -> None:
        """Check the parts against each other and open the run folder.

        Raises:
            ConfigError: a combination cannot mean what its name says, or ``resume`` is not a folder of this job.
        """
        self._job = job
        job.workflow.check(job.plan, len(job.work.data.clients), job.work.algorithm)
        self._trainer = Trainer(job.work)
        self._layout = self._trainer.layout
        initial = self._trainer.bound.params().clone()
        self.watched = watched_metric(job)
        self._rehearsal = rehearse(job.work.algorithm, initial, len(job.work.data.clients))
        check(job, self._layout, self._rehearsal, initial)
        clients = len(job.work.data.clients)
        self._sampling_rate = job.plan.cohort_size(clients) / clients
        self._duration = slowed(job.simulation.duration, job.roles)
        self._first_memory = job.work.algorithm.first_memory(initial)
        self._version: Version | None = None
        self._flights: Sequence[tuple[Flight, int]] = ()
        self._virtual_ns, self._best, self._best_version = 0, math.nan, None  # type: int, float, Version | None
        self._rows: list[Row] = []
        self._folder = self._open_folder(resume)
        self._clock = Clock(job.tracking.checkpoint_every_s if job.tracking else math.inf)
        self._board = (
            TensorBoard(self._folder.path / "tensorboard", first_round=self.num_rounds_done + 1)
            if self._folder and job.tracking and job.tracking.tensorboard
            else None
        )
        self._finished: queue.Queue[Round | BaseException | None] = queue.Queue()
        self._go_on, self._stop = threading.Semaphore(0), threading.Event()
        self._interrupt: Callable[[], None] = _nothing
        self._records: dict[str, Mapping[str, object]] = {}
        self._begun, self._state, self._reason = False, "interrupted", ""
        self._scalars = threading.Lock()
        self._lock = threading.Lock()  # a run is interrupted by another thread than the one that ends it

    @property
    def folder(self) -> Path | None:
        return self._folder.path if self._folder else None

    @property
    def num_rounds_done(self) -> int:
        return self._version.number if self._version else 0

    def __iter__(self) -> Iterator[Round]:
        if self._begun:
            raise RoundelayError(
                "this run has been started before; job.run(resume=FOLDER) goes on with one that stopped"
            )
        self._begun = True
        return self._rounds()

    def _rounds(self) -> Iterator[Round]:
        thread = threading.Thread(target=self._train, name="roundelay-run", daemon=True)
        self._note("running")
        thread.start()
        try:
            while True:
                item = self._finished.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    break
                yield item
                self._go_on.release()
        finally:
            self._stop.set()
            with self._lock:
                self._interrupt()
            self._go_on.release()
            thread.join()
            self._close()

    def history(self) -> History:
        """Return what the run has come to so far."""
        module = self._job.work.initial_module()
        version = self._version or self._initial_version()
        module.load_state_dict({**module.state_dict(), **self._layout.unflatten(version.vectors)})
        return History(
            tuple(self._rows),
            module,
            self._layout.sha256(version.vectors),
            self.folder,
            self._reason,
            dict(self._records),
        )

    # ---- the private thread -----------------------------------------------------------------------------------------

    def _train(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the number of threads changes sums: one per client everywhere, and on the server too
        executor, ending = None, None
        try:
            executor = self._job.simulation.start(self._job.work, self._trainer, self._rehearsal, self._sites())
            if self._job.roles:
                algorithm, seed = self._job.work.algorithm, self._job.work.seed
                executor = Intercepted(executor, self._job.roles, list(algorithm.uplink), seed)
            self._interrupt = executor.interrupt
            if self._stop.is_set():  # the caller left while the workers were starting
                raise _Left
            with Runner(loop_factory=partial(VirtualLoop, self._virtual_ns)) as runner:
                loop = runner.get_loop()
                assert isinstance(loop, VirtualLoop)
                job = self._job
                given = Given(
                    plan=job.plan, clients=job.work.data.clients, trainer=self._trainer, guard=job.guard,
                    lengths=self._rehearsal.lengths, restored=self._version, history=self._rows,
                    on_round=partial(self._finish_round, loop), on_record=self._record,
                    client_config=job.client_config, rule=job.aggregator, privacy=job.privacy,
                )  # fmt: skip
                federation = SimulatedFederation(
                    given, executor=executor, loop=loop, memory=self._memory, flights=self._flights,
                    duration=self._duration,
                )  # fmt: skip
                runner.run(job.workflow.run(federation, job.work.algorithm))
            self._state = "finished"
            self._reason = job.plan.stopping.reason(self._rows) or _ended(self.num_rounds_done, job.plan.num_rounds)
        except _Left:
            self._state, self._reason = "stopped", "the caller left the loop"
        except BaseException as error:  # raised again, in the caller's thread
            ending = error
            interrupted = isinstance(error, KeyboardInterrupt)
            self._state = "interrupted" if interrupted else "failed"
            self._reason = "by the keyboard" if interrupted else (str(error) or repr(error)).splitlines()[0]
        finally:
            with self._lock:
                self._interrupt = _nothing
            if executor is not None:
                executor.close()
            torch.set_num_threads(threads)
            self._finished.put(ending)

    def _finish_round(self, loop: VirtualLoop, finished: Finished) -> Row:
        begun_from = self._version or self._initial_version()
        outcome, self._version, self._flights = finished.outcome, finished.version, finished.flights
        self._memory.finish_round()
        row: dict[str, Any] = {
            "round": finished.version.number,
            "attempt": outcome.attempt,
            **{status: outcome.count(status) for status in ("admitted", "refused", "lost", "late")},
            "bytes_down": finished.bytes_down,
            "bytes_up": finished.bytes_up,
            "seconds": round(finished.seconds, 6),
            "virtual_s": finished.at_s,
            **finished.metrics,
        }
        if self._job.privacy is not None:
            row["epsilon"] = self._job.privacy.epsilon(self._sampling_rate, finished.version.number)
            row["clip_norm"] = finished.version.clip_norm
        if outcome.fold.gathered_bytes and isinstance(self._job.workflow, Rounds):
            row["gathered_bytes"] = outcome.fold.gathered_bytes
            row["kept_model"] = int(self._job.workflow.shortfall(outcome) is not None)
        self._rows.append(row)
        self._virtual_ns = loop.now_ns
        stopping = self._job.plan.stopping
        if self.watched not in row and "train_loss" in row and stopping.target is None and stopping.patience is None:
            self.watched = "train_loss"  # what clients report shows when they do; nobody asked for the other one
        # what they report with their training speaks of the model that they received
        self._keep_best(row, begun_from if self.watched.startswith("train_") else finished.version)
        log.info("round %d: %s", row["round"], row)
        if self._folder:
            self._folder.append(row, (_client_row(row["round"], report) for report in finished.reports))
            if self._board:
                self._board.append(row)
            if self._clock.due():
                self._checkpoint()
        self._finished.put(Round(finished.version.number, row, finished.reports, finished.version, self._layout))
        self._go_on.acquire()
        if self._stop.is_set():
            raise _Left
        return row

    # ---- what is kept -----------------------------------------------------------------------------------------------

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
            self._memory = self._client_memory(None)
            return None
        folder = RunFolder.create(job.tracking, job.name)
        self._memory = self._client_memory(folder.path)
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
        _require_same_job(folder.path, self._job.resolved)
        self._memory = self._client_memory(folder.path)
        kept = folder.path / "checkpoint.pt"
        if kept.exists():
            checkpoint = load_checkpoint(kept, self._layout)
            self._version, self._virtual_ns, self._best = checkpoint.version, checkpoint.virtual_ns, checkpoint.best
            self._memory.restore(checkpoint.memory)
            self._flights = checkpoint.flights
        folder.write_text("job.toml", self._job.resolved)
        folder.open_tables(keep_rounds=self.num_rounds_done)
        self._rows.extend(read_rows(folder.path / "metrics.jsonl"))

    def _sites(self) -> Sites | None:
        """Return what scripts are told, where scripts train."""
        job = self._job
        if not isinstance(job.work.learner, ScriptLearner):
            return None
        folder = self.folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="roundelay-"))
            self._temporary = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        split_file = job.split_file
        if job.split is not None and split_file is None:
            split_file = folder.resolve() / "split.json"
            if not split_file.exists():  # a run without a folder
                job.split.save(split_file)
        clients = job.work.data.clients

        def partition(client: str) -> dict[str, Any]:
            told = {"client": client, "number": clients.index(client), "num_clients": len(clients)}
            return told if split_file is None else {**told, "file": str(split_file)}

        return Sites(job.name if self.folder is None else self.folder.name, job.plan.num_rounds,
                     folder.resolve() / "sites", partition, self._on_scalar)  # fmt: skip

    def _on_scalar(self, client: str, number: int, scalar: Scalar) -> None:
        """Track a number that a client logged; called by the agents of several clients at once."""
        with self._scalars:
            if self._folder:
                self._folder.append_scalar({"round": number, "client": client, **asdict(scalar)})
            if self._board:
                self._board.append_scalar(client, scalar.name, scalar.value, scalar.step)

    def _record(self, name: str, content: Mapping[str, object]) -> None:
        self._records[name] = content
        if self._folder:
            self._folder.write_json(f"{name}.json", content)

    def _keep_best(self, row: Row, version: Version) -> None:
        metric = self.watched
        value = row.get(metric)
        if value is not None and value != self._best and best_of((self._best, value), metric) == value:
            self._best, self._best_version = value, version

    def _checkpoint(self) -> None:
        if self._folder is None or self._version is None:
            return
        path = self._folder.path
        self._folder.sync()
        if self._best_version is not None:
            save_weights(path / "best.pt", self._layout.unflatten(self._best_version.vectors))
            self._best_version = None
        save_weights(path / "last.pt", self._layout.unflatten(self._version.vectors))
        kept = Checkpoint(self._version, self._memory.state(), self._virtual_ns, self._best, self._flights)
        save_checkpoint(path / "checkpoint.pt", kept, self._layout)
        self._memory.checkpointed()

    def _note(self, state: str, **facts: object) -> None:
        if self._folder:
            self._folder.write_json("state.json", {"state": state, "rounds_done": self.num_rounds_done, **facts})

    def _close(self) -> None:
        self._checkpoint()
        version = self._version or self._initial_version()
        self._note(self._state, reason=self._reason, sha256=self._layout.sha256(version.vectors))
        if self._board:
            self._board.close()
        if self._folder:
            self._folder.close()

    def _initial_version(self) -> Version:
        vectors = self._layout.flatten(self._job.work.initial_module().state_dict())
        return Version(0, {"params": vectors.params}, vectors.buffers, vectors.integers)


FREE_TO_CHANGE = {"name", "num_rounds", "evaluation", "stopping", "tracking", "simulation"}
"""Parts of a job that a resumed run may give anew: they say how long and how it runs, not what has come out so far."""

FIXED_INSIDE = (
    ("simulation", "duration"),
    ("simulation", "memory"),
    ("simulation", "num_clients"),
    ("evaluation", "client_test_fraction"),
)
"""What in those parts decides who there is, is in time, trains on what, or where the checkpoint's memories are."""


def _require_same_job(folder: Path, resolved: str) -> None:
    kept, given = (tomllib.loads(text) for text in ((folder / "job.toml").read_text(), resolved))
    fixed = [(key, kept.get(key), given.get(key)) for key in sorted({*kept, *given} - FREE_TO_CHANGE)]
    for table, key in FIXED_INSIDE:
        fixed.append((f"{table}.{key}", kept.get(table, {}).get(key), given.get(table, {}).get(key)))
    for name, then, now in fixed:
        if then != now:
            raise ConfigError(
                f"{folder} is a run of another job: its {name} is {then!r}, this job's is {now!r}; "
                f"a resumed run can change {', '.join(sorted(FREE_TO_CHANGE))}"
            )


def _nothing() -> None: ...


def _ended(done: int, planned: int) -> str:
    return f"all {planned} rounds are done" if done >= planned else f"the workflow ended after {done} rounds"


class _Left(Exception):
    """The caller left the loop over rounds."""


def best_of(values: Any, metric: str) -> float:  # Any: an iterable of floats, NaN and None among them
    """Return the best finite value, by the metric's direction; NaN of none."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    return (max if higher_is_better(metric) else min)(finite) if finite else math.nan


def _client_row(number: int, report: ClientReport) -> Row:
    row: dict[str, Any] = {
        "round": number, "attempt": report.attempt, "client": report.client, "status": report.status,
    }  # fmt: skip
    if report.status in ("admitted", "evaluated"):
        return {**row, "num_examples": report.num_examples, **report.metrics}
    return {**row, "reason": report.reason}

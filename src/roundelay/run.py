"""One run of a job: its rounds, on a private thread.

The thread waits after each round until the caller asks for the next one, so ``break`` stops training where it stands,
and a job runs inside Jupyter, whose own event loop it never meets.
"""

import logging
import queue
import shutil
import tempfile
import threading
import weakref
from asyncio import CancelledError, Runner
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from roundelay.algorithms.protocol import rehearse
from roundelay.attacks.work import slowed
from roundelay.bookkeeping import Finished, Given
from roundelay.chosen import RECORD, settled
from roundelay.client.launch import ScriptLearner
from roundelay.course import Course
from roundelay.errors import RoundelayError
from roundelay.history import History, Round
from roundelay.intake import Outcome
from roundelay.prepared import Prepared, check, watched_metric
from roundelay.simulation.executors.scripts import Sites
from roundelay.simulation.world import Simulated
from roundelay.standing import Standing
from roundelay.tracking.run_folder import Row
from roundelay.trainer import Trainer
from roundelay.workflows.hierarchical import Hierarchical
from roundelay.workflows.rounds import Rounds
from roundelay.world import Inhabited, World

log = logging.getLogger(__name__)


class Run:
    """Iterate over it to train: each step is one round. Leaving the loop stops the run and closes what it holds."""

    def __init__(
        self, job: Prepared, resume: Path | None = None, world: "Callable[[Run], World] | None" = None
    ) -> None:
        """Check the parts against each other and open the run folder. ``world(run)`` says where its clients are;
        without it they are simulated.

        Raises:
            ConfigError: a combination cannot mean what its name says, or ``resume`` is not a folder of this job.
        """
        job.workflow.check(job.plan, len(job.work.data.clients), job.work.algorithm)
        self.trainer = Trainer(job.work)
        self._layout = self.trainer.layout
        initial = self.trainer.bound.params()  # to look at now: it may be the module's own memory
        watched = watched_metric(job)
        self.rehearsal = rehearse(job.work.algorithm, initial, len(job.work.data.clients))
        check(job, self._layout, self.rehearsal, initial)
        job, choice = settled(job, self.trainer, resume, real=world is not None)
        self.job = job
        clients = len(job.work.data.clients)
        self._sampling_rate = job.plan.cohort_size(clients) / clients
        network = job.simulation.network
        self._duration = None if network else slowed(job.simulation.duration, job.roles)
        first_memory = {name: value.clone() for name, value in job.work.algorithm.first_memory(initial).items()}
        self.standing = Standing(job, self.trainer, first_memory, watched, resume)
        if choice is not None:
            self.standing.keep_record(RECORD, asdict(choice))
        self._finished: queue.Queue[Round | BaseException | None] = queue.Queue()
        self._go_on, self._stop = threading.Semaphore(0), threading.Event()
        self._interrupt: Callable[[], None] = _nothing
        self._begun, self._state, self._reason = False, "interrupted", ""
        self._lock = threading.Lock()  # a run is interrupted by another thread than the one that ends it
        self._make_world = world or Run.simulated
        self._world: World | None = None

    @property
    def folder(self) -> Path | None:
        return self.standing.folder

    @property
    def num_rounds_done(self) -> int:
        return self.standing.num_rounds_done

    @property
    def watched(self) -> str:
        """The metric by which ``best.pt`` is chosen."""
        return self.standing.watched

    def __iter__(self) -> Iterator[Round]:
        if self._begun:
            raise RoundelayError(
                "this run has been started before; job.run(resume=FOLDER) goes on with one that stopped"
            )
        self._begun = True
        return self._rounds()

    def _rounds(self) -> Iterator[Round]:
        thread = threading.Thread(target=self._train, name="roundelay-run", daemon=True)
        self.standing.note("running")
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
            self.standing.close(self._state, self._reason)

    def history(self) -> History:
        """Return what the run has come to so far."""
        module = self.job.work.initial_module()
        version = self.standing.latest()
        module.load_state_dict({**module.state_dict(), **self._layout.unflatten(version.vectors, copy=False)})
        return History(
            tuple(self.standing.rows),
            module,
            self._layout.sha256(version.vectors),
            self.folder,
            self._reason,
            dict(self.standing.records),
            self.standing.trace_hash,
        )

    # ---- the private thread -----------------------------------------------------------------------------------------

    def _train(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the number of threads changes sums: one per client everywhere, and on the server too
        job, standing, ending = self.job, self.standing, None
        try:
            world = self._world = self._make_world(self)
            world.open()
            self._interrupt = world.interrupt
            if self._stop.is_set():  # the caller left while the workers were starting
                raise _Left
            with Runner(loop_factory=world.loop) as runner:
                runner.get_loop()  # which the world makes, and its federation asks for
                given = Given(
                    plan=job.plan, clients=job.work.data.clients, trainer=self.trainer, guard=job.guard,
                    lengths=self.rehearsal.lengths, restored=standing.version, history=standing.rows,
                    on_round=partial(self._finish_round, world), on_record=standing.keep_record,
                    client_config=job.client_config, rule=job.aggregator, privacy=job.privacy,
                    epoch=job.epoch,
                )  # fmt: skip
                _run(runner, self._work(world.federation(given)))
            self._state = "finished"
            self._reason = job.plan.stopping.reason(standing.rows) or _ended(self.num_rounds_done, job.plan.num_rounds)
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
            if self._world is not None:
                self._world.close()
            torch.set_num_threads(threads)
            self._finished.put(ending)

    async def _work(self, federation: Inhabited) -> None:
        await federation.gather()
        await self.job.workflow.run(federation, self.job.work.algorithm)

    def _finish_round(self, world: World, finished: Finished) -> Row:
        row = self._row(finished)
        log.info("round %d: %s", row["round"], row, extra={"round": row["round"], "row": row})
        if self.standing.finish_round(finished, row, world.now_ns()):
            world.checkpointed(finished.version)
        self._finished.put(Round(finished.version.number, row, finished.reports, finished.version, self._layout,
                                 self.trainer.bound.frozen()))  # fmt: skip
        self._go_on.acquire()
        if self._stop.is_set():
            raise _Left
        return row

    def _row(self, finished: Finished) -> Row:
        job, outcome = self.job, finished.outcome
        row: dict[str, Any] = {
            "round": finished.version.number,
            "attempt": outcome.attempt,
            **{status: outcome.count(status) for status in ("admitted", "refused", "lost", "late")},
            **self._silent(outcome),
            "bytes_down": finished.bytes_down,
            "bytes_up": finished.bytes_up,
            "seconds": round(finished.seconds, 6),
            "virtual_s": finished.at_s,
            **({} if finished.network is None else finished.network.numbers),
            **finished.metrics,
        }
        if job.privacy is not None:
            row["epsilon"] = job.privacy.epsilon(self._sampling_rate, finished.version.number)
            row["clip_norm"] = finished.version.clip_norm
        if outcome.fold.gathered_bytes and isinstance(job.workflow, Rounds):
            row["gathered_bytes"] = outcome.fold.gathered_bytes
            row["kept_model"] = int(job.workflow.shortfall(outcome) is not None)
        return row

    def _silent(self, outcome: Outcome) -> Row:
        uplink = self.job.work.uplink
        return {"silent": sum(r.silent for r in outcome.reports)} if uplink is not None and uplink.triggered else {}

    def simulated(self, course: Course | None = None) -> World:
        """Return the world in which clients are simulated; with a course, as they once behaved."""
        job, standing = self.job, self.standing
        return Simulated(
            job.simulation, self.trainer, self.rehearsal, standing.memory, self._sites(), job.roles,
            self._duration, standing.flights, standing.virtual_ns, course, standing.network, self._edges(),
        )  # fmt: skip

    def _edges(self) -> Mapping[str, Sequence[str]]:
        """Return the clients of each edge, where the workflow has edges."""
        workflow = self.job.workflow
        return workflow.members(self.job.work.data.clients) if isinstance(workflow, Hierarchical) else {}

    def _sites(self) -> Sites | None:
        """Return what scripts are told, where scripts train."""
        job = self.job
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
                     folder.resolve() / "sites", partition, self.standing.keep_scalar)  # fmt: skip


def _run(runner: Runner, work: Coroutine[object, object, None]) -> None:
    """Raises:
    KeyboardInterrupt: the world was interrupted.
    """
    try:
        runner.run(work)
    except CancelledError:
        raise KeyboardInterrupt from None


def _nothing() -> None: ...


def _ended(done: int, planned: int) -> str:
    return f"all {planned} rounds are done" if done >= planned else f"the workflow ended after {done} rounds"


class _Left(Exception):
    """The caller left the loop over rounds."""

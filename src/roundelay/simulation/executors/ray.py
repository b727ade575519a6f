"""A pool of actors on a Ray cluster, through the extra ``ray``: one torch thread each, on whichever nodes have room.

The job's work is one object of the cluster's object store, and so is each broadcast: a node fetches it once, and its
actors read it where it lies. What a client remembers travels with its task. At most two tasks wait at an actor, and at
most ``HELD`` a worker have begun and were not released, so that a round of any size holds as many results.

A task's outcome depends on its key only, so none of this can change a bit of it, and a task that was lost is run again.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roundelay.errors import RoundelayError
from roundelay.layout import Layout
from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.simulation.executors.actor import Actor, Began, Built, Ended
from roundelay.simulation.executors.cluster import join, node_here, package
from roundelay.simulation.executors.line import SHORT_S, withdrawn
from roundelay.simulation.executors.protocol import Result
from roundelay.simulation.executors.shipping import Parcel, fields_of, packed
from roundelay.trainer import TRIES, Work, lost

log = logging.getLogger(__name__)

HELD = 3
"""How many tasks a worker may have begun and not yet been released."""

MOVES = 5
"""How often a task is run again because the node under it was lost, before its client is lost too."""

LOOK_S = 0.1  # how soon an interruption is seen
TELL_S, ROOM_S = 30.0, 600.0
"""When a run says that no node has begun any of its workers, and when it gives up, in real seconds."""


@dataclass(slots=True)
class _Worker:
    actor: Any  # Ray's handle, as the references below
    node: str = ""  # Ray's id of it, once the actor has begun
    sent: deque[tuple[Any, "_Job | None"]] = field(default_factory=deque)  # oldest first; without a job: its beginning


@dataclass(slots=True, eq=False)
class _Job:
    task: Task
    received: Any  # the reference to a parcel
    memory: Memory
    failures: int = 0
    moves: int = 0
    running: bool = False
    cancelled: bool = False
    result: Result | None = None


class RayPool:
    def __init__(self, work: Work, num_workers: int | None, address: str | None, layout: Layout) -> None:
        """Join the cluster at ``address``, "auto" or "host:port"; with "local" or None, start a Ray on this machine,
        which ends with ``close``. A process that has joined a cluster already stays in that one.

        ``num_workers`` defaults to the cluster's CPUs. ``layout`` is the server's: a worker's model must be the same.

        Raises:
            MissingExtra: Ray is not installed.
            ConfigError: no cluster answers, or the work cannot be sent to another process.
        """
        parcel = packed(work)
        self._ray, self._layout = package(), layout
        self._joined = join(self._ray, num_workers, address)
        self._jobs: dict[int, _Job] = {}
        self._line: deque[_Job] = deque()
        self._interrupted, self._closed = threading.Event(), False
        self._num_held, self._stillborn, self._task_s = 0, 0, 0.0
        self._built, self._others = Built.here(), set[str]()
        self._waiting_since, self._told = time.monotonic(), False
        self._workers: list[_Worker] = []
        try:
            self._work = self._ray.put(parcel)
            self._actor = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Actor)
            cores = int(self._ray.cluster_resources().get("CPU", 0))
            for _ in range(num_workers or max(1, cores)):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        if not tasks:
            return
        broadcast = self._ray.put(Parcel.of(received))
        for task in tasks:
            job = self._jobs[task.id] = _Job(task, broadcast, memories.get(task.client, {}))
            self._line.append(job)
        self._feed(None)

    def result(self, task_id: int) -> Result:
        job = self._jobs[task_id]
        while job.result is None:
            if not job.running and self._line[0] is not job:  # all that is held may be asked for later: let it overtake
                self._line.remove(job)
                self._line.appendleft(job)
            self._feed(job)
            self._pump()
        return job.result

    def release(self, task_id: int) -> None:
        job = self._jobs.pop(task_id, None)
        if job is not None and (job.running or job.result is not None):
            self._num_held -= 1

    def cancel(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            job = self._jobs.get(task_id)
            if job is not None and withdrawn(job, self._line.remove):
                self.release(task_id)

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            self._ray.kill(worker.actor)  # a worker holds nothing that is not ours
        self._workers.clear()
        self._jobs.clear()
        self._line.clear()
        if self._joined:
            self._ray.shutdown()

    def _start(self) -> _Worker:
        actor = self._actor.remote()
        worker = _Worker(actor)
        worker.sent.append((actor.begin.remote(self._work, sys.path, node_here, self._layout), None))
        return worker

    def _feed(self, needed: _Job | None) -> None:
        """Hand out tasks from the line while there are workers that take them and room for their results."""
        most = HELD * len(self._workers)
        ready = [worker for worker in self._workers if worker.node]
        while self._line and ready:
            # One task in work, and where tasks are short one that waits for it, while there is enough for everybody.
            at_once = 2 if self._task_s < SHORT_S and len(self._line) >= len(ready) else 1
            worker = min(ready, key=lambda w: len(w.sent))
            if len(worker.sent) >= at_once or (self._num_held >= most and self._line[0] is not needed):
                return
            self._hand_out(worker, self._line.popleft())

    def _hand_out(self, worker: _Worker, job: _Job) -> None:
        task = job.task
        worker.sent.append((worker.actor.run.remote(fields_of(task), job.received, Parcel.of(dict(job.memory))), job))
        job.running = True
        self._num_held += 1

    def _pump(self) -> None:
        """Take in what the oldest call of some worker came to, or find after a moment that none is done."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        oldest = {worker.sent[0][0]: worker for worker in self._workers if worker.sent}
        self._look_for_room()
        done, _ = self._ray.wait(list(oldest), num_returns=1, timeout=LOOK_S)
        for reference in done:
            worker = oldest[reference]
            try:
                came = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._replace(worker, error)
                continue
            _, job = worker.sent.popleft()
            if job is None:
                self._begin(worker, came)
            else:
                self._take(job, came)
            self._feed(None)

    def _begin(self, worker: _Worker, began: Began) -> None:
        if began.failure:
            raise RoundelayError(f"a worker on {began.machine} could not start; has it the job's modules and data, at "
                                 f"the same paths as here?\n{began.failure}")  # fmt: skip
        ours, theirs = self._built, began.built
        if (theirs.torch, theirs.roundelay) != (ours.torch, ours.roundelay):
            raise RoundelayError(
                f"{began.machine} has roundelay {theirs.roundelay} with torch {theirs.torch}, the server "
                f"{ours.roundelay} with {ours.torch}: install the same on every node"
            )
        if theirs.instructions != ours.instructions and began.machine not in self._others:
            self._others.add(began.machine)
            log.warning("%s computes with %s, the server with %s: the last bits of a client depend on where it trains",
                        began.machine, theirs.instructions, ours.instructions)  # fmt: skip
        worker.node, self._stillborn = began.node, 0

    def _take(self, job: _Job, ended: Ended) -> None:
        self._task_s = ended.seconds if not self._task_s else 0.9 * self._task_s + 0.1 * ended.seconds
        outcome = ended.outcome.open()
        if job.cancelled:
            self.release(job.task.id)
        elif isinstance(outcome, str):
            self._failed(job, outcome)
        else:
            job.running, job.result = False, outcome

    def _again(self, job: _Job) -> None:
        """Put a task that was handed out back to the head of the line."""
        if job.cancelled:
            self.release(job.task.id)
        else:
            job.running = False
            self._num_held -= 1
            self._line.appendleft(job)

    def _failed(self, job: _Job, trace: str) -> None:
        job.failures += 1
        if job.failures < TRIES or job.cancelled:
            log.info("client %s failed in round %d, its task is run again\n%s", job.task.client, job.task.round, trace)
            self._again(job)
        else:
            job.running, job.result = False, lost(job.task, trace)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """A worker is gone, or only its call failed. Hand its tasks on, and start another in its place."""
        (_, job), *waiting = worker.sent
        if isinstance(error, self._ray.exceptions.RayTaskError):
            worker.sent.popleft()
            if job is None:
                raise RoundelayError(f"a worker could not start; is roundelay on every node?\n{error}") from error
            self._failed(job, str(error))
            return
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # one that cannot be reached may still be at work
        by_itself = isinstance(error, self._ray.exceptions.ActorDiedError) and self._lives(worker.node)
        log.warning("a worker %s with %d tasks; another takes over: %s", "died" if by_itself else "was lost",
                    sum(job is not None for _, job in worker.sent), error)  # fmt: skip
        for _, other in reversed(waiting):
            self._again(other)
        if job is None:
            self._stillborn += 1
            if self._stillborn > MOVES:
                raise RoundelayError(f"{self._stillborn} workers in a row were lost before they began: {error}")
        elif by_itself:
            self._failed(job, str(error))
        else:
            self._moved(job, str(error))
        self._workers.append(self._start())

    def _moved(self, job: _Job, why: str) -> None:
        """A worker was lost with its node, or cannot be reached: that is not the fault of the task in work there."""
        job.moves += 1
        if job.moves < MOVES or job.cancelled:
            self._again(job)
        else:
            reason = f"client {job.task.client!r}: {MOVES} nodes were lost under its task"
            job.running, job.result = False, Lost(job.task, reason, why)

    def _lives(self, node: str) -> bool:
        return any(found["NodeID"] == node and found["Alive"] for found in self._ray.nodes())

    def _look_for_room(self) -> None:
        """Raises:
        RoundelayError: no node has had room for any worker for too long.
        """
        now = time.monotonic()
        if any(worker.node for worker in self._workers):
            self._waiting_since, self._told = now, False
        waited = now - self._waiting_since
        if waited > TELL_S and not self._told:
            self._told = True
            log.warning("no node of the Ray cluster has begun any of the %d workers for %.0f s; what it has and who "
                        "uses it is shown by: ray status", len(self._workers), waited)  # fmt: skip
        if waited > ROOM_S:
            raise RoundelayError(
                f"no node of the Ray cluster has had a free CPU for any of the {len(self._workers)} workers for "
                f"{ROOM_S:.0f} s; free some (ray status shows who has them), or ask for fewer workers"
            )

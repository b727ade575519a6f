"""A pool of processes that lives as long as the job: one torch thread each, vectors in shared memory, no pickled
tensors.

Tasks wait in one line, in the order of submission, but for the longest of those that are all needed: these go first,
as many as may wait for their turn. Short ones are handed out in batches that take some milliseconds, long ones one by
one, and batches shrink towards the end of the line, so that no worker sits on work that another could do. None of this
can change a bit of the result: a task's outcome depends on its key only.
"""

import logging
import math
import os
import pickle
import selectors
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from roundelay.errors import RoundelayError
from roundelay.hosting.forkserver import context, main_hidden
from roundelay.layout import Layout
from roundelay.messages import Lost, Memory, Payload, Task, Update
from roundelay.simulation.executors.arena import MAX_VIEWS, Arena, Packed, Region
from roundelay.simulation.executors.protocol import Result
from roundelay.simulation.executors.shipping import pack
from roundelay.simulation.executors.worker import BlockNames, Done, Names, Order, Ready, main, tensors_of
from roundelay.trainer import TRIES, Answer, Evaluated, Work, lost

log = logging.getLogger(__name__)

# torch's first optimiser imports torch._dynamo, which takes seconds: once in the forkserver, not once in every worker.
PRELOAD = ["torch._dynamo", "roundelay.simulation.executors.worker"]
BATCH_S = 0.005  # about how long a batch takes: messages cost tenths of a millisecond
MAX_BATCH = 32
EARLY_BYTES = 64 * 2**20  # about how much memory may hold results of tasks that were done before their turn
SHORT_S = 0.025  # below, a task that waits behind another delays nobody noticeably


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str
    batches: deque[list[int]] = field(default_factory=deque)  # handed out, oldest first: the first is in work

    @property
    def num_tasks(self) -> int:
        return sum(map(len, self.batches))


@dataclass(slots=True)
class _Broadcast:
    region: Region
    message: bytes
    num_tasks: int


@dataclass(slots=True)
class _Job:
    task: Task
    broadcast: _Broadcast
    memory: Memory
    size: int = 1  # in examples, where that is known
    early: bool = False  # it stands in the line before others that are asked for sooner
    slot: Region | None = None
    failures: int = 0
    running: bool = False
    cancelled: bool = False
    alone: bool = False  # it was in a batch whose worker died: handed out by itself from now on
    block: Sequence[Task] = ()  # those that are trained side by side under the id of ``task``, the first of them
    result: Result | list[Answer] | None = None


_Place = tuple[Payload, dict[str, Tensor]]


class Processes:
    def __init__(self, work: Work, devices: Sequence[str], result_bytes: int, layout: Layout) -> None:
        """Start one worker per entry of ``devices``. ``result_bytes`` is the size that a task's result is expected to
        have; ``layout`` is the server's, and what a worker builds must be the same model.

        Raises:
            ConfigError: the work cannot be sent to another process.
        """
        self._arena = Arena()
        try:
            self._shipment = pack(work, self._arena)
        except BaseException:
            self._arena.close()
            raise
        self._data, self._result_bytes, self._layout = work.data, result_bytes, layout
        self._context = context(PRELOAD)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._jobs: dict[int, _Job] = {}
        self._line: deque[int] = deque()
        self._slots_free: list[Region] = []
        self._num_slots, self._num_early, self._serial, self._interrupted, self._closed = 0, 0, 0, False, False
        self._task_s, self._task_size = math.inf, 1.0  # of tasks of late, a running mean
        self._places: dict[tuple[int, bytes], _Place | list[_Place]] = {}  # views of slots by what is there
        self._workers = [self._start(device) for device in devices]

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        if not tasks:
            return
        broadcast = self._placed(received, len(tasks))
        jobs = [_Job(task, broadcast, memories.get(task.client, {}), self._size(task)) for task in tasks]
        self._jobs |= {job.task.id: job for job in jobs}
        self._line.extend(job.task.id for job in (self._longest_first(jobs) if all_needed else jobs))
        self._feed()

    def submit_block(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> None:
        remembered = {f"{row} {name}": value for row, task in enumerate(tasks)
                      for name, value in memories.get(task.client, {}).items()}  # fmt: skip
        self._jobs[tasks[0].id] = _Job(tasks[0], self._placed(received, 1), remembered, block=tasks)
        self._line.append(tasks[0].id)
        self._feed()

    def _placed(self, received: Payload, num_tasks: int) -> _Broadcast:
        self._pump(0)  # what has come in since may give memory back
        names = Names.of(received, {})
        region = self._arena.allocate(names.packed.size)
        self._arena.write(region, tensors_of(received, {}))
        self._serial += 1
        return _Broadcast(region, pickle.dumps((names, region, self._serial), protocol=5), num_tasks)

    def result(self, task_id: int) -> Result:
        found = self._finished(task_id)
        assert not isinstance(found, list)
        return found

    def block_result(self, task_id: int) -> list[Answer] | Lost:
        found = self._finished(task_id)
        assert isinstance(found, list | Lost)
        return found

    def _finished(self, task_id: int) -> Result | list[Answer]:
        job = self._jobs[task_id]
        while job.result is None:
            self._feed()  # slots may have been given back since
            if not job.running and not self._slots_free and self._num_slots >= self._max_slots:
                # All slots hold results that are asked for later than this one, which has not begun: let it overtake.
                self._line.remove(task_id)
                self._line.appendleft(task_id)
                self._slots_free.append(self._new_slot())
                self._feed()
            self._pump(None)
        return job.result

    def release(self, task_id: int) -> None:
        job = self._jobs.pop(task_id, None)
        if job is None:
            return
        if job.slot is not None:
            self._slots_free.append(job.slot)
        self._num_early -= job.early
        job.broadcast.num_tasks -= 1
        if job.broadcast.num_tasks == 0:
            self._arena.free(job.broadcast.region)

    def cancel(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            job = self._jobs.get(task_id)
            if job is None:
                continue
            if job.running:
                job.cancelled = True  # the slot stays the worker's until it reports
            else:
                if job.result is None:
                    self._line.remove(task_id)
                self.release(task_id)

    def interrupt(self) -> None:
        self._interrupted = True
        if not self._closed:
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for worker in self._workers:
            worker.process.kill()  # a worker holds nothing that is not ours
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._jobs.clear()
        self._places.clear()
        self._arena.close()

    @property
    def process_ids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    @property
    def _max_slots(self) -> int:
        return 3 * len(self._workers) * self._batch_size + self._num_early

    @property
    def _batch_size(self) -> int:
        return max(1, min(MAX_BATCH, int(BATCH_S / self._task_s)))

    def _size(self, task: Task) -> int:
        return self._data.known_size(task.client) or 1

    def _longest_first(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Return the jobs in the order in which they begin: first the longest, by their examples and as many as
        ``EARLY_BYTES`` has results of, but one for each worker anyway; then the others in their order.

        A long one that begins last would have everybody wait for it. But results are folded in the order in which they
        are asked for, and those that are there before lie in memory until then.
        """
        count = max(len(self._workers), EARLY_BYTES // self._result_bytes)
        longest = sorted(range(len(jobs)), key=lambda place: -jobs[place].size)[:count]  # those of one size stay
        chosen = set(longest)
        order = [*longest, *(place for place in range(len(jobs)) if place not in chosen)]
        last = len(jobs)
        for place in reversed(order):  # early is whoever stands before one that is asked for sooner
            jobs[place].early = place > last
            last = min(last, place)
        self._num_early += sum(job.early for job in jobs)
        return [jobs[place] for place in order]

    def _new_slot(self) -> Region:
        self._num_slots += 1
        return self._arena.allocate(self._result_bytes)

    def _start(self, device: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=main,
            args=(theirs, self._arena, self._shipment, device, self._layout),
            name="roundelay-worker",
            daemon=True,
        )
        with main_hidden():
            process.start()
        theirs.close()
        worker = _Worker(process, ours, device)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _feed(self) -> None:
        """Hand out batches from the line while there are workers that take them and slots for their results."""
        while self._line:
            at_once = 2 if self._may_wait() else 1
            worker = min(self._workers, key=lambda w: (len(w.batches), w.num_tasks))
            if len(worker.batches) >= at_once:
                return
            share = max(1, int(0.2 * self._batch_size), len(self._line) // (2 * len(self._workers)))
            batch = self._next_batch(min(self._batch_size, share))
            if not batch:
                return
            self._hand_out(worker, batch)

    def _may_wait(self) -> bool:
        """Whether what is next may wait behind a batch that is in work, so that its worker need not wait for us: there
        is enough for everybody, and what is not short is short beside what is left.
        """
        if self._task_s < SHORT_S:
            return len(self._line) >= len(self._workers)
        left = sum(self._jobs[task_id].size for task_id in self._line)
        return 2 * len(self._workers) * self._jobs[self._line[0]].size <= left

    def _next_batch(self, size: int) -> list[_Job]:
        """Take up to ``size`` tasks off the line; fewer where they are longer than those of late, or slots run out."""
        batch: list[_Job] = []
        room = size * self._task_size
        while self._line and len(batch) < size and room > 0:
            job = self._jobs[self._line[0]]
            if batch and (job.alone or job.size > room):
                break
            room -= job.size
            if job.slot is None and (job.task.kind != "evaluate" or job.memory):
                if not self._slots_free:
                    if self._num_slots >= self._max_slots:
                        break
                    self._slots_free.append(self._new_slot())
                job.slot = self._slots_free.pop()
            batch.append(job)
            self._line.popleft()
            if job.alone:
                break
        return batch

    def _hand_out(self, worker: _Worker, batch: Sequence[_Job]) -> None:
        orders = []
        for job in batch:
            memory = None
            if job.memory and job.slot is not None:
                tensors = list(job.memory.values())
                needed = Packed.of(tensors).size
                if needed > job.slot.size:  # memories of many small tensors, or that grow from task to task
                    self._arena.free(job.slot)
                    job.slot = self._arena.allocate(needed)
                memory = (tuple(job.memory), self._arena.write(job.slot, tensors))
            job.running = True
            task = job.task
            block = tuple(map(_fields, job.block))
            orders.append(Order(_fields(task), job.broadcast.message, job.slot, memory, block))
        worker.batches.append([job.task.id for job in batch])
        # Where the worker has died, its closed connection tells us so in the next pump, which hands its tasks on.
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send_bytes(pickle.dumps(orders, protocol=5))

    def _pump(self, timeout: float | None) -> None:
        """Take in what workers report; with no timeout, wait for at least one report."""
        if self._interrupted:
            raise KeyboardInterrupt
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                raise KeyboardInterrupt
            worker: _Worker = key.data
            try:
                message = pickle.loads(worker.connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                self._replace(worker)
                continue
            if isinstance(message, Ready):
                if message.failure:
                    raise RoundelayError(f"a worker process could not start:\n{message.failure}")
            else:
                worker.batches.popleft()
                for done in message:
                    self._take(done)
        self._feed()

    def _take(self, done: Done) -> None:
        job = self._jobs[done.task_id]
        job.running = False
        if math.isinf(self._task_s):
            self._task_s, self._task_size = done.seconds, float(job.size)
        self._task_s += 0.1 * (done.seconds - self._task_s)
        self._task_size += 0.1 * (job.size - self._task_size)
        if job.cancelled:
            self.release(done.task_id)
        elif done.failure:
            self._failed(job, done.failure)
        elif done.rows is not None:
            rows = {name: torch.from_numpy(found) for name, found in done.rows.items()}
            job.result = Evaluated(job.task, done.num_examples, done.metrics or {}, rows)
        else:
            job.result = self._answer(job, done)

    def _answer(self, job: _Job, done: Done) -> Answer | list[Answer]:
        assert job.slot is not None
        place = (job.slot.offset, done.names)
        found = None if done.inline is not None else self._places.get(place)
        if found is None:
            names: Names | BlockNames = pickle.loads(done.names)
            if done.inline is not None:
                found = names.arrange([torch.from_numpy(array) for array in done.inline])
            else:
                if len(self._places) >= MAX_VIEWS:
                    self._places.clear()
                found = self._places[place] = names.arrange(self._arena.read(job.slot, names.packed))
        if isinstance(found, list):
            return [Answer(Update(task, payload, *said), memory)
                    for task, said, (payload, memory) in zip(job.block, done.block, found, strict=True)]  # fmt: skip
        payload, memory = found
        metrics = done.metrics or {}
        update = Update(job.task, payload, done.num_examples, done.group, metrics, done.silent, done.fresh)
        return Answer(update, memory)

    def _failed(self, job: _Job, trace: str) -> None:
        job.failures += 1
        if job.failures < TRIES:
            log.info("client %s failed in round %d, its task is run again\n%s", job.task.client, job.task.round, trace)
            self._line.appendleft(job.task.id)
        else:
            job.result = lost(job.task, trace)

    def _replace(self, worker: _Worker) -> None:
        """A worker's connection is closed: it has died. Hand its tasks on, and start another in its place."""
        self._selector.unregister(worker.connection)
        worker.connection.close()
        worker.process.join()
        code = worker.process.exitcode
        log.warning("a worker process died (exit code %s) with %d tasks; another takes over", code, worker.num_tasks)
        in_work, *waiting = worker.batches or [[]]
        for task_id in reversed([task_id for batch in waiting for task_id in batch]):
            self._jobs[task_id].running = False
            self._line.appendleft(task_id)
        for task_id in reversed(in_work):
            job = self._jobs[task_id]
            job.running, job.alone = False, True
            if job.cancelled:
                self.release(task_id)
            elif len(in_work) == 1:
                self._failed(job, f"the worker process died with exit code {code} (negative: killed by that signal)")
            else:  # which task of the batch it was will show when each runs alone
                self._line.appendleft(task_id)
        self._workers[self._workers.index(worker)] = self._start(worker.device)


def _fields(task: Task) -> tuple[Any, ...]:  # Any: fields of several types
    return task.id, task.client, task.round, task.attempt, task.kind, task.config

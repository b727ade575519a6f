"""A pool of processes that lives as long as the job: one torch thread each, vectors in shared memory, no pickled
tensors.

Tasks wait in one line (``line.py``) until a worker takes them, in batches that shrink towards its end, so that nobody
sits on work that another could do. A worker that dies is replaced, and its tasks run again. None of this can change a
bit of the result: a task's outcome depends on its key only.
"""

import logging
import os
import pickle
import selectors
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from roundelay.errors import RoundelayError
from roundelay.hosting.forkserver import context, main_hidden
from roundelay.layout import Layout
from roundelay.messages import Lost, Memory, Payload, Task, Update
from roundelay.simulation.executors.arena import MAX_VIEWS, Arena, Packed
from roundelay.simulation.executors.line import Broadcast, Job, Line, withdrawn
from roundelay.simulation.executors.protocol import Result
from roundelay.simulation.executors.shipping import fields_of, pack
from roundelay.simulation.executors.worker import BlockNames, Done, Names, Order, Ready, main, tensors_of
from roundelay.trainer import TRIES, Answer, Evaluated, Work, lost

log = logging.getLogger(__name__)

# torch's first optimiser imports torch._dynamo, which takes seconds: once in the forkserver, not once in every worker.
PRELOAD = ["torch._dynamo", "roundelay.simulation.executors.worker"]


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str
    batches: deque[list[int]] = field(default_factory=deque)  # handed out, oldest first: the first is in work

    @property
    def num_tasks(self) -> int:
        return sum(map(len, self.batches))


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
        self._data, self._layout = work.data, layout
        self._line = Line(self._arena, result_bytes, len(devices))
        self._context = context(PRELOAD)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._jobs: dict[int, Job] = {}
        self._serial, self._interrupted, self._closed = 0, False, False
        self._places: dict[tuple[int, bytes], _Place | list[_Place]] = {}  # views of slots by what is there
        self._workers = [self._start(device) for device in devices]

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        if not tasks:
            return
        broadcast = self._placed(received, len(tasks))
        jobs = [Job(task, broadcast, memories.get(task.client, {}), self._data.known_size(task.client) or 1)
                for task in tasks]  # fmt: skip
        self._jobs |= {job.task.id: job for job in jobs}
        self._line.extend(jobs, all_needed=all_needed)
        self._feed()

    def submit_block(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> None:
        remembered = {f"{row} {name}": value for row, task in enumerate(tasks)
                      for name, value in memories.get(task.client, {}).items()}  # fmt: skip
        job = self._jobs[tasks[0].id] = Job(tasks[0], self._placed(received, 1), remembered, block=tasks)
        self._line.extend([job])
        self._feed()

    def _placed(self, received: Payload, num_tasks: int) -> Broadcast:
        self._pump(0)  # what has come in since may give memory back
        names = Names.of(received, {})
        region = self._arena.allocate(names.packed.size)
        self._arena.write(region, tensors_of(received, {}))
        self._serial += 1
        return Broadcast(region, pickle.dumps((names, region, self._serial), protocol=5), num_tasks)

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
            if not job.running and self._line.is_held_up:
                # All slots hold results that are asked for later than this one, which has not begun: let it overtake.
                self._line.overtake(job)
                self._feed()
            self._pump(None)
        return job.result

    def release(self, task_id: int) -> None:
        job = self._jobs.pop(task_id, None)
        if job is None:
            return
        self._line.release(job)
        job.broadcast.num_tasks -= 1
        if job.broadcast.num_tasks == 0:
            self._arena.free(job.broadcast.region)

    def cancel(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            job = self._jobs.get(task_id)
            if job is not None and withdrawn(job, self._line.remove):
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
            at_once = 2 if self._line.may_wait else 1
            worker = min(self._workers, key=lambda w: (len(w.batches), w.num_tasks))
            if len(worker.batches) >= at_once:
                return
            share = max(1, int(0.2 * self._line.batch_size), len(self._line) // (2 * len(self._workers)))
            batch = self._line.next_batch(min(self._line.batch_size, share))
            if not batch:
                return
            self._hand_out(worker, batch)

    def _hand_out(self, worker: _Worker, batch: Sequence[Job]) -> None:
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
            block = tuple(map(fields_of, job.block))
            orders.append(Order(fields_of(task), job.broadcast.message, job.slot, memory, block))
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
        self._line.took(job, done.seconds)
        if job.cancelled:
            self.release(done.task_id)
        elif done.failure:
            self._failed(job, done.failure)
        elif done.rows is not None:
            rows = {name: torch.from_numpy(found) for name, found in done.rows.items()}
            job.result = Evaluated(job.task, done.num_examples, done.metrics or {}, rows)
        else:
            job.result = self._answer(job, done)

    def _answer(self, job: Job, done: Done) -> Answer | list[Answer]:
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

    def _failed(self, job: Job, trace: str) -> None:
        job.failures += 1
        if job.failures < TRIES:
            log.info("client %s failed in round %d, its task is run again\n%s", job.task.client, job.task.round, trace)
            self._line.again(job)
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
            self._line.again(self._jobs[task_id])
        for task_id in reversed(in_work):
            job = self._jobs[task_id]
            job.running, job.alone = False, True
            if job.cancelled:
                self.release(task_id)
            elif len(in_work) == 1:
                self._failed(job, f"the worker process died with exit code {code} (negative: killed by that signal)")
            else:  # which task of the batch it was will show when each runs alone
                self._line.again(job)
        self._workers[self._workers.index(worker)] = self._start(worker.device)

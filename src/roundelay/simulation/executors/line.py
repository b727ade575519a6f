"""Who is next in the pool of processes, and how many tasks a worker gets at once.

Tasks wait in one line, in the order of submission, but for the longest of those that are all needed: these go first,
as many as may wait for their turn. Short ones leave it in batches that take some milliseconds, long ones one by one.
Who is to bring vectors back takes a slot along, and while all slots are held, the line stands.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from roundelay.messages import Memory, Task
from roundelay.simulation.executors.arena import Arena, Region
from roundelay.simulation.executors.protocol import Result
from roundelay.trainer import Answer

BATCH_S = 0.005  # about how long a batch takes: messages cost tenths of a millisecond
MAX_BATCH = 32
EARLY_BYTES = 64 * 2**20  # about how much memory may hold results of tasks that were done before their turn
SHORT_S = 0.025  # below, a worker that waits for its next task loses a noticeable share of its time


@dataclass(slots=True)
class Broadcast:
    region: Region
    message: bytes
    num_tasks: int


@dataclass(slots=True, eq=False)
class Job:
    """A task from its submission until its result is released."""

    task: Task
    broadcast: Broadcast
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


class Line:
    """The jobs that wait for a worker, and the slots that are free for their results."""

    def __init__(self, arena: Arena, slot_bytes: int, num_workers: int) -> None:
        self._arena, self._slot_bytes, self._num_workers = arena, slot_bytes, num_workers
        self._jobs: deque[Job] = deque()
        self._slots_free: list[Region] = []
        self._num_slots = self._num_early = 0
        self.task_s, self._task_size = math.inf, 1.0  # of tasks of late, a running mean

    def __len__(self) -> int:
        return len(self._jobs)

    def extend(self, jobs: Sequence[Job], *, all_needed: bool = False) -> None:
        """Let jobs stand at the end. Those that are ``all_needed`` are asked for in their order, and may change it."""
        self._jobs.extend(self._longest_first(jobs) if all_needed else jobs)

    def again(self, job: Job) -> None:
        """Let a job that was handed out be the next."""
        self._jobs.appendleft(job)

    def remove(self, job: Job) -> None:
        self._jobs.remove(job)

    def overtake(self, job: Job) -> None:
        """Let a waiting job be the next, with a slot beyond those that there should be."""
        self._jobs.remove(job)
        self._jobs.appendleft(job)
        self._slots_free.append(self._new_slot())

    def release(self, job: Job) -> None:
        """Take back what a job held."""
        if job.slot is not None:
            self._slots_free.append(job.slot)
        self._num_early -= job.early

    def took(self, job: Job, seconds: float) -> None:
        """Hear how long a job was in work."""
        if math.isinf(self.task_s):
            self.task_s, self._task_size = seconds, float(job.size)
        self.task_s += 0.1 * (seconds - self.task_s)
        self._task_size += 0.1 * (job.size - self._task_size)

    @property
    def is_held_up(self) -> bool:
        """Whether every slot that there should be is held."""
        return not self._slots_free and self._num_slots >= 3 * self._num_workers * self.batch_size + self._num_early

    @property
    def may_wait(self) -> bool:
        """Whether who is next may wait behind a batch that is in work, so that its worker need not wait for us: tasks
        are short, and there is enough for everybody.
        """
        return self.task_s < SHORT_S and len(self._jobs) >= self._num_workers

    @property
    def batch_size(self) -> int:
        return max(1, min(MAX_BATCH, int(BATCH_S / self.task_s)))

    def next_batch(self, size: int) -> list[Job]:
        """Take up to ``size`` jobs off the line; fewer where they are longer than those of late, or slots run out."""
        batch: list[Job] = []
        room = size * self._task_size
        while self._jobs and len(batch) < size and room > 0:
            job = self._jobs[0]
            if batch and (job.alone or job.size > room):
                break
            room -= job.size
            if job.slot is None and (job.task.kind != "evaluate" or job.memory):
                if self.is_held_up:
                    break
                job.slot = self._slots_free.pop() if self._slots_free else self._new_slot()
            batch.append(job)
            self._jobs.popleft()
            if job.alone:
                break
        return batch

    def _longest_first(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs in the order in which they begin: first the longest, by their examples and as many as
        ``EARLY_BYTES`` has results of, but one for each worker anyway; then the others in their order.

        A long one that begins last would have everybody wait for it. But results are folded in the order in which they
        are asked for, and those that are there before lie in memory until then.
        """
        count = max(self._num_workers, EARLY_BYTES // self._slot_bytes)
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
        return self._arena.allocate(self._slot_bytes)


# ---- of any pool ----------------------------------------------------------------------------------------------------


class Pooled(Protocol):
    """What any pool knows of a task that it was given."""

    running: bool
    cancelled: bool

    @property
    def result(self) -> object: ...


P = TypeVar("P", bound=Pooled)


def withdrawn(job: P, leave: Callable[[P], None]) -> bool:
    """Withdraw a task that nobody needs any more, by ``leave`` if it is still in line; return whether it can be
    released at once. One in work is marked: what it holds stays its worker's until that reports.
    """
    if job.running:
        job.cancelled = True
        return False
    if job.result is None:
        leave(job)
    return True

"""Answers as they lie in the journal: frames in files, read when they are needed and never before."""

import logging
import mmap
from dataclasses import dataclass, field

import torch

from roundelay import wire
from roundelay.client.exchange import Answered
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.protocol import MAX_HEADER_BYTES
from roundelay.errors import WireError
from roundelay.guard import Expected
from roundelay.header import ALIGNMENT, PREFIX, Limits
from roundelay.layout import HALVES
from roundelay.messages import Task, Update
from roundelay.trainer import Answer, Work

log = logging.getLogger(__name__)

NUMBERS_ONLY = ("evaluate", "load")
"""Tasks that are answered without a model."""

CLAIM = "task"
"""Under this name an answer's memory holds the task's id: what the client would remember stays on its device, and who
commits the memory commits the claim to it.
"""


MAX_ROWS_BYTES = 32 * 2**20
"""What a client's rows of one measure of whole sets may take."""


def limits_of(expected: Expected, work: Work) -> Limits:
    """Return what an answer's frame may cost: the vectors whose lengths the server knows, and their names. An encoding
    may be longer than what it encodes; values that have none come as they are, to be refused. Evaluations hold rows.
    What is shown beside training comes as it is, one vector for each dtype of the model.
    """
    num_tensors = len(expected.vectors) + len(HALVES) + 2 + len(work.measures.whole)
    uplink = work.uplink
    beyond = len(work.measures.whole) * MAX_ROWS_BYTES
    if uplink is not None:
        size = expected.dtype.itemsize
        beyond += sum(max(0, uplink.codec.max_bytes(n) - n * size) for n in expected.vectors.values())
    return Limits(MAX_HEADER_BYTES, expected.num_bytes + beyond + num_tensors * ALIGNMENT, num_tensors)


def max_answer_bytes(limits: Limits) -> int:
    """Return how many bytes a frame within these limits has at most."""
    return PREFIX.size + limits.header_bytes + limits.body_bytes + wire.DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Answers:
    journal: Journal
    limits: Limits
    _weighted: dict[bool, str] = field(default_factory=dict)  # who told its number of examples first, and who did not

    def read(self, task: Task) -> Answered:
        """Return what the client of a task has answered. The tensors are the file's own pages, which the system may
        take back and read again: they are no memory of the server's.

        Raises:
            WireError: it is no answer, or one to another task.
            JournalError: it is not there.
        """
        received = self.journal.update(task.id)
        assert received is not None, "only tasks that were received are read"
        if not received.size:  # of nothing there are no pages
            raise WireError("it is empty")
        with self.journal.blobs.open(received.digest) as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # the digest of the answer that came is the blob's name, and covers the frame's own
        frame = wire.decode(memoryview(pages), self.limits, verified=True)
        if frame.kind != "answer":
            raise WireError(f"expected a frame of kind 'answer', got {frame.kind!r}")
        answered = Answered.read(frame)
        if answered.task_id != task.id:
            raise WireError(f"it answers task {answered.task_id}, not {task.id}")
        if (answered.payload is None) != (task.kind in NUMBERS_ONLY):
            raise WireError(
                f"a task of kind {task.kind!r} was answered with{'out' if not answered.payload else ''} a model"
            )
        return answered

    def update(self, task: Task) -> Answer:
        """Return the update that answers a training task, and the claim to what its client would remember."""
        answered = self.read(task)
        assert answered.payload is not None
        self._note_weight(answered.weighted, task.client)
        update = Update(task, answered.payload, answered.num_examples, answered.group, answered.metrics,
                        answered.silent, answered.fresh)  # fmt: skip
        return Answer(update, {CLAIM: torch.tensor([task.id])})

    def _note_weight(self, weighted: bool, client: str) -> None:
        if weighted not in self._weighted:
            self._weighted[weighted] = client
            if len(self._weighted) == 2:
                log.warning("client %r sends num_examples and client %r does not, which then counts as one: send it "
                            "from every client, or from none", self._weighted[True], self._weighted[False])  # fmt: skip


class Shelf:
    """Updates that wait for their turn where they lie, on disk: a ``Window`` that holds nothing but their tasks."""

    def __init__(self, answers: Answers) -> None:
        self._answers, self._tasks = answers, dict[int, Task]()

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._tasks

    def put(self, update: Update) -> None:
        self._tasks[update.task.id] = update.task

    def take(self, task_id: int) -> Update:
        return self._answers.update(self._tasks.pop(task_id)).update

    def close(self) -> None: ...

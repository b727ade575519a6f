"""One round's answers: who belongs to the round is decided as they arrive, and they are folded by client id.

Answers come in an order that the network made. An answer whose turn it is goes straight into the fold; an earlier one
waits in a window, which moves to a file beyond a budget. So the server's memory does not grow with the cohort, and the
same members give the same bits in whatever order they came.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Protocol

import torch
from torch import Tensor

from roundelay.errors import WireError
from roundelay.fold import Fold, Folding, Weighting
from roundelay.guard import Expected, Guard, Reason
from roundelay.messages import Lost, Memory, Payload, Task, Update
from roundelay.metrics import Rows, reported
from roundelay.stages.decoding import Decoded, Decoder, Heard
from roundelay.stages.downlink import Told
from roundelay.trainer import Answer

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class ClientReport:
    """How one client's part in a round ended. ``status`` is admitted, silent (it has answered that it sends nothing,
    and is not folded), refused, lost or late; busy where it was drawn and left out, as it was not ready; or evaluated
    where it was asked for metrics on its own data. ``reason`` says why. Who is folded without having sent anything is
    admitted, and ``silent``. ``rows`` are those of measures of whole sets, until they are put together.
    """

    client: str
    status: str
    reason: str = ""
    num_examples: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    traceback: str = ""
    attempt: int = 0
    silent: bool = False
    rows: Rows = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A closed round: the fold of its members, what every client's part came to (by client id), and the bytes that
    arrived. ``heard`` is what was reconstructed of its members, ``told`` what they decoded of the broadcast, where
    that is kept; ``depth`` is how many of the model's last steps are.
    """

    number: int
    attempt: int
    fold: Folding
    reports: tuple[ClientReport, ...]
    memories: Mapping[str, Memory]
    bytes_down: int
    bytes_up: int
    heard: Heard = field(default_factory=dict)
    told: Told | None = None
    depth: int = 0

    def count(self, status: str) -> int:
        return sum(report.status == status for report in self.reports)

    @property
    def is_quiet(self) -> bool:
        """Whether clients have answered and none had anything to send: the model stays, and the round counts."""
        return not self.fold.count and self.count("silent") > 0


class Intake:
    def __init__(
        self,
        tasks: Sequence[Task],
        sent: Payload,
        *,
        uplink: Weighting,
        expected: Expected,
        guard: Guard,
        goal: int | None,
        release: Callable[[int], None],
        window: "Window | None" = None,
        fold: Folding | None = None,
        decoder: Decoder | None = None,
        bytes_each: int | None = None,
        opened: Callable[[Payload], Payload] = lambda payload: payload,
    ) -> None:
        """``release(task id)`` is called once the tensors of an answer are no longer needed; early ones wait in
        ``window``; ``fold`` is the streaming mean unless it is given. With a ``decoder`` answers come encoded, and wait
        so. ``bytes_each`` travelled to every client: those of ``sent`` unless it is given. ``opened`` makes of values
        that were admitted what is folded.
        """
        self._tasks = {task.id: task for task in sorted(tasks, key=lambda task: (task.client, task.id))}
        self._order = list(self._tasks)
        self._next = 0  # position in the order up to which everything is folded or will never come
        self._expected, self._guard, self._release = expected, guard, release
        self._goal = len(self._order) if goal is None else goal
        self._fold: Folding = Fold(uplink) if fold is None else fold
        self._window = InMemory(WINDOW_BYTES) if window is None else window
        self._reports: dict[int, ClientReport] = {}
        self._memories: dict[str, Memory] = {}
        self._opened = opened
        self._decoder, self._heard = decoder, dict[str, Mapping[str, Tensor]]()
        self._bytes_down = (sent.num_bytes if bytes_each is None else bytes_each) * len(self._order)
        self._bytes_up = 0
        self._num_admitted = 0
        self._number, self._attempt = next(((task.round, task.attempt) for task in tasks), (0, 0))  # of nobody: none

    @property
    def closed(self) -> bool:
        """True once the goal is reached or nobody is left to answer."""
        return self._num_admitted >= self._goal or len(self._reports) == len(self._order)

    def arrive(self, answer: Answer | Lost) -> None:
        """Take one answer in. What the guard refuses, or nobody asked for, is reported and touches nothing else."""
        if isinstance(answer, Lost):
            self._release(answer.task.id)
            self._settle(
                answer.task.id, ClientReport(answer.task.client, "lost", answer.reason, traceback=answer.traceback)
            )
            return
        update = answer.update
        self._bytes_up += update.payload.num_bytes if self._decoder is None else self._decoder.num_bytes(update)
        asked = self._tasks.get(update.task.id)
        if asked is None:
            log.warning("client %r answered task %d of round %d, which is not open here",
                        update.task.client, update.task.id, update.task.round,
                        extra={"client": update.task.client, "task": update.task.id})  # fmt: skip
            self._release(update.task.id)
            return
        try:
            decoded = self._decoded(update)
        except WireError as error:
            what = f"client {asked.client!r} sent what cannot be decoded: {error}"
            self.refuse(asked.id, f"{Reason.MALFORMED.value}: {what}")
            return
        refusal = self._guard.check(decoded.update, asked, self._expected, answered=asked.id in self._reports)
        if refusal is not None:
            self.refuse(asked.id, f"{refusal.reason.value}: {refusal.message}")
            return
        if answer.memory:
            self._memories[asked.client] = {name: value.clone() for name, value in answer.memory.items()}
        if decoded.heard is not None:
            self._heard[asked.client] = decoded.heard
        if not decoded.excluded:
            self._take(asked.id, update, decoded)
        self._release(asked.id)
        report = ClientReport(
            asked.client, "silent" if decoded.excluded else "admitted", "", update.num_examples,
            reported(update.metrics), silent=update.silent,
        )  # fmt: skip
        self._settle(asked.id, report)

    def _decoded(self, update: Update) -> Decoded:
        return Decoded(update) if self._decoder is None else self._decoder.decode(update)

    def _take(self, task_id: int, update: Update, decoded: Decoded) -> None:
        """Fold an update whose turn it is; any other waits as it came, and is decoded once more."""
        self._num_admitted += 1
        if self._order[self._next] == task_id:
            self._add(decoded.update)
            self._next += 1
        else:
            self._window.put(update)

    def refuse(self, task_id: int, reason: str) -> None:
        """Report an answer that is none; the first report of a task stands."""
        self._release(task_id)
        if task_id not in self._reports:
            self._settle(task_id, ClientReport(self._tasks[task_id].client, "refused", reason))

    def report(self, task_id: int) -> ClientReport | None:
        """Return what a task has come to so far."""
        return self._reports.get(task_id)

    def close(self) -> Outcome:
        """Decide the membership: whoever has not answered is late. Then fold what still waits, in order."""
        for task in self._tasks.values():
            if task.id not in self._reports:
                self._reports[task.id] = ClientReport(task.client, "late", "the round closed before its answer arrived")
        self._fold_in_turn()
        self._window.close()
        reports = tuple(self._reports[i] for i in self._order)
        return Outcome(
            self._number, self._attempt, self._fold, reports, self._memories, self._bytes_down, self._bytes_up,
            self._heard,
        )  # fmt: skip

    @property
    def members(self) -> list[int]:
        """The tasks whose answers count, in the order of folding: those that were admitted, and notices of silence."""
        return [i for i in self._order if i in self._reports and self._reports[i].status in ("admitted", "silent")]

    @property
    def open_tasks(self) -> list[int]:
        return [i for i in self._order if i not in self._reports]

    def _settle(self, task_id: int, report: ClientReport) -> None:
        self._reports[task_id] = report
        self._fold_in_turn()

    def _fold_in_turn(self) -> None:
        while self._next < len(self._order) and (task_id := self._order[self._next]) in self._reports:
            if task_id in self._window:
                self._add(self._decoded(self._window.take(task_id)).update)
            self._next += 1

    def _add(self, update: Update) -> None:
        payload = self._opened(update.payload)
        self._fold.add(update if payload is update.payload else replace(update, payload=payload))


class Window(Protocol):
    """Where updates wait for their turn."""

    def __contains__(self, task_id: int) -> bool: ...

    def put(self, update: Update) -> None:
        """Keep an update, whose tensors are valid until this returns."""

    def take(self, task_id: int) -> Update:
        """Return an update, and keep it no longer."""
        ...

    def close(self) -> None: ...


class InMemory:
    """Copies in memory up to a budget, in an unlinked temporary file beyond it."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._updates: dict[int, Update] = {}
        self._spilled: dict[int, tuple[Update, int]] = {}
        self._file: IO[bytes] | None = None

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._updates or task_id in self._spilled

    def put(self, update: Update) -> None:
        size = update.payload.num_bytes
        if self._held + size <= self._budget:
            self._held += size
            self._updates[update.task.id] = _with_tensors(update, [t.clone() for t in _tensors(update)])
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the window
        at = self._file.seek(0, 2)
        for tensor in _tensors(update):
            self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        empty = [torch.empty(t.shape, dtype=t.dtype, device="meta") for t in _tensors(update)]
        self._spilled[update.task.id] = (_with_tensors(update, empty), at)

    def take(self, task_id: int) -> Update:
        if task_id in self._updates:
            update = self._updates.pop(task_id)
            self._held -= update.payload.num_bytes
            return update
        update, at = self._spilled.pop(task_id)
        assert self._file is not None
        self._file.seek(at)
        tensors = []
        for like in _tensors(update):
            raw = bytearray(self._file.read(like.nbytes))
            tensors.append(torch.frombuffer(raw, dtype=like.dtype) if raw else torch.empty(0, dtype=like.dtype))
        return _with_tensors(update, tensors)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _tensors(update: Update) -> list[Tensor]:
    payload = update.payload
    return [*payload.vectors.values(), payload.buffers, payload.integers]


def _with_tensors(update: Update, tensors: Sequence[Tensor]) -> Update:
    *vectors, buffers, integers = tensors
    names = update.payload.vectors
    return replace(update, payload=Payload(dict(zip(names, vectors, strict=True)), buffers, integers))

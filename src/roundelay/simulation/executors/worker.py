"""The other end of the pool: one process, one torch thread, one trainer. Vectors come and go through the arena."""

import ctypes
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roundelay.hosting.forkserver import die_with_parent
from roundelay.layout import Layout
from roundelay.messages import Memory, Payload, Task
from roundelay.simulation.executors.arena import MAX_VIEWS, Arena, Packed, Region
from roundelay.simulation.executors.shipping import Shipment, unpack
from roundelay.stacking import StackTrainer, train_or_describe
from roundelay.trainer import Answer, Evaluated, Trainer, run_or_describe

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of glibc's malloc.h."""


@dataclass(frozen=True, slots=True)
class Names:
    """What lies in a region: the payload's vectors, its two buffer vectors, then a client's memory."""

    vectors: tuple[str, ...]
    memory: tuple[str, ...]
    packed: Packed

    @staticmethod
    def of(payload: Payload, memory: Memory) -> "Names":
        return Names(tuple(payload.vectors), tuple(memory), Packed.of(tensors_of(payload, memory)))

    def arrange(self, tensors: Sequence[Tensor]) -> tuple[Payload, dict[str, Tensor]]:
        n = len(self.vectors)
        payload = Payload(dict(zip(self.vectors, tensors[:n], strict=True)), tensors[n], tensors[n + 1])
        return payload, dict(zip(self.memory, tensors[n + 2 :], strict=True))


@dataclass(frozen=True, slots=True)
class BlockNames:
    """What lies in a region that holds the answers of a block of tasks: ``rows`` one after the other, so many
    ``times``.
    """

    rows: tuple[Names, ...]
    times: int = 1

    @staticmethod
    def of(answers: Sequence[Answer], alike: bool) -> "BlockNames":
        """``alike`` answers hold the same vectors of the same lengths."""
        each = answers[:1] if alike else answers
        rows = tuple(Names.of(answer.update.payload, answer.memory) for answer in each)
        return BlockNames(rows, len(answers) if alike else 1)

    @property
    def packed(self) -> Packed:
        return Packed(tuple(chain.from_iterable(names.packed.parts for names in self.rows)) * self.times)

    def arrange(self, tensors: Sequence[Tensor]) -> list[tuple[Payload, dict[str, Tensor]]]:
        left = iter(tensors)
        return [names.arrange(list(islice(left, len(names.packed.parts)))) for names in self.rows * self.times]


def tensors_of(payload: Payload, memory: Memory) -> list[Tensor]:
    return [*payload.vectors.values(), payload.buffers, payload.integers, *memory.values()]


class Order(NamedTuple):
    """To a worker: one task of a batch, or a ``block`` of tasks that are trained side by side, the first of which gives
    it its id. Before the names of what a block's clients remember stand their numbers.

    ``task`` holds the fields of a ``Task``, which pickle faster than the value; ``broadcast`` says where the received
    vectors lie (pickled once, the same bytes for all its tasks), ``slot`` where the reply goes.
    """

    task: tuple[Any, ...]  # Any: fields of several types
    broadcast: bytes
    slot: Region | None
    memory: tuple[tuple[str, ...], Packed] | None
    block: tuple[tuple[Any, ...], ...] = ()


class Ready(NamedTuple):
    """From a worker, first of all: it has built its trainer, or the traceback that kept it from doing so."""

    failure: str


class Said(NamedTuple):
    """What an update of a block says beside its vectors."""

    num_examples: float
    group: int
    metrics: Mapping[str, float]
    silent: bool
    fresh: bool


class Done(NamedTuple):
    """From a worker: how a task or a ``block`` ended. Vectors lie in the task's slot as ``names`` (pickled) says;
    ``inline`` carries them where they did not fit. ``failure`` is a traceback. ``rows`` are numpy arrays; only
    evaluations have them, and be it none.
    """

    task_id: int
    seconds: float
    failure: str = ""
    names: bytes = b""
    num_examples: float = 0.0
    group: int = 0
    metrics: Mapping[str, float] | None = None
    rows: Mapping[str, Any] | None = None  # Any: see inline
    inline: tuple[Any, ...] | None = None
    silent: bool = False
    fresh: bool = False
    block: tuple[Said, ...] = ()


def main(connection: Connection, arena: Arena, shipment: Shipment, device: str, layout: Layout) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to the whole terminal; the server tells us when to stop
    threading.Thread(target=die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        trainer = Trainer(unpack(shipment, arena), torch.device(device))
        layout.require_same(trainer.layout, "the model that a worker builds")
    except BaseException:
        _send(connection, Ready(traceback.format_exc()))
        return
    _send(connection, Ready(""))
    worker = _Worker(arena, trainer)
    try:
        while True:
            orders: list[Order] = pickle.loads(connection.recv_bytes())
            _send(connection, [worker.run(order) for order in orders])
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server is gone or has no more use for us


class _Worker:
    def __init__(self, arena: Arena, trainer: Trainer) -> None:
        self._arena, self._trainer, self._stack = arena, trainer, StackTrainer(trainer)
        self._broadcast = b""
        self._received: Payload | None = None
        self._names: dict[Names | BlockNames, tuple[bytes, Packed, int]] = {}

    def run(self, order: Order) -> Done:
        started = time.perf_counter()
        task, slot = Task(*order.task), order.slot
        if order.broadcast != self._broadcast:
            names, region, _ = pickle.loads(order.broadcast)
            self._received, self._broadcast = names.arrange(self._arena.read(region, names.packed))[0], order.broadcast
        assert self._received is not None
        memory: dict[str, Tensor] = {}
        if order.memory is not None and slot is not None:
            labels, packed = order.memory
            memory = {k: v.clone() for k, v in zip(labels, self._arena.read(slot, packed), strict=True)}
        if order.block:
            assert slot is not None
            return self._run_block([Task(*fields) for fields in order.block], self._received, memory, slot, started)
        outcome = run_or_describe(self._trainer, task, self._received, memory)
        if isinstance(outcome, str):
            return Done(task.id, time.perf_counter() - started, failure=outcome)
        if isinstance(outcome, Evaluated):
            rows = {name: found.numpy() for name, found in outcome.rows.items()}
            return Done(task.id, time.perf_counter() - started, num_examples=outcome.num_examples,
                        metrics=outcome.metrics, rows=rows)  # fmt: skip
        assert slot is not None
        return self._hand_over(outcome, slot, started)

    def _run_block(
        self, tasks: Sequence[Task], received: Payload, memory: Memory, slot: Region, started: float
    ) -> Done:
        memories: list[dict[str, Tensor]] = [{} for _ in tasks]
        for label, value in memory.items():
            row, _, name = label.partition(" ")
            memories[int(row)][name] = value
        answers = train_or_describe(self._stack, tasks, received, memories)
        if isinstance(answers, str):
            return Done(tasks[0].id, time.perf_counter() - started, failure=answers)
        names = BlockNames.of(answers, alike=self._trainer.work.uplink is None)
        tensors = [one for answer in answers for one in tensors_of(answer.update.payload, answer.memory)]
        pickled, inline = self._written(names, tensors, slot)
        said = tuple(Said(u.num_examples, u.group, u.metrics, u.silent, u.fresh) for u in (a.update for a in answers))
        return Done(tasks[0].id, time.perf_counter() - started, "", pickled, inline=inline, block=said)

    def _hand_over(self, answer: Answer, slot: Region, started: float) -> Done:
        update = answer.update
        names = Names.of(update.payload, answer.memory)
        pickled, inline = self._written(names, tensors_of(update.payload, answer.memory), slot)
        return Done(
            update.task.id, time.perf_counter() - started, "", pickled, update.num_examples, update.group,
            dict(update.metrics), None, inline, update.silent, update.fresh,
        )  # fmt: skip

    def _written(
        self, names: Names | BlockNames, tensors: Sequence[Tensor], slot: Region
    ) -> tuple[bytes, tuple[Any, ...] | None]:  # Any: see Done.inline
        """Put tensors into a slot; return how they lie there, and those that are too large for it."""
        if names not in self._names:
            if len(self._names) >= MAX_VIEWS:
                self._names.clear()
            packed = names.packed
            self._names[names] = pickle.dumps(names), packed, packed.size
        pickled, packed, size = self._names[names]
        if size > slot.size:
            return pickled, tuple(t.cpu().numpy() for t in tensors)
        torch._foreach_copy_(self._arena.read(slot, packed), list(tensors))
        return pickled, None


def _send(connection: Connection, message: Ready | list[Done]) -> None:
    connection.send_bytes(pickle.dumps(message, protocol=5))


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed.

    It would give them back to the kernel, and every task would fault the same pages in again: of a client with 25 M
    parameters and 8 examples, that was two fifths of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

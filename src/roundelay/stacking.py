"""The client's side of one process, for many clients at once: an algorithm's client half over a stack of them.

What comes out is what ``trainer.py`` comes to client by client, up to the rounding of sums in another order.
"""

import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import Losses, Reply
from roundelay.errors import ConfigError
from roundelay.layout import Kind, Vectors
from roundelay.learner import Context
from roundelay.learner.local_sgd import LocalSGD
from roundelay.learner.stacked import Kept, Stack, obstacle
from roundelay.messages import Memory, Payload, Task, Update
from roundelay.stages.uplink import apart
from roundelay.trainer import (
    CPU,
    LOCAL,
    PRIVATE,
    Answer,
    Trainer,
    local_memory,
    moved,
    private_buffers,
    private_memory,
    travelling,
)

Buffers = tuple[Tensor, Tensor]
"""Float and integer buffers of a stack, a row a client."""


class StackTrainer:
    """Trains blocks of clients by the ``trainer``'s own work, on its device. The stack is made when it is first asked
    for something: most trainers are never asked for blocks.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._num_buffers = [trainer.layout.length(kind) for kind in (Kind.FLOAT_BUFFER, Kind.INTEGER_BUFFER)]

    @cached_property
    def _stack(self) -> Stack:
        """Raises:
        ConfigError: clients cannot be trained side by side; says why, and what to do instead.
        """
        bound, layout, learner = self._trainer.bound, self._trainer.layout, self._trainer.work.learner
        found = obstacle(bound.module, layout, learner)
        if found is not None:
            raise ConfigError(f"clients cannot be trained side by side: {found}")
        assert isinstance(learner, LocalSGD)
        return Stack(bound.module, layout, learner, bound.device)

    def bytes_a_client(self) -> int:
        """Return about how much memory a client takes while it trains; see ``Stack``.

        Raises:
            ConfigError: clients cannot be trained side by side.
        """
        data = self._trainer.work.data
        return self._stack.bytes_a_client(data.train(data.clients[0]))

    def train(self, tasks: Sequence[Task], received: Payload, memories: Sequence[Memory]) -> list[Answer]:
        """Do tasks of one round that all begin from ``received``, each with what its client remembers. The answers'
        tensors are rows of common ones.

        Raises:
            ConfigError: clients cannot be trained side by side.
        """
        lengths = [len(self._trainer.part(task.client)) for task in tasks]
        order = sorted(range(len(tasks)), key=lambda row: -lengths[row])  # who trains on stands in one stretch
        answers = self._trained([tasks[row] for row in order], received, [memories[row] for row in order])
        return [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda pair: pair[0])]

    def _trained(self, tasks: Sequence[Task], received: Payload, memories: Sequence[Memory]) -> list[Answer]:
        stack, work = self._stack, self._trainer.work
        parts = [self._trainer.part(task.client) for task in tasks]
        parted = [apart(memory) for memory in memories]
        remembered = [memory for memory, _ in parted]
        model, private, made = self._begun(received, remembered), None, list[list[float]]()
        names = [name for name in remembered[0] if name not in LOCAL + PRIVATE]
        client = work.algorithm.client(moved(stack.device, received.vectors), self._columns(remembered, names))
        try:
            ask = next(client)
            while True:
                if isinstance(ask, Losses):
                    seeds.seed_globals(Context(tasks[0], work.seed).key("losses"))
                    costs = stack.losses(ask.models, model, parts, work.train_loss, work.eval_batch_size)
                    ask = client.send(costs)
                    continue
                contexts = [Context(task, work.seed, len(made)) for task in tasks]
                seeds.seed_globals(contexts[0].key("training"))
                if ask.private:
                    shared = self._exchanged(model, private or self._private(received, remembered))
                fitted, means = stack.fit(ask, model, parts, contexts)
                if ask.private:
                    private = self._exchanged(model, shared)
                made.append(means)
                ask = client.send(fitted)
        except StopIteration as stop:
            reply: Reply = stop.value
        metrics = [{"train_loss": loss} for loss in made[0]] if made else [{} for _ in tasks]
        answers = self._answers(tasks, reply, model, private, metrics)
        return [travelling(work, self._trainer.layout, task, received, answer, beside)
                for task, answer, (_, beside) in zip(tasks, answers, parted, strict=True)]  # fmt: skip

    def _begun(self, received: Payload, memories: Sequence[Memory]) -> Kept:
        """Return what the models hold beside the parameters that came: buffers that came, and what stayed at home."""
        device, count = self._stack.device, len(memories)
        floats, integers = (one.to(device).expand(count, -1) for one in (received.buffers, received.integers))
        first = self._trainer.first_local()
        if not first:
            return Kept(floats.new_empty(count, 0), floats.clone(), integers.clone())
        home = self._columns([{**first, **memory} for memory in memories], LOCAL)
        params, *buffers = (home[name] for name in LOCAL)
        return Kept(params, *(torch.cat(pair, 1) for pair in zip((floats, integers), buffers, strict=True)))

    def _private(self, received: Payload, memories: Sequence[Memory]) -> Buffers:
        """Return the buffers of the clients' private models: those that came, where a client remembers none."""
        each = [private_buffers(memory) or (received.buffers, received.integers) for memory in memories]
        floats, integers = (torch.stack(one).to(self._stack.device) for one in zip(*each, strict=True))
        return floats, integers

    def _exchanged(self, model: Kept, buffers: Buffers) -> Buffers:
        """Put other buffers in the place of those that travel; return these."""
        floats, integers = self._num_buffers
        stood = model.buffers[:, :floats].clone(), model.integers[:, :integers].clone()
        model.buffers[:, :floats], model.integers[:, :integers] = buffers
        return stood

    def _columns(self, memories: Sequence[Memory], names: Sequence[str]) -> Memory:
        return {name: torch.stack([memory[name] for memory in memories]).to(self._stack.device) for name in names}

    def _answers(
        self, tasks: Sequence[Task], reply: Reply, model: Kept, private: Buffers | None,
        metrics: Sequence[Mapping[str, float]],
    ) -> list[Answer]:  # fmt: skip
        count, (num_floats, num_integers) = len(tasks), self._num_buffers
        vectors, remembered = _rows(reply.vectors, count), _rows(reply.memory, count)
        floats, integers = model.buffers.to(CPU), model.integers.to(CPU)
        shared = [
            Payload(*one)
            for one in zip(vectors, floats[:, :num_floats].unbind(), integers[:, :num_integers].unbind(), strict=True)
        ]
        if private is not None:
            for memory, *buffers in zip(remembered, *(one.to(CPU).unbind() for one in private), strict=True):
                memory |= private_memory((buffers[0], buffers[1]))
        if self._trainer.layout.local_names:
            home = model.params.to(CPU), floats[:, num_floats:], integers[:, num_integers:]
            for memory, *local in zip(remembered, *home, strict=True):
                memory |= local_memory(Vectors(*local))
        groups, weights = _numbers(reply.group, count), _numbers(reply.num_examples, count)
        return [
            Answer(Update(task, payload, weight, int(group), said), memory)
            for task, payload, weight, group, said, memory in zip(
                tasks, shared, weights, groups, metrics, remembered, strict=True
            )
        ]


def train_or_describe(
    stack: StackTrainer, tasks: Sequence[Task], received: Payload, memories: Sequence[Memory]
) -> list[Answer] | str:
    """Train one block; where code raises that we do not know, return the traceback as text, as ``run_or_describe``."""
    try:
        return stack.train(tasks, received, memories)
    except Exception:
        return traceback.format_exc()


def _rows(stacked: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return each client's part, on the CPU; what is one vector for all is everybody's."""
    columns = [value.to(CPU).expand(count, -1).unbind() for value in stacked.values()]
    return [dict(zip(stacked, row, strict=True)) for row in zip(*columns, strict=True)] or [{} for _ in range(count)]


def _numbers(value: float | Tensor, count: int) -> list[float]:
    """Return one number a client."""
    return [float(one) for one in value.flatten().tolist()] if isinstance(value, Tensor) else [float(value)] * count

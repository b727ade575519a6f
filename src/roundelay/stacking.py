"""The client's side of one process, for many clients at once: an algorithm's client half over a stack of them.

What comes out is what ``trainer.py`` comes to client by client, up to the rounding of sums in another order.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Reply
from roundelay.errors import ConfigError
from roundelay.learner import Context
from roundelay.learner.local_sgd import LocalSGD
from roundelay.learner.stacked import Stack, obstacle
from roundelay.messages import Memory, Payload, Task, Update
from roundelay.stages.uplink import apart
from roundelay.trainer import CPU, Answer, Trainer, moved, travelling


class StackTrainer:
    """Trains blocks of clients by the ``trainer``'s own work, on its device."""

    def __init__(self, trainer: Trainer) -> None:
        """Raises:
        ConfigError: they cannot be trained side by side; says why, and what to do instead.
        """
        self._trainer, work = trainer, trainer.work
        found = obstacle(trainer.bound.module, trainer.layout, work.learner)
        if found is not None:
            raise ConfigError(f"clients cannot be trained side by side: {found}")
        assert isinstance(work.learner, LocalSGD)
        self._stack = Stack(trainer.bound.module, trainer.layout, work.learner, trainer.bound.device)

    def bytes_a_client(self) -> int:
        """Return about how much memory a client takes while it trains; see ``Stack``."""
        data = self._trainer.work.data
        return self._stack.bytes_a_client(data.train(data.clients[0]))

    def train(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> list[Answer]:
        """Do tasks of one round that all begin from ``received``; the answers' tensors are rows of common ones."""
        work, device = self._trainer.work, self._stack.device
        parted = [apart(memories.get(task.client, {})) for task in tasks]
        memory = moved(device, _stacked([one for one, _ in parted]))
        client = work.algorithm.client(moved(device, received.vectors), memory)
        parts = [work.data.train(task.client) for task in tasks]
        index, losses = 0, [0.0] * len(tasks)
        try:
            ask = next(client)
            while True:
                assert isinstance(ask, Fit)
                contexts = [Context(task, work.seed, index) for task in tasks]
                seeds.seed_globals(contexts[0].key("training"))
                fitted, means = self._stack.fit(ask, parts, contexts)
                losses, index = means if index == 0 else losses, index + 1
                ask = client.send(fitted)
        except StopIteration as stop:
            reply: Reply = stop.value
        return [self._answer(row, task, received, reply, losses[row], beside)
                for row, (task, (_, beside)) in enumerate(zip(tasks, parted, strict=True))]  # fmt: skip

    def _answer(self, row: int, task: Task, received: Payload, reply: Reply, loss: float, beside: Memory) -> Answer:
        group = reply.group if isinstance(reply.group, int) else int(reply.group[row])
        weight = reply.num_examples if isinstance(reply.num_examples, float) else float(reply.num_examples[row])
        payload = Payload(_row(reply.vectors, row), received.buffers, received.integers)
        update = Update(task, payload, weight, group, {"train_loss": loss})
        answer = Answer(update, _row(reply.memory, row))
        return travelling(self._trainer.work, self._trainer.layout, task, received, answer, beside)


def _row(stacked: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return one client's part; what is one vector for all is everybody's."""
    return moved(CPU, {name: vector if vector.ndim == 1 else vector[row] for name, vector in stacked.items()})


def _stacked(memories: Sequence[Memory]) -> Memory:
    return {name: torch.stack([memory[name] for memory in memories]) for name in memories[0]}

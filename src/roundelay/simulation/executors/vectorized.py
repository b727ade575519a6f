"""Blocks of clients in one tensor: for models so small that calling torch costs more than its arithmetic."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roundelay import seeds
from roundelay.messages import Memory, Payload, Task
from roundelay.simulation.executors.protocol import Result
from roundelay.simulation.executors.serial import Serial
from roundelay.stacking import StackTrainer
from roundelay.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Block:
    """Tasks that are done together, all from ``received``."""

    received: Payload
    memories: Mapping[str, Memory]
    tasks: list[Task]


class Vectorized:
    """Trains a whole block when the first of its results is asked for.

    Tasks that are submitted together are cut into blocks in their order. How many make one follows from the model and
    from ``block_bytes``, a number that is given: never from what happens to be free, since a client's last bits hang on
    who is beside it. What is no training as everybody else's (an evaluation, a task with settings of its own) is done
    alone, and so is each task of a block in which somebody's data or loss raises: nobody else suffers for it.
    """

    def __init__(self, trainer: Trainer, block_bytes: int) -> None:
        """Raises:
        ConfigError: the job's clients cannot be trained side by side.
        """
        self._stack, self._serial = StackTrainer(trainer), Serial(trainer)
        self.block = max(1, block_bytes // self._stack.bytes_a_client())
        self._blocks: dict[int, _Block] = {}
        self._done: dict[int, Result] = {}
        self._interrupted = threading.Event()

    def submit(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> None:
        alone = [task for task in tasks if task.kind == "evaluate" or task.config]
        self._serial.submit(alone, received, memories)
        together = [task for task in tasks if task.kind != "evaluate" and not task.config]
        for start in range(0, len(together), self.block):
            block = _Block(received, memories, together[start : start + self.block])
            self._blocks |= dict.fromkeys((task.id for task in block.tasks), block)

    def result(self, task_id: int) -> Result:
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        if task_id in self._blocks:
            self._train(self._blocks[task_id])
        return self._done[task_id] if task_id in self._done else self._serial.result(task_id)

    def release(self, task_id: int) -> None:
        self._done.pop(task_id, None)

    def cancel(self, task_ids: Sequence[int]) -> None:
        self._serial.cancel(task_ids)
        for task_id in task_ids:
            self._done.pop(task_id, None)
            block = self._blocks.pop(task_id, None)
            if block is not None:
                block.tasks = [task for task in block.tasks if task.id != task_id]

    def interrupt(self) -> None:
        self._interrupted.set()
        self._serial.interrupt()

    def close(self) -> None:
        self._blocks.clear()
        self._done.clear()
        self._serial.close()

    def _train(self, block: _Block) -> None:
        for task in block.tasks:
            del self._blocks[task.id]
        try:
            with seeds.preserved_globals():
                memories = [block.memories.get(task.client, {}) for task in block.tasks]
                answers = self._stack.train(block.tasks, block.received, memories)
        except Exception as error:  # a user's data or loss, whose border is in Serial
            log.warning("training %d clients side by side failed (%s: %s): they train one by one", len(block.tasks),
                        type(error).__name__, error)  # fmt: skip
            self._serial.submit(block.tasks, block.received, block.memories)
            return
        self._done |= {task.id: answer for task, answer in zip(block.tasks, answers, strict=True)}

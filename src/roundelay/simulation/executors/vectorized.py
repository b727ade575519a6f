"""Blocks of clients in one tensor: for models so small that calling torch costs more than its arithmetic."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.simulation.executors.protocol import BlockExecutor, Result
from roundelay.trainer import Answer

log = logging.getLogger(__name__)

MOST_CLIENTS = 128
"""In a block: beyond, a step's calls into torch are a small part of it, and its tensors fall out of the cache."""

FEWEST_CLIENTS, BLOCKS = 25, 2
"""So many blocks are made at least, unless they had fewer clients: there is work for several workers."""


@dataclass(slots=True)
class _Block:
    """Tasks that are done together, all from ``received``; ``wanted`` are those whose results somebody may ask for."""

    tasks: Sequence[Task]
    received: Payload
    memories: Mapping[str, Memory]
    wanted: set[int]
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def id(self) -> int:
        return self.tasks[0].id


class Vectorized:
    """Has another executor train blocks.

    Tasks that are submitted together are cut into blocks in their order. How many make one follows from their number
    and from how many fit into a given number of bytes: never from the number of workers or from what happens to be
    free, since a client's last bits hang on who is beside it. For the same reason a block is trained whole, whoever is
    not waited for any more. What is no training as everybody else's (an evaluation, a task with settings of its own) is
    done alone, and so is each task of a block in which somebody's data or loss raises: nobody else suffers for it.
    """

    def __init__(self, inner: BlockExecutor, fitting: int) -> None:
        """``fitting`` clients fit into the memory that a block may take."""
        self._inner, self._fitting = inner, fitting
        self._blocks: dict[int, _Block] = {}  # by the id of each task

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        alone = [task for task in tasks if not _is_like_others(task)]
        self._inner.submit(alone, received, memories, all_needed=all_needed)
        for together in blocks([task for task in tasks if _is_like_others(task)], self._fitting):
            block = _Block(together, received, memories, {task.id for task in together})
            self._blocks |= dict.fromkeys(block.wanted, block)
            self._inner.submit_block(together, received, memories)

    def result(self, task_id: int) -> Result:
        block = self._blocks.get(task_id)
        if block is not None and not block.answers:
            found = self._inner.block_result(block.id)
            if isinstance(found, Lost):
                self._alone(block, found)
            else:
                block.answers = {answer.update.task.id: answer for answer in found}
        return block.answers[task_id] if block is not None and block.answers else self._inner.result(task_id)

    def release(self, task_id: int) -> None:
        block = self._blocks.pop(task_id, None)
        if block is None:
            self._inner.release(task_id)
            return
        block.wanted.discard(task_id)
        if not block.wanted:
            self._inner.release(block.id)

    def cancel(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            block = self._blocks.get(task_id)
            if block is not None and (block.answers or len(block.wanted) > 1):
                self.release(task_id)
            else:
                self._blocks.pop(task_id, None)
                self._inner.cancel([task_id if block is None else block.id])

    def interrupt(self) -> None:
        self._inner.interrupt()

    def close(self) -> None:
        self._blocks.clear()
        self._inner.close()

    def _alone(self, block: _Block, why: Lost) -> None:
        """Train a block's clients one by one: somebody's data or loss has raised, or has ended a worker."""
        log.warning("training %d clients side by side failed (%s): they train one by one", len(block.tasks),
                    why.traceback.strip().splitlines()[-1])  # fmt: skip
        for task_id in block.wanted:
            del self._blocks[task_id]
        self._inner.release(block.id)
        self._inner.submit([task for task in block.tasks if task.id in block.wanted], block.received, block.memories)


def blocks(tasks: Sequence[Task], fitting: int) -> list[Sequence[Task]]:
    """Cut tasks into blocks in their order, as equal as can be, of at most ``fitting`` tasks.

    >>> [len(block) for block in blocks([Task(i, str(i), 1) for i in range(130)], 1000)]
    [65, 65]
    >>> [len(block) for block in blocks([Task(i, str(i), 1) for i in range(7)], 3)]
    [3, 2, 2]
    """
    if not tasks:
        return []
    number = max(-(-len(tasks) // min(fitting, MOST_CLIENTS)), min(BLOCKS, len(tasks) // FEWEST_CLIENTS))
    size, larger = divmod(len(tasks), number)
    ends = [size * (i + 1) + min(i + 1, larger) for i in range(number)]
    return [tasks[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _is_like_others(task: Task) -> bool:
    return task.kind != "evaluate" and not task.config

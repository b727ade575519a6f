"""One process, one client at a time, in the caller's process: the executor to debug with, and the reference for the
others.
"""

import threading
from collections.abc import Mapping, Sequence

from roundelay import seeds
from roundelay.messages import Lost, Memory, Payload, Task
from roundelay.simulation.executors.protocol import Result
from roundelay.stacking import StackTrainer, train_or_describe
from roundelay.trainer import TRIES, Answer, Trainer, lost, run_or_describe


class Serial:
    """Trains a task when its result is asked for, so that an abandoned straggler costs nothing."""

    def __init__(self, trainer: Trainer, stack: StackTrainer | None = None) -> None:
        """``stack`` trains blocks of clients; without it there are none."""
        self._trainer, self._stack = trainer, stack
        self._waiting: dict[int, tuple[Task, Payload, Memory]] = {}
        self._blocks: dict[int, tuple[Sequence[Task], Payload, Mapping[str, Memory]]] = {}
        self._interrupted = threading.Event()

    def submit(
        self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory], *, all_needed: bool = False
    ) -> None:
        for task in tasks:
            self._waiting[task.id] = (task, received, memories.get(task.client, {}))

    def submit_block(self, tasks: Sequence[Task], received: Payload, memories: Mapping[str, Memory]) -> None:
        self._blocks[tasks[0].id] = (tasks, received, memories)

    def result(self, task_id: int) -> Result:
        task, received, memory = self._waiting.pop(task_id)
        trace = ""
        for _ in range(TRIES):
            if self._interrupted.is_set():
                raise KeyboardInterrupt
            with seeds.preserved_globals():
                outcome = run_or_describe(self._trainer, task, received, memory)
            if not isinstance(outcome, str):
                return outcome
            trace = outcome
        return lost(task, trace)

    def block_result(self, task_id: int) -> list[Answer] | Lost:
        tasks, received, memories = self._blocks.pop(task_id)
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        assert self._stack is not None
        with seeds.preserved_globals():
            outcome = train_or_describe(self._stack, tasks, received, [memories.get(task.client, {}) for task in tasks])
        return lost(tasks[0], outcome) if isinstance(outcome, str) else outcome

    def release(self, task_id: int) -> None:
        """Nothing is held: the tensors are the trainer's own."""

    def cancel(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            self._waiting.pop(task_id, None)
            self._blocks.pop(task_id, None)

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._waiting.clear()
        self._blocks.clear()

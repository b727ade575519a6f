"""Answers between the moment that a client has computed them and the moment that they land."""

from collections.abc import Sequence

from roundelay.intake import WINDOW_BYTES, InMemory
from roundelay.messages import Lost, Memory
from roundelay.trainer import Answer


class Kept:
    """Copies, in memory up to a budget and in a file beyond it: an executor needs its own tensors back."""

    def __init__(self) -> None:
        self._window = InMemory(WINDOW_BYTES)
        self._memories: dict[int, Memory] = {}  # of the answers in the window
        self._lost: dict[int, Lost] = {}

    def put(self, answer: Answer | Lost) -> None:
        if isinstance(answer, Lost):
            self._lost[answer.task.id] = answer
            return
        self._window.put(answer.update)
        self._memories[answer.update.task.id] = {name: value.clone() for name, value in answer.memory.items()}

    def take(self, task_id: int) -> Answer | Lost | None:
        if task_id in self._lost:
            return self._lost.pop(task_id)
        if task_id not in self._memories:
            return None
        answer = Answer(self._window.take(task_id), self._memories.pop(task_id))
        if not self._memories:  # what lay in a file is given back
            self._window.close()
            self._window = InMemory(WINDOW_BYTES)
        return answer

    def drop(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            self.take(task_id)

    def lost(self) -> list[tuple[int, str]]:
        """Return which tasks will not have an answer, by id, and why."""
        return [(task_id, lost.reason) for task_id, lost in self._lost.items() if not lost.traceback]

"""How a run asks its clients: what it asked before a crash is found again in the journal, what is new is posted."""

import hashlib
from collections.abc import Mapping, Sequence

from roundelay import wire
from roundelay.client.exchange import model_frame
from roundelay.deployment.board import Board
from roundelay.deployment.journal.records import TaskState
from roundelay.messages import Payload, Task, TaskKind


class Asking:
    """``last_id`` is the highest id of a task that the journal knew when the run began, or went on."""

    def __init__(self, board: Board) -> None:
        self._board, self._journal = board, board.journal
        self.last_id = board.journal.tasks.last_id()
        self._last_round = board.journal.tasks.last_round()
        self._claimed: set[int] = set()  # tasks of before that were asked again
        self._committed = self._journal.committed()
        self._kept: tuple[Payload, str] | None = None  # what was sent last, and its blob

    def again(
        self, clients: Sequence[str], number: int, attempt: int, sent: Payload, kind: TaskKind
    ) -> list[Task] | None:
        """Return the tasks in which these clients were asked for just this before a crash, each of them once, or None
        where they were not. Several may ask side by side, some of them further on than others.
        """
        if not self.last_id or number > self._last_round:
            return None
        digest, tasks = _digest(sent), list[Task]()
        for client in clients:
            known = self._journal.tasks.find(number, attempt, client, kind, digest)
            mine = (one.task for one in known if one.task.id <= self.last_id and one.task.id not in self._claimed)
            task = next(mine, None)
            if task is None:  # tasks of one call are noted together, or none of them
                return None
            tasks.append(task)
        self._claimed.update(task.id for task in tasks)
        return tasks

    def post(self, tasks: Sequence[Task], sent: Payload | None = None, group: str = "") -> None:
        """Note the tasks that are new, and let their clients see all of them; ``group`` is that of their round. Without
        ``sent``, none is new.
        """
        new = [task for task in tasks if self._journal.tasks.get(task.id) is None]
        if new:
            assert sent is not None
            self._journal.tasks.open(new, self._blob(sent), self._committed, group)
        self._board.post([task.client for task in tasks])

    def take_back(self, kind: TaskKind) -> None:
        """Wait for no answer to the open tasks of this kind any more."""
        tasks = [kept.task for kept in self._journal.tasks.all(TaskState.OPEN) if kept.task.kind == kind]
        if tasks:
            self._journal.tasks.close([task.id for task in tasks])
            self._board.post([task.client for task in tasks])

    def lose_strangers(self, tasks: Sequence[Task]) -> None:
        """Wait for nobody who has never come."""
        for task in tasks:
            if not self._journal.clients.takes_part(task.client):
                self._journal.tasks.lose(task.id, f"client {task.client!r} has never joined")

    def commit(self, claims: Mapping[str, int]) -> None:
        """Let clients start from what they came to remember in these tasks, from now on."""
        self._journal.commit(sorted(claims.values()))
        self._committed |= claims

    def _blob(self, sent: Payload) -> str:
        """Return the blob of what is sent, put now unless it is what was sent last."""
        if (
            self._kept is not None
            and _same(self._kept[0], sent)
            and self._journal.blobs.path(self._kept[1]).exists()  # else nobody was waiting for it any more
        ):
            return self._kept[1]
        digest = self._journal.blobs.put(wire.encode(model_frame(sent)))
        self._kept = (sent, digest)
        return digest


def _digest(sent: Payload) -> str:
    """Return the digest that the blob of what is sent has, without putting it."""
    hasher = hashlib.sha256()
    for piece in wire.encode(model_frame(sent)):
        hasher.update(piece)
    return hasher.hexdigest()


def _same(one: Payload, other: Payload) -> bool:
    """Whether two payloads are made of the same tensors, which nobody changes in place."""
    return (
        one.buffers is other.buffers
        and one.integers is other.integers
        and one.vectors.keys() == other.vectors.keys()
        and all(vector is other.vectors[name] for name, vector in one.vectors.items())
    )

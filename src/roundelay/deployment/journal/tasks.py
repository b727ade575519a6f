"""The tasks that clients have: noted before a client hears of one, and kept for good."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.records import KeptTask, TaskState
from roundelay.deployment.journal.rounds import Rounds
from roundelay.errors import JournalMismatch
from roundelay.messages import Task, TaskKind

_MAX_ID = 2**63 - 1


class Tasks:
    """A task is open until it was answered, taken back, or lost; then it stays as it is."""

    def __init__(self, db: Database, blobs: Blobs, rounds: Rounds) -> None:
        self._db, self._blobs, self._rounds = db, blobs, rounds

    def open(
        self, tasks: Sequence[Task], sent: str | None = None, memories: Mapping[str, int] = {}, group: str = ""
    ) -> None:
        """Note tasks before their clients hear of them. ``sent`` is the digest of the blob that they are sent, which is
        kept until the last of them is answered. ``memories`` says by client from which task's memory it starts. A task
        that is known keeps its own: what was committed since may have changed. ``group`` is that of the round.

        Raises:
            JournalMismatch: a task of that id is another one, or it is a training task of a round that is not open.
            JournalError: the blob is not there.
        """
        sql = """
            INSERT INTO tasks (id, client, round, attempt, round_group, kind, config, sent, memory)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        """
        with self._db.writing(f"opening {len(tasks)} tasks") as db:
            if sent is not None:
                self._blobs.require(sent)
            new = self._new(tasks, sent, group)
            for key in {(task.round, task.attempt) for task in new if task.kind == "train"}:
                self._rounds.require_open(*key, group)
            db.executemany(sql, (
                (task.id, task.client, task.round, task.attempt, group, task.kind, json.dumps(dict(task.config)), sent,
                 memories.get(task.client))
                for task in new
            ))  # fmt: skip
        if sent is not None:
            self._blobs.release(sent)

    def close(self, task_ids: Sequence[int]) -> None:
        """Take open tasks back: nobody waits for them any more. Others stay as they are."""
        with self._db.writing(f"closing {len(task_ids)} tasks") as db:
            sql = "UPDATE tasks SET state = 'closed' WHERE state = 'open' AND id = ?"
            db.executemany(sql, ((task_id,) for task_id in task_ids))

    def lose(self, task_id: int, reason: str, traceback: str = "") -> KeptTask:
        """Note that an open task gets no answer, as its client failed or vanished, and why; a task that is not open
        stays as it is, so that the first words stand. Return the task as it now is.

        Raises:
            JournalMismatch: there is no such task.
        """
        with self._db.writing(f"noting the loss of task {task_id}") as db:
            known = self.get(task_id)
            if known is None:
                raise JournalMismatch(f"task {task_id} was never opened; only an open one can be lost")
            if known.state is not TaskState.OPEN:
                return known
            known = replace(known, state=TaskState.LOST, reason=_storable(reason), traceback=_storable(traceback))
            sql = "UPDATE tasks SET state = ?, reason = ?, traceback = ? WHERE id = ?"
            db.execute(sql, (known.state.value, known.reason, known.traceback, task_id))
        return known

    def get(self, task_id: int) -> KeptTask | None:
        """Return the task of that id, which may be any whole number."""
        tasks = self._select("WHERE id = ?", task_id) if 0 <= task_id <= _MAX_ID else ()
        return tasks[0] if tasks else None

    def several(self, task_ids: Collection[int]) -> dict[int, KeptTask]:
        """Return those of these tasks that there are, by id, in one look at the tables."""
        wanted = [task_id for task_id in task_ids if 0 <= task_id <= _MAX_ID]
        marks = ", ".join("?" * len(wanted))
        return {kept.task.id: kept for kept in self._select(f"WHERE id IN ({marks})", *wanted)} if wanted else {}

    def all(self, state: TaskState | None = None) -> tuple[KeptTask, ...]:
        """Return the tasks that stand so, or all of them, by id."""
        if state is None:
            return self._select("ORDER BY id")
        return self._select("WHERE state = ? ORDER BY id", state.value)

    def open_of(self, client: str) -> tuple[KeptTask, ...]:
        """Return the open tasks of a client, by id, at the same small cost for a run of any length."""
        return self._select("WHERE client = ? AND state = 'open' ORDER BY id", client)

    def num_open(self) -> int:
        row = self._db.one("SELECT COUNT(*) FROM tasks WHERE state = 'open'")
        assert row is not None
        return int(row[0])

    def find(self, number: int, attempt: int, client: str, kind: TaskKind, sent: str | None) -> tuple[KeptTask, ...]:
        """Return the tasks in which a client was asked for just that, by id, however they stand."""
        which = "WHERE round = ? AND attempt = ? AND client = ? AND kind = ? AND sent IS ? ORDER BY id"
        return self._select(which, number, attempt, client, kind, sent)

    def last_id(self) -> int:
        """Return the highest id, 0 where there is none."""
        row = self._db.one("SELECT COALESCE(MAX(id), 0) FROM tasks")
        assert row is not None
        return int(row[0])

    def last_round(self) -> int:
        """Return the highest round that a task names, 0 where there is none."""
        row = self._db.one("SELECT COALESCE(MAX(round), 0) FROM tasks")
        assert row is not None
        return int(row[0])

    def _new(self, tasks: Sequence[Task], sent: str | None, group: str) -> list[Task]:
        """Return the tasks that are not known yet, each once."""
        new: dict[int, Task] = {}
        for task in tasks:
            kept = self.get(task.id)
            known = new.setdefault(task.id, task) if kept is None else kept.task
            if known != task or (kept is not None and (kept.sent, kept.group) != (sent, group)):
                raise JournalMismatch(f"task {task.id} is another one: {known}, not {task}")
        return list(new.values())

    def _select(self, which: str, *values: object) -> tuple[KeptTask, ...]:
        columns = "id, client, round, attempt, kind, config, sent, state, memory, reason, traceback, round_group"
        rows = self._db.all(f"SELECT {columns} FROM tasks {which}", *values)
        return tuple(
            KeptTask(Task(number, client, round_, attempt, kind, json.loads(config)), sent, TaskState(state), *rest)
            for number, client, round_, attempt, kind, config, sent, state, *rest in rows
        )


def _storable(text: str) -> str:
    """What a client said may hold halves of surrogate pairs, which UTF-8 cannot say, and so no database."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

"""The rounds of a run, and who belongs to them."""

import json
import sqlite3
from collections.abc import Sequence

from roundelay.deployment.database import Database
from roundelay.deployment.records import Fate, Opening, Round, RoundState
from roundelay.errors import JournalMismatch


class Rounds:
    """A round is opened, and then closed with its members, once. Several may be open. Training tasks belong to rounds,
    tasks of other kinds do not, whatever round they name.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def open(self, opening: Opening) -> Round:
        """Open a round; one that is open stays so, with the time that has passed of it.

        Raises:
            JournalMismatch: it was closed, and never opens again; or it was opened with other terms.
        """
        key = (opening.number, opening.attempt)
        with self._db.writing(f"opening {_name(*key)}") as db:
            known = self.get(*key)
            if known is None:
                sql = "INSERT INTO rounds (number, attempt, cohort, goal, deadline_s) VALUES (?, ?, ?, ?, ?)"
                db.execute(sql, (*key, json.dumps(opening.cohort), opening.goal, opening.deadline_s))
                return Round(opening, RoundState.OPEN, 0.0)
            if known.state is not RoundState.OPEN:
                raise JournalMismatch(f"{_name(*key)} is {known.state.value} and never opens again")
            if known.opening != opening:
                raise JournalMismatch(f"{_name(*key)} is open with other terms: {known.opening}, not {opening}")
            return known

    def tick(self, number: int, attempt: int, elapsed_s: float) -> None:
        """Note how much of an open round's time has passed, on a monotonic clock, so that a restart keeps the deadline.
        It never goes back.
        """
        with self._db.writing(f"noting the time of {_name(number, attempt)}") as db:
            self.require_open(number, attempt)
            sql = "UPDATE rounds SET elapsed_s = max(elapsed_s, ?) WHERE number = ? AND attempt = ?"
            db.execute(sql, (elapsed_s, number, attempt))

    def close(self, number: int, attempt: int, members: Sequence[int], *, under_way: bool = False) -> None:
        """Fix who belongs to a round: tasks, in the order of folding, which are admitted thereby. What else of the
        round has come is late, and who has not answered has no task any more; ``under_way`` leaves both as they are,
        for workflows in which an answer may belong to a later round.

        Raises:
            JournalMismatch: it is not open and had other members; or a member was never received, was refused or late,
                or belongs to another round, or is no training task; or an admitted update of the round is not among
                them.
        """
        with self._db.writing(f"closing {_name(number, attempt)}") as db:
            known = self.get(number, attempt)
            if known is not None and known.state is RoundState.CLOSED and known.members == tuple(members):
                return
            self.require_open(number, attempt)
            for position, task_id in enumerate(members):
                self._require_member(task_id, number, attempt)
                db.execute("INSERT INTO members VALUES (?, ?, ?, ?)", (number, attempt, position, task_id))
                db.execute("UPDATE updates SET fate = 'admitted' WHERE task = ?", (task_id,))
            if not under_way:
                self._end_tasks(db, number, attempt)
            sql = "UPDATE rounds SET state = 'closed' WHERE number = ? AND attempt = ?"
            db.execute(sql, (number, attempt))

    def get(self, number: int, attempt: int) -> Round | None:
        rounds = self._select("WHERE number = ? AND attempt = ?", number, attempt)
        return rounds[0] if rounds else None

    def state(self, number: int, attempt: int) -> RoundState | None:
        """Return how a round stands, at the same small cost for a cohort of any size."""
        row = self._db.one("SELECT state FROM rounds WHERE number = ? AND attempt = ?", number, attempt)
        return None if row is None else RoundState(row[0])

    def was_drawn_again(self, number: int, attempt: int) -> bool:
        """Whether it is closed, and a later attempt was opened."""
        sql = "SELECT 1 FROM rounds WHERE number = ? AND attempt > ? LIMIT 1"
        return self.state(number, attempt) is RoundState.CLOSED and self._db.one(sql, number, attempt) is not None

    def all(self) -> tuple[Round, ...]:
        """Return every round, in the order of numbers and attempts."""
        return self._select("ORDER BY number, attempt")

    def require_open(self, number: int, attempt: int) -> None:
        """Raises:
        JournalMismatch: that round is not open.
        """
        state = self.state(number, attempt)
        if state is not RoundState.OPEN:
            problem = "was never opened" if state is None else f"is {state.value}"
            raise JournalMismatch(f"{_name(number, attempt)} {problem}; only an open one can change")

    def _end_tasks(self, db: sqlite3.Connection, number: int, attempt: int) -> None:
        """What has come and is no member is late; what has not come is not waited for."""
        of_round = "task IN (SELECT id FROM tasks WHERE round = ? AND attempt = ? AND kind = 'train')"
        left_out = self._db.one(
            f"SELECT task FROM updates LEFT JOIN members USING (task) WHERE {of_round} AND fate = 'admitted' "
            "AND members.round IS NULL", number, attempt,
        )  # fmt: skip
        if left_out is not None:
            raise JournalMismatch(f"task {left_out[0]} was admitted, but is no member of {_name(number, attempt)}")
        db.execute(f"UPDATE updates SET fate = 'late' WHERE fate IS NULL AND {of_round}", (number, attempt))
        which = "state = 'open' AND round = ? AND attempt = ? AND kind = 'train'"
        db.execute(f"UPDATE tasks SET state = 'closed' WHERE {which}", (number, attempt))

    def _require_member(self, task_id: int, number: int, attempt: int) -> None:
        row = self._db.one(
            """
            SELECT fate, members.round, members.attempt, tasks.kind
            FROM updates
                JOIN tasks ON tasks.id = updates.task
                LEFT JOIN members ON members.task = updates.task
            WHERE updates.task = ?
            """,
            task_id,
        )
        if row is None:
            problem = "it was never answered"
        elif row[0] in (Fate.REFUSED, Fate.LATE):
            problem = f"its update was {row[0]}"
        elif row[1] is not None:
            problem = f"it is a member of {_name(row[1], row[2])}"
        elif row[3] != "train":
            problem = f"it is of kind {row[3]!r}, which no round folds"
        else:
            return
        raise JournalMismatch(f"task {task_id} cannot be a member of {_name(number, attempt)}: {problem}")

    def _select(self, which: str, *values: object) -> tuple[Round, ...]:
        rows = self._db.all(
            f"SELECT number, attempt, cohort, goal, deadline_s, state, elapsed_s FROM rounds {which}", *values
        )
        return tuple(
            Round(Opening(number, attempt, tuple(json.loads(cohort)), *terms), RoundState(state), elapsed_s,
                  self._members(number, attempt))
            for number, attempt, cohort, *terms, state, elapsed_s in rows
        )  # fmt: skip

    def _members(self, number: int, attempt: int) -> tuple[int, ...]:
        sql = "SELECT task FROM members WHERE round = ? AND attempt = ? ORDER BY position"
        return tuple(task for (task,) in self._db.all(sql, number, attempt))


def _name(number: int, attempt: int) -> str:
    return f"round {number}, attempt {attempt}"

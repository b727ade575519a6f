"""The rounds of a run, and who belongs to them."""

import json
import sqlite3
from collections.abc import Sequence

from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.records import Fate, Opening, Round, RoundState
from roundelay.errors import JournalMismatch

_THIS = "number = ? AND attempt = ? AND round_group = ?"


class Rounds:
    """A round is opened, and then closed with its members, once. Several may be open. Training tasks belong to rounds,
    tasks of other kinds do not, whatever round they name. A round is known by its number, attempt and group.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def open(self, opening: Opening) -> Round:
        """Open a round; one that is open stays so, with the time that has passed of it.

        Raises:
            JournalMismatch: it was closed, and never opens again; or it was opened with other terms.
        """
        key = (opening.number, opening.attempt, opening.group)
        with self._db.writing(f"opening {_name(*key)}") as db:
            known = self.get(*key)
            if known is None:
                sql = """
                    INSERT INTO rounds (number, attempt, round_group, cohort, goal, deadline_s)
                        VALUES (?, ?, ?, ?, ?, ?)
                """
                db.execute(sql, (*key, json.dumps(opening.cohort), opening.goal, opening.deadline_s))
                return Round(opening, RoundState.OPEN, 0.0)
            if known.state is not RoundState.OPEN:
                raise JournalMismatch(f"{_name(*key)} is {known.state.value} and never opens again")
            if known.opening != opening:
                raise JournalMismatch(f"{_name(*key)} is open with other terms: {known.opening}, not {opening}")
            return known

    def tick(self, number: int, attempt: int, elapsed_s: float, group: str = "") -> None:
        """Note how much of an open round's time has passed, on a monotonic clock, so that a restart keeps the deadline.
        It never goes back.
        """
        with self._db.writing(f"noting the time of {_name(number, attempt, group)}") as db:
            self.require_open(number, attempt, group)
            sql = f"UPDATE rounds SET elapsed_s = max(elapsed_s, ?) WHERE {_THIS}"
            db.execute(sql, (elapsed_s, number, attempt, group))

    def close(
        self, number: int, attempt: int, members: Sequence[int], group: str = "", *, under_way: bool = False
    ) -> None:
        """Fix who belongs to a round: tasks, in the order of folding, which are admitted thereby. What else of the
        round has come is late, and who has not answered has no task any more; ``under_way`` leaves both as they are,
        for workflows in which an answer may belong to a later round.

        Raises:
            JournalMismatch: it is not open and had other members; or a member was never received, was refused or late,
                or belongs to another round, or is no training task; or an admitted update of the round is not among
                them.
        """
        key = (number, attempt, group)
        with self._db.writing(f"closing {_name(*key)}") as db:
            known = self.get(*key)
            if known is not None and known.state is RoundState.CLOSED and known.members == tuple(members):
                return
            self.require_open(*key)
            for position, task_id in enumerate(members):
                self._require_member(task_id, key)
                db.execute("INSERT INTO members VALUES (?, ?, ?, ?, ?)", (*key, position, task_id))
                db.execute("UPDATE updates SET fate = 'admitted' WHERE task = ?", (task_id,))
            if not under_way:
                self._end_tasks(db, key)
            db.execute(f"UPDATE rounds SET state = 'closed' WHERE {_THIS}", key)

    def get(self, number: int, attempt: int, group: str = "") -> Round | None:
        rounds = self._select(f"WHERE {_THIS}", number, attempt, group)
        return rounds[0] if rounds else None

    def state(self, number: int, attempt: int, group: str = "") -> RoundState | None:
        """Return how a round stands, at the same small cost for a cohort of any size."""
        row = self._db.one(f"SELECT state FROM rounds WHERE {_THIS}", number, attempt, group)
        return None if row is None else RoundState(row[0])

    def last_attempt(self, number: int) -> int | None:
        """Return the last attempt at a round of this number that was opened, in whichever group."""
        row = self._db.one("SELECT MAX(attempt) FROM rounds WHERE number = ?", number)
        return None if row is None or row[0] is None else int(row[0])

    def was_drawn_again(self, number: int, attempt: int, group: str = "") -> bool:
        """Whether it is closed, and a later attempt was opened, in whichever group."""
        last = self.last_attempt(number)
        return self.state(number, attempt, group) is RoundState.CLOSED and last is not None and last > attempt

    def all(self) -> tuple[Round, ...]:
        """Return every round, in the order of numbers, attempts and groups."""
        return self._select("ORDER BY number, attempt, round_group")

    def require_open(self, number: int, attempt: int, group: str = "") -> None:
        """Raises:
        JournalMismatch: that round is not open.
        """
        state = self.state(number, attempt, group)
        if state is not RoundState.OPEN:
            problem = "was never opened" if state is None else f"is {state.value}"
            raise JournalMismatch(f"{_name(number, attempt, group)} {problem}; only an open one can change")

    def _end_tasks(self, db: sqlite3.Connection, key: tuple[int, int, str]) -> None:
        """What has come and is no member is late; what has not come is not waited for."""
        which = "round = ? AND attempt = ? AND round_group = ? AND kind = 'train'"
        of_round = f"task IN (SELECT id FROM tasks WHERE {which})"
        left_out = self._db.one(
            f"SELECT task FROM updates LEFT JOIN members USING (task) WHERE {of_round} AND fate = 'admitted' "
            "AND members.round IS NULL", *key,
        )  # fmt: skip
        if left_out is not None:
            raise JournalMismatch(f"task {left_out[0]} was admitted, but is no member of {_name(*key)}")
        db.execute(f"UPDATE updates SET fate = 'late' WHERE fate IS NULL AND {of_round}", key)
        db.execute(f"UPDATE tasks SET state = 'closed' WHERE state = 'open' AND {which}", key)

    def _require_member(self, task_id: int, key: tuple[int, int, str]) -> None:
        row = self._db.one(
            """
            SELECT fate, tasks.kind, members.round, members.attempt, members.round_group
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
        elif row[2] is not None:
            problem = f"it is a member of {_name(*row[2:])}"
        elif row[1] != "train":
            problem = f"it is of kind {row[1]!r}, which no round folds"
        else:
            return
        raise JournalMismatch(f"task {task_id} cannot be a member of {_name(*key)}: {problem}")

    def _select(self, which: str, *values: object) -> tuple[Round, ...]:
        columns = "number, attempt, cohort, goal, deadline_s, round_group, state, elapsed_s"
        rows = self._db.all(f"SELECT {columns} FROM rounds {which}", *values)
        return tuple(
            Round(Opening(number, attempt, tuple(json.loads(cohort)), goal, deadline_s, group), RoundState(state),
                  elapsed_s, self._members(number, attempt, group))
            for number, attempt, cohort, goal, deadline_s, group, state, elapsed_s in rows
        )  # fmt: skip

    def _members(self, *key: object) -> tuple[int, ...]:
        sql = "SELECT task FROM members WHERE round = ? AND attempt = ? AND round_group = ? ORDER BY position"
        return tuple(task for (task,) in self._db.all(sql, *key))


def _name(number: int, attempt: int, group: str) -> str:
    return f"round {number}, attempt {attempt}" + (f", group {group!r}" if group else "")

"""The journal against a model of a few lines: any order of rounds, answers, losses, repetitions, restarts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conversations import Conversation
from journal_bugs import Planting, forget_whose_task_it_is, take_a_late_answer, told_otherwise
from stateful import converse

from roundelay.deployment.journal import database
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import KeptTask, TaskState
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.journal.tasks import Tasks
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task


def test_the_journal_agrees_with_a_model_of_a_few_lines() -> None:
    converse(Conversation, examples=200, steps=30)


@pytest.mark.slow
def test_the_journal_agrees_with_a_model_over_long_conversations() -> None:
    converse(Conversation, examples=1000, steps=40)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def call_stale_what_no_later_attempt_replaced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rounds, "was_drawn_again", lambda self, *key: self.get(*key).members == ())


def collect_what_is_not_folded(patch: pytest.MonkeyPatch) -> None:
    needed = Journal._is_needed

    def planted(self: Journal, digest: str) -> bool:
        return needed(self, digest) and any(digest == one.digest for one in self.updates() if one.fate is not None)

    patch.setattr(Journal, "_is_needed", planted)


def in_the_tables(old: str, new: str) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        (found,) = [statement for statement in database.SCHEMA if old in statement]
        patch.setattr(database, "SCHEMA", tuple(
            statement.replace(old, new) if statement is found else statement for statement in database.SCHEMA
        ))  # fmt: skip

    return plant


def start_again_from_the_memory_of_now(patch: pytest.MonkeyPatch) -> None:
    """A task that is opened once more after a restart loses what its client started from."""
    opens = Tasks.open

    def planted(self: Tasks, tasks: Sequence[Task], sent: str | None, memories: Mapping[str, int], group: str) -> None:
        opens(self, tasks, sent, memories, group)
        with self._db.writing("planted") as db:
            for task in tasks:
                db.execute("UPDATE tasks SET memory = ? WHERE id = ?", (memories.get(task.client), task.id))

    patch.setattr(Tasks, "open", planted)


def commit_otherwise(sql: str) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def planted(self: Journal, task_ids: Sequence[int]) -> None:
            with self._db.writing("planted") as db:
                for task_id in task_ids:
                    if db.execute(sql, (task_id,)).rowcount != 1:
                        raise JournalMismatch("planted")

        patch.setattr(Journal, "commit", planted)

    return plant


def commit_until_the_first_that_cannot_be(patch: pytest.MonkeyPatch) -> None:
    commit = Journal.commit

    def planted(self: Journal, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            commit(self, [task_id])

    patch.setattr(Journal, "commit", planted)


def lose_otherwise(where: str) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        lose = Tasks.lose

        def planted(self: Tasks, task_id: int, reason: str, traceback: str = "") -> KeptTask:
            known = lose(self, task_id, reason, traceback)
            with self._db.writing("planted") as db:
                sql = f"UPDATE tasks SET state = 'lost', reason = ? WHERE id = ? AND {where}"
                db.execute(sql, (reason, task_id))
            return known

        patch.setattr(Tasks, "lose", planted)

    return plant


def keep_losses_in_memory(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Tasks, task_id: int, reason: str, traceback: str = "") -> KeptTask:
        known = self.get(task_id)
        if known is None:
            raise JournalMismatch("planted")
        self.close([task_id])
        return replace(known, state=TaskState.LOST, reason=reason)

    patch.setattr(Tasks, "lose", planted)


def end_what_no_round_folds(patch: pytest.MonkeyPatch) -> None:
    """A round that closes takes evaluations of the version of its number along."""
    end = Rounds._end_tasks

    def planted(self: Rounds, db: Any, key: tuple[int, int, str]) -> None:
        end(self, db, key)
        db.execute("UPDATE tasks SET state = 'closed' WHERE state = 'open' AND round = ?", key[:1])

    patch.setattr(Rounds, "_end_tasks", planted)


def ask_for_an_open_round_always(patch: pytest.MonkeyPatch) -> None:
    opens = Tasks.open

    def planted(self: Tasks, tasks: Sequence[Task], sent: str, memories: Any, group: str) -> None:
        for task in tasks:
            self._rounds.require_open(task.round, task.attempt, group)
        opens(self, tasks, sent, memories, group)

    patch.setattr(Tasks, "open", planted)


def one_round_for_all_groups(patch: pytest.MonkeyPatch) -> None:
    """A round that closes takes those along that are beside it."""
    end = Rounds._end_tasks

    def planted(self: Rounds, db: Any, key: tuple[int, int, str]) -> None:
        for one in self.all():
            if (one.opening.number, one.opening.attempt) == key[:2]:
                end(self, db, (*key[:2], one.opening.group))

    patch.setattr(Rounds, "_end_tasks", planted)


_COMMIT = "INSERT INTO committed SELECT client, id FROM tasks JOIN updates ON task = id WHERE id = ? {} ON CONFLICT {}"
_APART, _FOLDED = "THEN COALESCE(tasks.round >= (SELECT", "COALESCE(members.round > (SELECT"
PLANTINGS: dict[str, Planting] = {
    "late answers are accepted": told_otherwise(take_a_late_answer),
    "whose task it is is forgotten": forget_whose_task_it_is,
    "late answers are stale": call_stale_what_no_later_attempt_replaced,
    "what is not folded is collected": collect_what_is_not_folded,
    "what no round folds goes with its own round": in_the_tables(_APART, _APART.replace(">=", ">")),
    "what no round folds stays for good": in_the_tables(_APART, "THEN COALESCE(TRUE OR tasks.round >= (SELECT"),
    "the checkpoint of a round forgets it": in_the_tables(_FOLDED, _FOLDED.replace(">", ">=")),
    "a task starts from the memory of now": start_again_from_the_memory_of_now,
    "the last word is committed": commit_otherwise(
        _COMMIT.format("AND fate = 'admitted'", "(client) DO UPDATE SET task = excluded.task")
    ),
    "the first word is committed": commit_otherwise(
        _COMMIT.format("AND fate = 'admitted'", "(client) DO UPDATE SET task = task")
    ),
    "what has no fate is committed": commit_otherwise(
        _COMMIT.format("AND fate IS NOT 'refused'", "(client) DO UPDATE SET task = max(task, excluded.task)")
    ),
    "half is committed": commit_until_the_first_that_cannot_be,
    "the last words about a loss stand": lose_otherwise("state = 'lost'"),
    "what has come is lost": lose_otherwise("state = 'received'"),
    "losses are in memory only": keep_losses_in_memory,
    "a round ends what it does not fold": end_what_no_round_folds,
    "every task asks for an open round": ask_for_an_open_round_always,
    "rounds side by side are one": one_round_for_all_groups,
}


@pytest.mark.parametrize("plant", PLANTINGS.values(), ids=PLANTINGS)
def test_the_model_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, FileNotFoundError, JournalError, pytest.fail.Exception)):
        converse(Conversation, examples=1_000, steps=30, shrink=False)  # the first that fails is enough

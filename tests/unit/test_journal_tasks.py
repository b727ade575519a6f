"""Rounds and tasks of the journal: who is asked what, from which memory, and who belongs to a round."""

from dataclasses import replace

import pytest
from journals import accepted, first_round, reopened, sha256

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Fate, KeptTask, Opening, RoundState, TaskState, Verdict
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task

NOBODY = "0" * 64
journal = pytest.fixture(first_round)


def test_a_round_keeps_its_terms_and_its_time_over_a_restart(journal: Journal) -> None:
    journal.rounds.tick(1, 0, 12.5)
    journal.rounds.tick(1, 0, 3.0)
    journal = reopened(journal)
    round_ = journal.rounds.get(1, 0)
    assert round_ is not None
    assert round_.opening == Opening(1, 0, ("a", "b", "c"), goal=2, deadline_s=60.0)
    assert (round_.state, round_.elapsed_s, round_.members) == (RoundState.OPEN, 12.5, ())
    assert journal.rounds.open(round_.opening) == round_, "opened again, it is the same"
    with pytest.raises(JournalMismatch, match="open with other terms"):
        journal.rounds.open(replace(round_.opening, goal=3))
    journal.close()


def test_a_closed_round_never_opens_or_changes_again(journal: Journal) -> None:
    accepted(journal, 1, "a", b"update")
    opening = Opening(1, 0, ("a", "b", "c"), goal=2, deadline_s=60.0)
    journal.rounds.close(1, 0, [1])
    journal.rounds.close(1, 0, [1])
    for change in (
        lambda: journal.rounds.open(opening), lambda: journal.rounds.close(1, 0, []),
        lambda: journal.rounds.tick(1, 0, 1.0), lambda: journal.rounds.close(3, 0, []),
        lambda: journal.tasks.open([Task(9, "a", 1)]),
    ):  # fmt: skip
        with pytest.raises(JournalMismatch, match=r"never opens again|only an open one can change"):
            change()
    (round_,) = journal.rounds.all()
    assert (round_.opening, round_.state, round_.members) == (opening, RoundState.CLOSED, (1,))


def test_members_are_kept_in_the_order_of_folding_and_everybody_else_is_late(journal: Journal) -> None:
    for task, client in ((3, "c"), (1, "a"), (2, "b")):
        accepted(journal, task, client, b"update of " + client.encode())
    journal.rounds.close(1, 0, [2, 3])
    assert [(one.task_id, one.fate) for one in journal.updates(1)] == [
        (3, Fate.ADMITTED), (1, Fate.LATE), (2, Fate.ADMITTED),
    ]  # fmt: skip
    round_ = journal.rounds.get(1, 0)
    assert round_ is not None
    assert round_.members == (2, 3)


def test_only_an_admissible_update_becomes_a_member_and_of_one_round(journal: Journal) -> None:
    accepted(journal, 1, "a", b"1")
    accepted(journal, 2, "b", b"2")
    journal.settle(1, Fate.REFUSED, "not finite: ...")
    journal.settle(2, Fate.ADMITTED)
    for members, problem in (
        ([1], "its update was refused"), ([3], "was never answered"), ([2, 2], "it is a member of round 1, attempt 0"),
        ([], "task 2 was admitted, but is no member"),
    ):  # fmt: skip
        with pytest.raises(JournalMismatch, match=problem):
            journal.rounds.close(1, 0, members)
    round_ = journal.rounds.get(1, 0)
    assert round_ is not None
    assert (round_.state, round_.members) == (RoundState.OPEN, ()), "a close that failed changed nothing"
    journal.rounds.close(1, 0, [2])
    journal.rounds.open(Opening(2, 0, ()))
    with pytest.raises(JournalMismatch, match="it is a member of round 1"):
        journal.rounds.close(2, 0, [2])


def test_an_answer_may_belong_to_a_later_round_where_the_workflow_says_so(journal: Journal) -> None:
    """As in buffered rounds: task 2 goes on beyond the round that it was sent in."""
    accepted(journal, 1, "a", b"1")
    journal.rounds.close(1, 0, [1], under_way=True)
    assert accepted(journal, 2, "b", b"2").verdict is Verdict.ACCEPTED
    checkpoint = journal.blobs.put(b"model")
    journal.save_checkpoint(1, checkpoint)
    assert journal.collect() == 1
    journal.blobs.require(sha256(b"2")), "round 2 has not folded it yet"
    journal.rounds.open(Opening(2, 0, ()))
    journal.rounds.close(2, 0, [2])
    assert journal.collect() == 0
    journal.save_checkpoint(2, checkpoint)
    assert journal.collect() == 1


def test_tasks_are_kept_with_what_was_sent_and_cannot_change(journal: Journal) -> None:
    sent = journal.blobs.put(b"version 2")
    tasks = [
        Task(4, "a", 1, config={"lr": 0.5, "epochs": 2, "mode": "x", "on": True}),
        Task(5, "b", 1, kind="evaluate"),
    ]
    journal.tasks.open(tasks, sent)
    journal.tasks.open(tasks, sent)
    journal.tasks.close([1, 5])
    journal = reopened(journal)
    kept = {one.task.id: one for one in journal.tasks.all()}
    assert [kept[4].task, kept[5].task] == tasks
    assert [(i, one.state, one.sent) for i, one in kept.items()] == [
        (1, TaskState.CLOSED, None), (2, TaskState.OPEN, None), (3, TaskState.OPEN, None),
        (4, TaskState.OPEN, sent), (5, TaskState.CLOSED, sent),
    ]  # fmt: skip
    assert [one.task.id for one in journal.tasks.all(TaskState.OPEN)] == [2, 3, 4]
    for task, blob, problem in (
        (replace(tasks[0], config={}), sent, "task 4 is another one"), (tasks[0], None, "another one"),
        (Task(6, "a", 7), sent, "was never opened"),
        (Task(6, "a", 1), NOBODY, "is not there"),
    ):  # fmt: skip
        with pytest.raises(JournalError, match=problem):
            journal.tasks.open([task], blob)
    journal.close()


def test_a_task_keeps_the_memory_that_its_client_first_started_from(journal: Journal) -> None:
    tasks = [Task(4, "a", 1), Task(5, "b", 1)]
    journal.tasks.open(tasks, memories={"a": 1, "c": 3})
    journal.tasks.open(tasks, memories={"a": 2, "b": 2})
    journal = reopened(journal)
    kept = [journal.tasks.get(i) for i in (4, 5)]
    assert kept == [KeptTask(tasks[0], None, TaskState.OPEN, memory=1), KeptTask(tasks[1], None, TaskState.OPEN)]
    journal.close()


def test_tasks_of_one_call_are_opened_together_or_not_at_all(journal: Journal) -> None:
    new = Task(4, "a", 1)
    for second in (Task(4, "b", 1), Task(5, "b", 2), Task(1, "b", 1)):
        with pytest.raises(JournalMismatch):
            journal.tasks.open([new, second])
        assert journal.tasks.last_id() == 3
    journal.tasks.open([new, new])
    assert journal.tasks.last_id() == 4


def test_tasks_are_found_by_their_client_and_by_what_was_asked(journal: Journal) -> None:
    sent, other = journal.blobs.put(b"version 1"), journal.blobs.put(b"version 2")
    journal.tasks.open([Task(6, "a", 1, kind="submit")], sent)
    journal.tasks.open([Task(5, "a", 1, kind="submit")], sent)
    journal.tasks.open([Task(7, "a", 1, kind="submit")], other)
    accepted(journal, 6, "a", b"model of a")
    assert [one.task.id for one in journal.tasks.open_of("a")] == [1, 5, 7]
    assert journal.tasks.open_of("nobody") == ()
    assert [one.task.id for one in journal.tasks.find(1, 0, "a", "submit", sent)] == [5, 6]
    assert [one.task.id for one in journal.tasks.find(1, 0, "a", "train", None)] == [1]
    for what in ((1, 0, "a", "train", sent), (1, 0, "b", "submit", sent), (1, 1, "a", "submit", sent)):
        assert journal.tasks.find(*what) == ()
    assert journal.tasks.last_id() == 7


def test_what_is_asked_at_every_poll_is_looked_up_in_an_index(journal: Journal) -> None:
    asked: list[str] = []
    journal._db._reader.set_trace_callback(asked.append)
    journal.tasks.open_of("a")
    journal.tasks.find(1, 0, "a", "evaluate", None)
    journal._db._reader.set_trace_callback(None)
    plans = [journal._db.all(f"EXPLAIN QUERY PLAN {sql}") for sql in asked]
    assert [len(plan) for plan in plans] == [1, 1], "nor sorted afterwards"
    assert [plan[0][-1].split(" (")[0] for plan in plans] == [
        "SEARCH tasks USING INDEX tasks_by_client", "SEARCH tasks USING INDEX tasks_by_round",
    ]  # fmt: skip


def test_a_lost_task_keeps_the_first_words_and_takes_no_answer(journal: Journal) -> None:
    lost = journal.tasks.lose(1, "it cannot: no memory left", "line 1\nline 2")
    assert (lost.task.id, lost.state, lost.reason, lost.traceback) == (
        1, TaskState.LOST, "it cannot: no memory left", "line 1\nline 2",
    )  # fmt: skip
    journal = reopened(journal)
    assert journal.tasks.lose(1, "was silent") == journal.tasks.get(1) == lost
    assert accepted(journal, 1, "a", b"after all").verdict is Verdict.LATE
    journal.tasks.close([1])
    journal.rounds.close(1, 0, [])
    assert journal.tasks.all(TaskState.LOST) == (lost,), "the end of its round is no news of it"
    assert accepted(journal, 1, "a", b"after all").verdict is Verdict.LATE
    for none in (77, -1, 2**63):
        with pytest.raises(JournalMismatch, match=f"task {none} was never opened"):
            journal.tasks.lose(none, "was silent")
    journal.close()


def test_what_has_come_or_was_taken_back_is_not_lost(journal: Journal) -> None:
    accepted(journal, 1, "a", b"update")
    journal.tasks.close([2])
    states = [journal.tasks.lose(task, "was silent").state for task in (1, 2)]
    assert states == [TaskState.RECEIVED, TaskState.CLOSED]
    assert [(one.state, one.reason) for one in journal.tasks.all()] == [
        (TaskState.RECEIVED, ""), (TaskState.CLOSED, ""), (TaskState.OPEN, ""),
    ]  # fmt: skip


def test_the_last_words_of_a_client_may_be_any_text(journal: Journal) -> None:
    """Also what JSON can say and UTF-8 cannot."""
    lost = journal.tasks.lose(1, "half a pair: \ud800", "nothing: \0. more: \n" + "x" * 10**6)
    assert lost.reason == "half a pair: \\ud800"
    journal = reopened(journal)
    assert journal.tasks.get(1) == lost
    journal.close()


def test_what_belongs_to_no_round_is_asked_whatever_round_is_open(journal: Journal) -> None:
    journal.rounds.close(1, 0, [])
    tasks = [Task(4, "a", 0, kind="evaluate"), Task(5, "b", 1, kind="evaluate"), Task(6, "c", 2, -1, kind="submit")]
    journal.tasks.open(tasks)
    for task in tasks:
        assert accepted(journal, task.id, task.client, b"numbers").verdict is Verdict.ACCEPTED
        journal.settle(task.id, Fate.ADMITTED)
    assert [one.task_id for one in journal.updates(1, 0, "evaluate")] == [5]
    assert [one.task_id for one in journal.updates(2, -1, "submit")] == [6]
    assert journal.updates(1) == (), "none of them is an answer of the round"
    with pytest.raises(JournalMismatch, match=r"only an open one can change"):
        journal.tasks.open([Task(7, "a", 1)])


def test_a_round_neither_folds_nor_ends_what_does_not_belong_to_it(journal: Journal) -> None:
    journal.tasks.open([Task(4, "a", 1, kind="evaluate"), Task(5, "b", 1, kind="evaluate")])
    accepted(journal, 1, "a", b"update")
    accepted(journal, 4, "a", b"numbers")
    with pytest.raises(JournalMismatch, match=r"task 4 cannot be a member of .*: it is of kind 'evaluate'"):
        journal.rounds.close(1, 0, [1, 4])
    journal.settle(4, Fate.ADMITTED)
    journal.rounds.close(1, 0, [1])
    assert [one.task.id for one in journal.tasks.all(TaskState.OPEN)] == [5]
    journal.rounds.open(Opening(1, 1, ("b",)))
    journal.tasks.close([5])
    assert accepted(journal, 5, "b", b"numbers").verdict is Verdict.LATE, "no attempt took its place"

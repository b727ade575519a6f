"""Updates of the journal: what is acknowledged, what meets which fate, and what the model counts."""

from dataclasses import replace

import pytest
from journals import accepted, first_round, reopened, sha256

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, Fate, Opening, Verdict
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task

NOBODY = "0" * 64
journal = pytest.fixture(first_round)


def test_a_repeated_answer_gets_the_same_ack(journal: Journal) -> None:
    ack = accepted(journal, 2, "b", b"update")
    assert ack == Ack(2, sha256(b"update"), Verdict.ACCEPTED, 1)
    again = accepted(journal, 2, "b", b"update", {"num_examples": 10**9})
    assert again == replace(ack, duplicate=True)
    journal = reopened(journal)
    journal.rounds.close(1, 0, [2])
    assert accepted(journal, 2, "b", b"update") == again, "also once its round is closed"
    update = journal.update(2)
    assert update is not None
    assert (update.number, update.client, update.size) == (1, "b", 6)
    assert update.fields == {"num_examples": 10}
    assert journal.updates() == (update,)
    journal.close()


def test_answers_that_cannot_count_get_a_typed_verdict(journal: Journal) -> None:
    accepted(journal, 1, "a", b"first")
    assert accepted(journal, 1, "a", b"second").verdict is Verdict.CONFLICT
    assert accepted(journal, 2, "a", b"another client's task").verdict is Verdict.UNKNOWN
    assert accepted(journal, 1, "b", b"first").verdict is Verdict.UNKNOWN, "not even that it was answered"
    for task in (77, -1, 2**63, 10**30):
        assert accepted(journal, task, "a", b"no such task").verdict is Verdict.UNKNOWN
    journal.tasks.close([2])
    assert accepted(journal, 2, "b", b"late").verdict is Verdict.LATE
    journal.rounds.open(Opening(2, 1, ("b",)))
    journal.rounds.open(Opening(1, 1, ("b",)))
    assert accepted(journal, 2, "b", b"late").verdict is Verdict.LATE, "its own round goes on"
    journal.tasks.lose(3, "was silent")
    journal.rounds.close(1, 0, [1])
    assert accepted(journal, 2, "b", b"stale").verdict is Verdict.STALE
    assert accepted(journal, 3, "c", b"stale").verdict is Verdict.STALE
    journal.tasks.open([Task(4, "a", 1, 1)])
    journal.rounds.close(1, 1, [])
    assert accepted(journal, 4, "a", b"late").verdict is Verdict.LATE, "no attempt came after it"
    assert [one.digest for one in journal.updates()] == [sha256(b"first")]
    assert journal.collect() == 5, "what was not accepted is not kept"


def test_an_update_without_its_blob_is_not_accepted(journal: Journal) -> None:
    with pytest.raises(JournalError, match=f"blob {NOBODY} is not there"):
        journal.accept(1, "a", NOBODY, 3, {})
    digest = journal.blobs.put(b"four")
    with pytest.raises(JournalError, match="has 4 bytes, not the 5 that were stated"):
        journal.accept(1, "a", digest, 5, {})
    with pytest.raises(ValueError, match="64 lower-case hexadecimal"):
        journal.accept(1, "a", "../../../etc/passwd", 5, {})
    assert journal.updates() == ()
    assert accepted(journal, 1, "a", b"four").verdict is Verdict.ACCEPTED


def test_an_update_meets_one_fate(journal: Journal) -> None:
    accepted(journal, 1, "a", b"1")
    journal.settle(1, Fate.REFUSED, "not finite: it diverged")
    journal.settle(1, Fate.REFUSED, "said again")
    with pytest.raises(JournalMismatch, match="was refused, it cannot be admitted as well"):
        journal.settle(1, Fate.ADMITTED)
    with pytest.raises(JournalMismatch, match="task 2 has no update"):
        journal.settle(2, Fate.LATE)
    update = journal.update(1)
    assert update is not None
    assert (update.fate, update.reason) == (Fate.REFUSED, "not finite: it diverged")


def test_what_the_model_counts_is_its_clients_own_for_good(journal: Journal) -> None:
    journal.tasks.open([Task(4, "a", 1), Task(5, "b", 1)])
    for task, client in ((1, "a"), (4, "a"), (5, "b"), (2, "b")):
        accepted(journal, task, client, b"update")
    assert journal.committed() == {}
    journal.rounds.close(1, 0, [4, 5, 1])
    journal.commit([4, 5])
    journal.commit([4, 5])
    journal.commit([1])
    assert journal.committed() == {"a": 4, "b": 5}, "nobody is taken back"
    for none, problem in ((2, "late"), (3, "never came"), (77, "no such task"), (-1, "no such task")):
        with pytest.raises(JournalMismatch, match=f"task {none} has no admitted update"):
            journal.commit([1, none])
        assert journal.committed() == {"a": 4, "b": 5}, problem
    journal.save_checkpoint(1, journal.blobs.put(b"model"))
    journal.collect()
    journal = reopened(journal)
    assert journal.committed() == {"a": 4, "b": 5}
    journal.close()


def test_half_of_a_commit_is_none(journal: Journal) -> None:
    accepted(journal, 1, "a", b"update")
    journal.settle(1, Fate.ADMITTED)
    with pytest.raises(JournalMismatch, match="task 2 has no admitted update"):
        journal.commit([1, 2])
    assert journal.committed() == {}
    journal.commit([1])
    assert journal.committed() == {"a": 1}

"""The journal, undisturbed: what each method writes, returns and refuses. What crashes and disks do: tests/faults."""

import hashlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from crashes import Recorder
from journals import JOB, RUN, accepted, begun, key_of, opened, sha256

from roundelay.deployment.journal import Journal
from roundelay.deployment.records import (
    Ack,
    Answer,
    Checkpoint,
    Denial,
    Fate,
    Opening,
    Participant,
    RequestDenied,
    RoundState,
    Run,
    TaskState,
    Verdict,
)  # fmt: skip
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task

NOBODY = "0" * 64


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal with clients "a", "b" and "c", and round 1, in which they have the tasks 1, 2 and 3."""
    with opened(tmp_path / "run") as journal:
        begun(journal)
        yield journal


def reopened(journal: Journal) -> Journal:
    journal.close()
    return opened(journal.folder)


# ---- whose journal it is --------------------------------------------------------------------------------------------


def test_a_journal_of_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path).close()
    other = Run(RUN.id, JOB.replace("0.1", "0.05") + "momentum = 0.9\n")
    with pytest.raises(
        JournalMismatch, match=r"learner\.lr is 0\.1 there and 0\.05 here; learner\.momentum is 'not set'"
    ):
        Journal(tmp_path, other)
    with pytest.raises(JournalMismatch, match="run 'one', not of this one: this one has the id 'two'"):
        Journal(tmp_path, Run("two", JOB))
    with Journal(tmp_path, None) as journal:
        assert journal.run == RUN


def test_only_a_journal_that_is_there_is_opened_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal in"):
        Journal(tmp_path / "nothing", None)
    assert not (tmp_path / "nothing").exists()


def test_a_journal_is_open_once_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(JournalError, match="is open already"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_tables_of_a_newer_version_and_other_databases_are_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for statement, problem in (
        ("PRAGMA user_version = 99", "newer roundelay"),
        ("PRAGMA user_version = 0", "no journal"),
    ):
        database = sqlite3.connect(tmp_path / "journal.db")
        database.execute(statement)
        database.close()
        with pytest.raises(JournalError, match=problem):
            opened(tmp_path)
    (tmp_path / "journal.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalError, match="not a database"):
        opened(tmp_path)


def test_a_needed_blob_that_was_removed_by_hand_is_named(journal: Journal) -> None:
    accepted(journal, 1, "a", b"update")
    journal.blobs.path(sha256(b"update")).unlink()
    with pytest.raises(JournalError, match=f"{sha256(b'update')}, which the update of task 1 needs"):
        reopened(journal)


def test_a_closed_journal_takes_and_tells_nothing(journal: Journal) -> None:
    journal.close()
    journal.close()
    for use in (lambda: journal.record("x", 1), journal.recorded, lambda: journal.blobs.put(b"x")):
        with pytest.raises(JournalError, match="closed"):
            use()


def test_the_database_syncs_each_commit(journal: Journal) -> None:
    """What the crash tests take for granted: they see a commit as one step."""
    assert journal._db.one("PRAGMA journal_mode") == ("wal",)
    assert journal._db.one("PRAGMA synchronous") == (2,)
    assert journal._db.one("PRAGMA foreign_keys") == (1,)


def test_the_log_of_a_killed_process_is_written_anew_before_it_is_believed(tmp_path: Path) -> None:
    """Its pages may be in the kernel's memory only; what SQLite finds in them counts as committed."""
    with opened(tmp_path / "killed") as journal:
        journal.record("x", 1)
        shutil.copytree(tmp_path / "killed", tmp_path / "left")
    log = (tmp_path / "left" / "journal.db-wal").read_bytes()
    disk = Recorder(tmp_path)
    with opened(tmp_path / "left", disk) as journal:
        assert [one.content for one in journal.recorded()] == [1]
    steps = [(one.call, one.data) for one in disk.steps if one.path == "left/journal.db-wal"]
    assert steps == [("open", b""), ("write", log), ("sync", b"")]
    calls = [one.call for one in disk.steps]
    assert "commit" not in calls[: calls.index("sync")]


# ---- clients --------------------------------------------------------------------------------------------------------


def test_a_client_takes_part_once_however_often_it_is_admitted(journal: Journal) -> None:
    assert journal.clients.admit("a", key_of("a")) == Participant("a", key_of("a"), -1)
    assert journal.clients.advance("a", key_of("a"), 4)
    assert journal.clients.admit("a", key_of("a")) == Participant("a", key_of("a"), 4), "it goes on where it was"
    assert [one.client for one in journal.clients.all()] == ["a", "b", "c"]
    assert journal.clients.takes_part("c")
    assert not journal.clients.takes_part("d")
    for none in ("", key_of("a").upper(), key_of("a") + "\n", "key of a"):
        with pytest.raises(ValueError, match=r"client 'd': expected the SHA-256 of its key in 64 lower-case"):
            journal.clients.admit("d", none)
    assert not journal.clients.takes_part("d")


def test_a_request_counts_once_also_after_a_restart(journal: Journal) -> None:
    key = key_of("a")
    assert [journal.clients.advance("a", key, number) for number in (0, 1, 1, 0, 7)] == [True, True, False, False, True]
    journal = reopened(journal)
    assert [journal.clients.advance("a", key, number) for number in (7, 3, -1, 2**63, 10**30)] == [False] * 5
    assert journal.clients.advance("a", key, 2**63 - 1)
    assert not journal.clients.advance("nobody", key, 1)
    assert not journal.clients.advance("b", key, 1), "another client's key"
    journal.close()


def test_another_key_begins_a_new_sequence_and_the_old_one_stays_where_it_was(journal: Journal) -> None:
    old, new = key_of("a"), key_of("a on a new machine")
    journal.clients.advance("a", old, 100)
    assert not journal.clients.advance("a", new, 1), "not before it was admitted"
    assert journal.clients.admit("a", new).sequence == -1
    assert journal.clients.advance("a", old, 101), "a request that was under way when the key changed"
    assert journal.clients.advance("a", new, 1), "whose number is not one of the new key"
    journal = reopened(journal)
    assert journal.clients.admit("a", old).sequence == 101
    assert not journal.clients.advance("a", old, 50), "captured before the key changed"
    assert [one for one in journal.clients.all() if one.client == "a"] == [
        Participant("a", old, 101), Participant("a", new, 1),
    ]  # fmt: skip
    journal.close()


def test_tasks_and_uploads_stay_a_clients_own_when_its_key_changes(journal: Journal) -> None:
    data = b"begun with the old key"
    journal.uploads.begin("a", sha256(data), len(data))
    journal.uploads.write("a", sha256(data), 0, data[:5])
    journal.clients.admit("a", key_of("a on a new machine"))
    assert journal.uploads.begin("a", sha256(data), len(data)) == 5
    assert accepted(journal, 1, "a", data).verdict is Verdict.ACCEPTED


# ---- rounds and tasks -----------------------------------------------------------------------------------------------


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


def test_a_closed_or_abandoned_round_never_opens_or_changes_again(journal: Journal) -> None:
    accepted(journal, 1, "a", b"update")
    opening = Opening(1, 0, ("a", "b", "c"), goal=2, deadline_s=60.0)
    journal.rounds.close(1, 0, [1])
    journal.rounds.close(1, 0, [1])
    second = Opening(2, 0, ())
    journal.rounds.open(second)
    journal.rounds.abandon(2, 0)
    journal.rounds.abandon(2, 0)
    for change in (
        lambda: journal.rounds.open(opening), lambda: journal.rounds.close(1, 0, []),
        lambda: journal.rounds.abandon(1, 0), lambda: journal.rounds.tick(1, 0, 1.0),
        lambda: journal.rounds.open(second), lambda: journal.rounds.close(2, 0, []),
        lambda: journal.rounds.close(3, 0, []), lambda: journal.tasks.open([Task(9, "a", 1)]),
    ):  # fmt: skip
        with pytest.raises(JournalMismatch, match=r"never opens again|only an open one can change"):
            change()
    assert [(one.opening.number, one.state, one.members) for one in journal.rounds.all()] == [
        (1, RoundState.CLOSED, (1,)), (2, RoundState.ABANDONED, ()),
    ]  # fmt: skip


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
        (Task(6, "z", 1), sent, "client 'z', which was not admitted"), (Task(6, "a", 7), sent, "was never opened"),
        (Task(6, "a", 1), NOBODY, "is not there"),
    ):  # fmt: skip
        with pytest.raises(JournalError, match=problem):
            journal.tasks.open([task], blob)
    journal.close()


# ---- updates --------------------------------------------------------------------------------------------------------


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
    journal.rounds.close(1, 0, [1])
    assert accepted(journal, 2, "b", b"late").verdict is Verdict.LATE
    journal.rounds.open(Opening(2, 0, ("a",)))
    journal.tasks.open([Task(4, "a", 2)])
    journal.rounds.abandon(2, 0)
    assert accepted(journal, 4, "a", b"stale").verdict is Verdict.STALE
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


# ---- answers, checkpoints, collection -------------------------------------------------------------------------------


def test_what_a_workflow_was_told_is_told_again_in_order(journal: Journal) -> None:
    contents = [{"cohort": ["a", "b"]}, [1, 2.5, None], "text", True]
    assert [journal.record(f"kind {i}", content) for i, content in enumerate(contents)] == [1, 2, 3, 4]
    journal = reopened(journal)
    assert journal.recorded() == tuple(Answer(i + 1, f"kind {i}", content) for i, content in enumerate(contents))
    assert journal.recorded(after=3) == (Answer(4, "kind 3", True),)
    journal.close()


def test_collection_takes_what_nothing_refers_to_and_nothing_else(journal: Journal) -> None:
    sent = journal.blobs.put(b"version 1")
    journal.tasks.open([Task(4, "a", 1), Task(5, "b", 1)], sent)
    for task, client in ((1, "a"), (2, "b"), (4, "a")):
        accepted(journal, task, client, f"update {task}".encode())
    journal.settle(4, Fate.REFUSED, "wrong length")
    assert journal.collect() == 1, "the refused one"
    journal.rounds.close(1, 0, [1, 2])
    assert journal.collect() == 1, "what was sent: no task waits for an answer"
    first = journal.blobs.put(b"model 1")
    journal.save_checkpoint(1, first)
    assert journal.collect() == 2, "the updates are in the checkpoint"
    second = journal.blobs.put(b"model 2")
    assert journal.collect() == 0, "model 2 is pinned until it is referred to"
    journal.save_checkpoint(2, second)
    assert journal.checkpoint() == Checkpoint(2, second)
    with pytest.raises(JournalMismatch, match="would lead back"):
        journal.save_checkpoint(1, second)
    assert journal.collect() == 1
    assert list(journal.blobs.digests()) == [second]


def test_a_blob_is_pinned_as_often_as_it_was_put_and_not_beyond_the_process(journal: Journal) -> None:
    for _ in range(2):
        digest = journal.blobs.put(b"same bytes")
    accepted_by_a = journal.accept(1, "a", digest, 10, {})
    journal.settle(1, Fate.REFUSED)
    assert journal.collect() == 0, "the other one has yet to be accepted"
    assert journal.accept(2, "b", digest, 10, {}).number == accepted_by_a.number + 1
    journal.settle(2, Fate.REFUSED)
    assert journal.collect() == 1
    journal.blobs.put([b"in ", b"pieces"])
    journal = reopened(journal)
    assert list(journal.blobs.digests()) == []
    journal.close()


def test_what_the_giver_of_bytes_raises_is_not_said_to_be_the_disk(journal: Journal) -> None:
    def cut() -> Iterator[bytes]:
        yield b"first piece"
        raise ConnectionResetError("the client is gone")

    with pytest.raises(ConnectionResetError):
        journal.blobs.put(cut())
    assert list((journal.folder / "incoming").iterdir()) == list(journal.blobs.digests()) == []


def test_a_blob_is_its_bytes(journal: Journal) -> None:
    for data in (b"", b"x", b"many" * 10**6):
        digest = journal.blobs.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        with journal.blobs.open(digest) as file:
            assert file.read() == data
    with pytest.raises(JournalError, match="cannot be read"):
        journal.blobs.open(NOBODY)
    journal.blobs.release(digest)
    journal.blobs.release(digest)  # once too often does no harm
    assert journal.collect() == 1


# ---- uploads --------------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_its_last_part_ended(journal: Journal) -> None:
    data = bytes(range(256)) * 4
    digest = sha256(data)
    assert journal.uploads.begin("a", digest, 1024) == 0
    assert journal.uploads.write("a", digest, 0, data[:300]) == 300
    assert journal.uploads.write("a", digest, 300, b"") == 300
    journal = reopened(journal)
    assert journal.uploads.begin("a", digest, 1024) == 300
    with pytest.raises(RequestDenied, match="300 of 1024 bytes") as denied:
        journal.uploads.finish("a", digest)
    assert denied.value.denial is Denial.INCOMPLETE
    assert journal.uploads.write("a", digest, 300, data[300:]) == 1024
    journal.uploads.finish("a", digest)
    journal.uploads.finish("a", digest)
    assert journal.collect() == 0
    journal = reopened(journal)
    assert journal.uploads.begin("a", digest, 1024) == 1024, "whole, though not accepted before the restart"
    journal.uploads.finish("a", digest)
    assert journal.accept(1, "a", digest, 1024, {}).verdict is Verdict.ACCEPTED
    assert list((journal.folder / "incoming").iterdir()) == []
    with pytest.raises(RequestDenied) as denied:
        journal.uploads.finish("a", digest)
    assert denied.value.denial is Denial.NO_UPLOAD
    journal.close()


def test_bytes_of_another_digest_never_become_a_blob(journal: Journal) -> None:
    journal.uploads.begin("a", NOBODY, 4)
    journal.uploads.write("a", NOBODY, 0, b"evil")
    with pytest.raises(RequestDenied, match="do not have the SHA-256") as denied:
        journal.uploads.finish("a", NOBODY)
    assert denied.value.denial is Denial.WRONG_DIGEST
    assert list(journal.blobs.digests()) == list((journal.folder / "incoming").iterdir()) == []
    assert journal.uploads.begin("a", NOBODY, 4) == 0


@pytest.mark.parametrize(
    ("digest", "size", "denial"),
    [(NOBODY, 0, Denial.WRONG_SIZE), (NOBODY, -1, Denial.WRONG_SIZE), (NOBODY, 2**20 + 1, Denial.WRONG_SIZE),
     ("../../etc", 4, Denial.BAD_DIGEST), (NOBODY + "\n", 4, Denial.BAD_DIGEST), ("A" * 64, 4, Denial.BAD_DIGEST)],
)  # fmt: skip
def test_a_size_or_digest_that_is_not_allowed_is_refused_before_anything_is_written(
    digest: str, size: int, denial: Denial, journal: Journal
) -> None:
    with pytest.raises(RequestDenied) as denied:
        journal.uploads.begin("a", digest, size)
    assert denied.value.denial is denial
    assert journal._db.all("SELECT * FROM uploads") == list((journal.folder / "incoming").iterdir()) == []


def test_parts_that_do_not_follow_are_refused(journal: Journal) -> None:
    digest = sha256(b"12345678")
    journal.uploads.begin("a", digest, 8)
    journal.uploads.write("a", digest, 0, b"123")
    for at, data, denial in (
        (0, b"123", Denial.WRONG_OFFSET), (4, b"5", Denial.WRONG_OFFSET), (3, b"456789", Denial.WRONG_SIZE),
    ):  # fmt: skip
        with pytest.raises(RequestDenied) as denied:
            journal.uploads.write("a", digest, at, data)
        assert denied.value.denial is denial
    with pytest.raises(RequestDenied, match="begun no upload"):
        journal.uploads.write("b", digest, 3, b"45678")
    journal.uploads.write("a", digest, 3, b"45678")
    journal.uploads.finish("a", digest)


def test_a_client_has_one_upload_and_may_begin_another(journal: Journal) -> None:
    first, second = b"first upload", b"second"
    journal.uploads.begin("a", sha256(first), len(first))
    journal.uploads.write("a", sha256(first), 0, first)
    assert journal.uploads.begin("a", sha256(second), len(second)) == 0
    journal.uploads.write("a", sha256(second), 0, second)
    journal.uploads.finish("a", sha256(second))
    journal.uploads.drop("a")
    journal.uploads.drop("a")
    assert journal.collect() == 1


def test_two_clients_may_upload_the_same_bytes_in_any_ids(journal: Journal) -> None:
    digest = sha256(b"same")
    for client in ("a/../b", "..", "\0", "ü" * 300):
        journal.uploads.begin(client, digest, 4)
        journal.uploads.write(client, digest, 0, b"same")
        journal.uploads.finish(client, digest)
    assert list(journal.blobs.digests()) == [digest]
    assert {path.name for path in journal.folder.iterdir()} >= {"blobs", "incoming", "journal.db"}


def test_an_upload_never_writes_into_a_blob(journal: Journal) -> None:
    """A crash in a rename may leave both names, of one file."""
    digest = journal.blobs.put(b"a blob")
    journal.blobs.part("a").hardlink_to(journal.blobs.path(digest))
    journal.uploads.begin("a", NOBODY, 5)
    journal.uploads.write("a", NOBODY, 0, b"other")
    assert journal.blobs.path(digest).read_bytes() == b"a blob"


def test_parts_that_were_removed_by_hand_are_asked_for_again(journal: Journal) -> None:
    digest = sha256(b"12345678")
    journal.uploads.begin("a", digest, 8)
    journal.uploads.write("a", digest, 0, b"12345678")
    (left,) = (journal.folder / "incoming").iterdir()
    left.unlink()
    assert journal.uploads.begin("a", digest, 8) == 0


def test_of_two_calls_for_one_client_at_the_same_time_one_is_denied(journal: Journal) -> None:
    digest = sha256(b"12345678")
    journal.uploads.begin("a", digest, 8)
    with journal.uploads._alone("a"), pytest.raises(RequestDenied) as denied:
        journal.uploads.write("a", digest, 0, b"1")
    assert denied.value.denial is Denial.BUSY
    assert journal.uploads.write("a", digest, 0, b"1") == 1


def test_threads_may_share_a_journal(journal: Journal) -> None:
    """Blobs from threads, one of them from all; collections and commits beside them."""
    problems: list[BaseException] = []
    tasks = [Task(10 + i, "abc"[i % 3], 1) for i in range(24)]
    journal.tasks.open(tasks)

    def work(mine: list[Task]) -> None:
        try:
            for task in mine:
                data = b"shared" if task.id % 2 else b"own %d" % task.id
                assert accepted(journal, task.id, task.client, data).verdict is Verdict.ACCEPTED
                journal.clients.advance(task.client, key_of(task.client), task.id)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(tasks[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert journal.collect() == 0
    assert problems == []
    assert sorted(one.number for one in journal.updates()) == list(range(1, 25))
    assert len(list(journal.blobs.digests())) == 13

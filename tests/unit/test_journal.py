"""The journal, undisturbed: what each method writes, returns and refuses. What crashes and disks do: tests/faults."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crashes import Recorder
from journals import JOB, RUN, accepted, advance, first_round, key_of, opened, reopened, sha256

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Answer, Participant, Run, Verdict
from roundelay.errors import JournalError, JournalMismatch

NOBODY = "0" * 64
journal = pytest.fixture(first_round)


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
    writer = journal._db._connection
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert writer.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_who_reads_waits_for_no_transaction_and_sees_none_that_has_not_ended(journal: Journal) -> None:
    with ThreadPoolExecutor(1) as other, journal._db.writing("a test") as db:
        db.execute("INSERT INTO clients (client, key_digest) VALUES ('new', ?)", (key_of("new"),))
        assert other.submit(journal.clients.takes_part, "new").result(10) is False
        assert journal.clients.takes_part("new"), "whoever writes reads what it has written"
    assert journal.clients.takes_part("new")


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


def test_what_a_workflow_was_told_is_told_again_in_order(journal: Journal) -> None:
    contents = [{"cohort": ["a", "b"]}, [1, 2.5, None], "text", True]
    assert [journal.record(f"kind {i}", content) for i, content in enumerate(contents)] == [1, 2, 3, 4]
    journal = reopened(journal)
    assert journal.recorded() == tuple(Answer(i + 1, f"kind {i}", content) for i, content in enumerate(contents))
    assert journal.recorded(after=3) == (Answer(4, "kind 3", True),)
    journal.close()


# ---- clients --------------------------------------------------------------------------------------------------------


def test_a_client_takes_part_once_however_often_it_is_admitted(journal: Journal) -> None:
    assert journal.clients.admit("a", key_of("a")) == Participant("a", key_of("a"), -1)
    assert advance(journal, "a", key_of("a"), 4)
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
    assert [advance(journal, "a", key, number) for number in (0, 1, 1, 0, 7)] == [True, True, False, False, True]
    journal = reopened(journal)
    assert [advance(journal, "a", key, number) for number in (7, 3, -1, 2**63, 10**30)] == [False] * 5
    assert advance(journal, "a", key, 2**63 - 1)
    assert not advance(journal, "nobody", key, 1)
    assert not advance(journal, "b", key, 1), "another client's key"
    journal.close()


def test_another_key_begins_a_new_sequence_and_the_old_one_stays_where_it_was(journal: Journal) -> None:
    old, new = key_of("a"), key_of("a on a new machine")
    advance(journal, "a", old, 100)
    assert not advance(journal, "a", new, 1), "not before it was admitted"
    assert journal.clients.admit("a", new).sequence == -1
    assert advance(journal, "a", old, 101), "a request that was under way when the key changed"
    assert advance(journal, "a", new, 1), "whose number is not one of the new key"
    journal = reopened(journal)
    assert journal.clients.admit("a", old).sequence == 101
    assert not advance(journal, "a", old, 50), "captured before the key changed"
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

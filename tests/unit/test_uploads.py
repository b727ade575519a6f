"""Blobs and uploads of the journal: pins, collection, parts that follow each other, and what is refused."""

import errno
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from journals import accepted, advance, begun, first_round, key_of, opened, reopened, sha256

from roundelay.deployment.journal import blobs
from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Checkpoint, Denial, Fate, RequestDenied, Verdict
from roundelay.deployment.journal.uploads import Uploads
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task

NOBODY = "0" * 64
journal = pytest.fixture(first_round)


# ---- what is kept, and for how long ---------------------------------------------------------------------------------


def test_collection_takes_what_nothing_refers_to_and_nothing_else(journal: Journal) -> None:
    sent = journal.blobs.put(b"version 1")
    journal.tasks.open([Task(4, "a", 1), Task(5, "b", 1)], sent)
    for task, client in ((1, "a"), (2, "b"), (4, "a")):
        accepted(journal, task, client, f"update {task}".encode())
    journal.settle(4, Fate.REFUSED, "wrong length")
    assert journal.collect() == 0, "the refused one is heard of again by a run that goes on from before"
    journal.rounds.close(1, 0, [1, 2])
    assert journal.collect() == 1, "what was sent: no task waits for an answer"
    first = journal.blobs.put(b"model 1")
    journal.save_checkpoint(1, first)
    assert journal.collect() == 3, "the updates are in the checkpoint, or were refused before it"
    second = journal.blobs.put(b"model 2")
    assert journal.collect() == 0, "model 2 is pinned until it is referred to"
    journal.save_checkpoint(2, second)
    assert journal.checkpoint() == Checkpoint(2, second)
    with pytest.raises(JournalMismatch, match="would lead back"):
        journal.save_checkpoint(1, second)
    assert journal.collect() == 1
    assert list(journal.blobs.digests()) == [second]


def test_what_no_round_folds_is_kept_until_a_later_round_than_it_is_about(journal: Journal) -> None:
    """Asked before that round's checkpoint, or after it: a run that goes on from it finds the answer."""
    journal.save_checkpoint(1, journal.blobs.put(b"model 1"))
    for task, number in ((4, 0), (5, 1), (6, 2)):
        journal.tasks.open([Task(task, "a", number, kind="submit")])
        accepted(journal, task, "a", b"model of a, %d" % number)
        if number:
            journal.settle(task, Fate.ADMITTED)
    for gone in (1, 0):
        assert journal.collect() == gone
    journal = reopened(journal)
    journal.save_checkpoint(2, journal.blobs.put(b"model 2"))
    assert journal.collect() == 2, "model 1, and what was said of it"
    journal.blobs.require(sha256(b"model of a, 2"))
    journal.close()


def test_what_a_lost_client_was_sent_is_needed_no_more(journal: Journal) -> None:
    journal.tasks.open([Task(4, "a", 1), Task(5, "b", 1)], journal.blobs.put(b"version 1"))
    journal.tasks.lose(4, "was silent")
    assert journal.collect() == 0
    journal.tasks.lose(5, "was silent")
    assert journal.collect() == 1


def test_a_blob_is_pinned_as_often_as_it_was_put_and_not_beyond_the_process(journal: Journal) -> None:
    for _ in range(2):
        digest = journal.blobs.put(b"same bytes")
    accepted_by_a = journal.accept(1, "a", digest, 10, {})
    journal.settle(1, Fate.REFUSED)
    assert journal.collect() == 0, "the other one has yet to be accepted"
    assert journal.accept(2, "b", digest, 10, {}).number == accepted_by_a.number + 1
    journal.settle(2, Fate.REFUSED)
    assert journal.collect() == 0, "a run that goes on from before will hear of it again"
    journal.save_checkpoint(1, journal.blobs.put(b"model 1"))
    assert journal.collect() == 1
    journal.blobs.put([b"in ", b"pieces"])
    journal = reopened(journal)
    assert list(journal.blobs.digests()) == [sha256(b"model 1")]
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


def check_a_damaged_blob(folder: Path) -> None:
    with opened(folder) as journal:
        begun(journal)
        accepted(journal, 1, "a", b"update")
        path = journal.blobs.path(sha256(b"update"))
    path.write_bytes(b"updaTe")
    with opened(folder) as journal, pytest.raises(JournalError, match="damaged on the disk"):
        journal.blobs.open(sha256(b"update")).close()


def test_a_blob_that_was_damaged_while_the_server_stood_still_is_found_out(tmp_path: Path) -> None:
    check_a_damaged_blob(tmp_path)


def test_a_journal_that_believes_what_it_finds_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_digest_of", lambda path: path.name)
    with pytest.raises(pytest.fail.Exception):
        check_a_damaged_blob(tmp_path)


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


class FullOnce(Disk):
    """Has no room for the write number ``at``, half of which it takes."""

    at = 0

    def write(self, file: int, data: memoryview, offset: int) -> int:
        self.at -= 1
        if not self.at:
            super().write(file, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "planted")
        return super().write(file, data, offset)


def check_a_part_that_came_twice(folder: Path) -> None:
    """What is hashed while it comes is what is on disk: a part that found no room is not counted, and hashed once."""
    disk, data = FullOnce(), bytes(range(256)) * 4
    with opened(folder, disk) as journal:
        begun(journal)
        journal.uploads.begin("a", sha256(data), 1024)
        journal.uploads.write("a", sha256(data), 0, [data[:100], data[100:300]])
        disk.at = 2
        with pytest.raises(JournalError, match="make room"):
            journal.uploads.write("a", sha256(data), 300, [data[300:700], data[700:]])
        assert journal.uploads.begin("a", sha256(data), 1024) == 300
        journal.uploads.write("a", sha256(data), 300, data[300:])
        journal.uploads.finish("a", sha256(data))
        assert journal.blobs.path(sha256(data)).read_bytes() == data


def test_a_part_that_came_twice_counts_once(tmp_path: Path) -> None:
    check_a_part_that_came_twice(tmp_path / "run")


def test_a_part_that_is_hashed_before_it_is_written_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Blobs.append

    def planted(self: Blobs, part: Path, pieces: Sequence[bytes], offset: int) -> None:
        uploads = hashing[0]
        _, hasher = uploads._hashed.get("a", (0, hashlib.sha256()))
        for piece in pieces:
            hasher.update(piece)
        uploads._hashed["a"] = (offset + sum(map(len, pieces)), hasher)
        append(self, part, pieces, offset)

    class Planted(Uploads):
        def write(self, client: str, digest: str, offset: int, data: bytes | Sequence[bytes]) -> int:
            hashing[:] = [self]
            pieces = [data] if isinstance(data, bytes) else data
            self._blobs.append(self._blobs.part(client), pieces, offset)
            end = offset + sum(map(len, pieces))
            with self._db.writing("planted") as db:
                db.execute("UPDATE uploads SET received = ? WHERE client = ?", (end, client))
            return end

    hashing: list[Uploads] = []
    monkeypatch.setattr(Blobs, "append", planted)
    monkeypatch.setattr("roundelay.deployment.journal.journal.Uploads", Planted)
    with pytest.raises(RequestDenied, match="do not have the SHA-256"):
        check_a_part_that_came_twice(tmp_path / "run")


def test_an_upload_that_was_begun_before_a_restart_is_read_before_it_is_believed(journal: Journal) -> None:
    journal.uploads.begin("a", sha256(b"12345678"), 8)
    journal.uploads.write("a", sha256(b"12345678"), 0, b"1234")
    journal = reopened(journal)
    with journal.blobs.part("a").open("r+b") as file:
        file.write(b"X")
    journal.uploads.write("a", sha256(b"12345678"), 4, b"5678")
    with pytest.raises(RequestDenied, match="do not have the SHA-256"):
        journal.uploads.finish("a", sha256(b"12345678"))
    journal.close()


def test_an_upload_in_one_part_is_a_blob_at_once_and_pinned_until_it_is_accepted(journal: Journal) -> None:
    digest, uploads = sha256(b"12345678"), journal.uploads
    for pieces in ([b"1234567"], [b"1234", b"5679"]):
        with pytest.raises(RequestDenied, match="do not have"):
            uploads.take_whole("a", digest, pieces)
        assert list(journal.blobs.digests()) == list((journal.folder / "incoming").iterdir()) == []
    uploads.begin("a", digest, 8)
    uploads.write("a", digest, 0, b"123")
    uploads.take_whole("a", digest, [b"1234", b"5678"])
    assert uploads.received("a", digest, 8) is None, "the one that was begun is forgotten"
    assert journal.collect() == 0
    assert journal.accept(1, "a", digest, 8, {}).verdict is Verdict.ACCEPTED
    assert journal._db.all("SELECT * FROM uploads") == list((journal.folder / "incoming").iterdir()) == []


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
                advance(journal, task.client, key_of(task.client), task.id)
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

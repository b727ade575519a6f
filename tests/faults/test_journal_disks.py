"""The journal on a disk that fails: full, broken, or writing less than it was given, at each call of a short run.

Nothing that fails is acknowledged or half visible. After a sync that failed nothing more is written until the journal
is opened anew; after everything else work goes on as soon as the disk does. The run ends as if nothing had been.
"""

import errno
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from journals import accepted, begun, check, opened, quick_folder, result, serve, sha256

from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.disk import Disk, Fuse, write_all
from roundelay.deployment.journal.journal import Journal
from roundelay.errors import JournalError

HOWS = ("full", "broken", "broken after", "short", "short, then full")
SYNCS = ("sync", "sync_folder")


class Failing(Disk):
    """Fails in one call, the ``at``-th, and never again. "broken after": the call did its work and fails all the same;
    a commit that cannot be synced may be found in the log when it is opened anew.
    """

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.at, self.how = at, how
        self.calls: list[str] = []
        self.failed, self.was_short = "", False

    def _call(self, name: str, do: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if len(self.calls) != self.at:
            return do()
        if name == "write" and self.how.startswith("short") and not self.was_short:
            self.was_short = True
            self.at += self.how == "short, then full"  # the next call, which writes what is left
            return None
        if self.how == "short":
            return do()
        self.failed = name
        if self.how == "broken after":
            do()
        if name == "commit":
            full = self.how != "broken" and self.how != "broken after"
            error = sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR | (4 << 8)
            raise error
        code = errno.EIO if self.how.startswith("broken") else errno.ENOSPC
        raise OSError(code, "planted")

    def make_folder(self, path: Path) -> None:
        self._call("make_folder", lambda: super(Failing, self).make_folder(path))

    def open(self, path: Path, fresh: bool) -> int:
        if self.how == "broken after":  # nobody would close the file
            return super().open(path, fresh)
        return int(self._call("open", lambda: super(Failing, self).open(path, fresh)))

    def write(self, file: int, data: memoryview, offset: int) -> int:
        written = self._call("write", lambda: super(Failing, self).write(file, data, offset))
        if written is None:
            return super().write(file, data[: len(data) // 2 + 1], offset)
        return int(written)

    def sync(self, file: int) -> None:
        self._call("sync", lambda: super(Failing, self).sync(file))

    def close(self, file: int) -> None:
        super().close(file)
        self._call("close", lambda: None)

    def replace(self, source: Path, target: Path) -> None:
        self._call("replace", lambda: super(Failing, self).replace(source, target))

    def remove(self, path: Path) -> None:
        self._call("remove", lambda: super(Failing, self).remove(path))

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder", lambda: super(Failing, self).sync_folder(path))

    def commit(self, connection: sqlite3.Connection) -> None:
        self._call("commit", lambda: super(Failing, self).commit(connection))


def undisturbed() -> tuple[Sequence[str], tuple[object, ...]]:
    """Which calls a run makes, and what it comes to when it was opened once more."""
    with quick_folder() as root:
        disk = Failing(0, "")
        with opened(Path(root) / "run", disk) as journal:
            serve(journal, lambda *_: None)
        with opened(Path(root) / "run") as journal:
            return disk.calls, result(journal)


def endure(at: int, how: str, whole: tuple[object, ...]) -> str:
    """Let one call of a run fail. Return which one it was, or "" where the run never noticed."""
    told: list[tuple[object, ...]] = []
    with quick_folder() as root:
        disk, folder = Failing(at, how), Path(root) / "run"
        journal, noticed = None, 0
        while True:
            try:
                journal = journal or opened(folder, disk)
                serve(journal, lambda *what: told.append(what))
                break
            except JournalError as error:
                noticed, message = noticed + 1, str(error)
                assert noticed == 1, "the disk failed once only"
                assert str(folder) in message
                if journal is not None and "takes no more writes" in message:
                    with pytest.raises(JournalError, match="takes no more writes"):
                        journal.record("anything", 1)
                    with pytest.raises(JournalError, match="takes no more writes"):
                        journal.blobs.put(b"anything")
                    journal.close()
                    journal = None
                else:
                    assert disk.failed not in SYNCS or journal is None, "a sync failed, and it goes on"
                if journal is not None:
                    check(journal, told)
        check(journal, told)
        journal.close()
        with opened(folder) as again:
            check(again, told)
            assert result(again) == whole
    return disk.failed if noticed else ""


def check_failures(figures: Figures, hows: Sequence[str], every: int) -> set[str]:
    """Let every so manyth call of a run fail, each in a run of its own, in these ways by turns; return which of them
    were noticed.
    """
    calls, whole = undisturbed()
    noticed: Counter[str] = Counter()
    for at in range(1, len(calls) + 1, every):
        how = hows[at % len(hows)]
        strikes = {"short": calls[at - 1] == "write", "broken after": at <= len(calls) - calls.count("open")}
        if strikes.get(how, True):
            noticed[endure(at, how, whole)] += 1
    figures("runs in which a call failed or wrote less than it was given", noticed.total())
    figures("of them, runs that could go on without noticing", noticed.pop("", 0))
    return set(noticed)


def test_a_disk_that_fails_in_any_call_costs_nothing_that_was_acknowledged(figures: Figures) -> None:
    """Each call fails in one of the ways; the chaotic version has all of them."""
    noticed = check_failures(figures, HOWS, every=3)
    assert noticed >= {"open", "write", "sync", "replace", "sync_folder", "commit"}


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", HOWS)
def test_a_disk_may_fail_in_every_way_in_every_call(how: str, figures: Figures) -> None:
    noticed = check_failures(figures, (how,), every=1)
    assert noticed >= {"sync", "replace", "sync_folder", "commit"} or how == "short"


def test_a_full_database_is_said_and_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        begun(journal)
        pages = journal._db.one("PRAGMA page_count")
        assert pages is not None
        journal._db._connection.execute(f"PRAGMA max_page_count = {pages[0]}")
        numbers: list[int] = []
        with pytest.raises(JournalError, match=r"recording an answer \(long\) failed .* make room"):
            numbers.extend(journal.record("long", "x" * 1000) for _ in range(10**6))
        recorded = len(numbers)
        digest = journal.blobs.put(b"update")
        with pytest.raises(JournalError, match="make room"):
            journal.accept(1, "a", digest, 6, {"note": "x" * 10_000})
        assert (len(journal.recorded()), journal.updates()) == (recorded, ())
        journal._db._connection.execute("PRAGMA max_page_count = 1000000")
        assert journal.accept(1, "a", digest, 6, {"note": "x" * 10_000}).number == 1
        assert journal.record("long", "y") == recorded + 1


# ---- planted bugs ---------------------------------------------------------------------------------------------------

Planting = Callable[[pytest.MonkeyPatch], None]


def go_on_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fuse, "blow", Fuse.passing)


def remove_what_was_there_before(patch: pytest.MonkeyPatch) -> None:
    """A blob whose folder cannot be synced is removed, also where it had been acknowledged long ago."""
    place = Blobs._place

    def planted(self: Blobs, temporary: Path, digest: str, pins: int) -> None:
        try:
            place(self, temporary, digest, pins)
        except JournalError:
            self.path(digest).unlink(missing_ok=True)
            raise

    patch.setattr(Blobs, "_place", planted)


def write_under_the_last_name(patch: pytest.MonkeyPatch) -> None:
    def put(self: Blobs, data: bytes | Iterable[bytes]) -> str:
        assert isinstance(data, bytes)
        self._fuse.check()
        digest = hashlib.sha256(data).hexdigest()
        if not self.path(digest).exists():
            self._make_folder(self.path(digest).parent)
            try:
                file = self._disk.open(self.path(digest), fresh=True)
                write_all(self._disk, file, data, 0)
                self._sync(file)
                self._disk.close(file)
            except OSError as error:
                raise self._fuse.passing("writing a blob", error) from error
        self._sync_folder(self.path(digest).parent)
        self._pinned[digest] += 1
        return digest

    patch.setattr(Blobs, "put", put)


def believe_in_whole_writes(patch: pytest.MonkeyPatch) -> None:
    def write(disk: Disk, file: int, data: bytes, offset: int) -> None:
        disk.write(file, memoryview(data), offset)

    patch.setattr("roundelay.deployment.journal.blobs.write_all", write)


def acknowledge_what_was_not_committed(patch: pytest.MonkeyPatch) -> None:
    accept = Journal.accept

    def planted(self: Journal, task_id: int, client: str, digest: str, size: int, fields: Any) -> Any:
        try:
            return accept(self, task_id, client, digest, size, fields)
        except JournalError:
            return accept.__globals__["Ack"](task_id, digest, accept.__globals__["Verdict"].ACCEPTED, 99)

    patch.setattr(Journal, "accept", planted)


def leave_transactions_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("roundelay.deployment.journal.database.Database._roll_back", lambda self: None)


PLANTINGS: dict[str, tuple[Planting, str]] = {
    "going on after a failed sync": (go_on_after_a_failed_sync, "broken"),
    "writing under the last name": (write_under_the_last_name, "full"),
    "believing in whole writes": (believe_in_whole_writes, "short"),
    "acknowledging what was not committed": (acknowledge_what_was_not_committed, "full"),
    "leaving transactions open": (leave_transactions_open, "full"),
}


@pytest.mark.parametrize(("plant", "how"), PLANTINGS.values(), ids=PLANTINGS)
def test_the_check_of_disks_catches(plant: Planting, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = undisturbed()
    plant(monkeypatch)
    with pytest.raises((AssertionError, JournalError, pytest.fail.Exception)):
        _ = [endure(at, how, whole) for at in range(1, len(calls) + 1)]


def check_what_was_there_before(folder: Path) -> None:
    """The contract: whoever sends again what was acknowledged before a restart, to a failing disk, harms nobody."""
    with opened(folder) as journal:
        begun(journal)
        accepted(journal, 1, "a", b"update")
    for how in ("broken", "full"):
        disk = Failing(0, how)
        with opened(folder, disk) as journal:
            disk.at = len(disk.calls) + 4  # after open, write and sync comes close
            while disk.failed != "sync_folder":
                disk.at += 1
                with pytest.raises(JournalError):
                    journal.blobs.put(b"update")
        with opened(folder) as journal, journal.blobs.open(sha256(b"update")) as file:
            assert file.read() == b"update"


def test_a_failed_sync_takes_nothing_that_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_what_was_there_before(tmp_path / "right")
    remove_what_was_there_before(monkeypatch)
    with pytest.raises(JournalError, match="which the update of task 1 needs, is not there"):
        check_what_was_there_before(tmp_path / "planted")

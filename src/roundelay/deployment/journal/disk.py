"""How the journal's bytes reach the disk: few calls, in one place, so that tests can record each or make it fail.

``Fuse`` remembers that the disk failed in a way after which nothing can be believed.
"""

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roundelay.errors import DiskError, JournalError

FULL = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """The real one. A file is what ``os.open`` returned; ``write`` may write less than it was given."""

    def __init__(self, on_sync: Callable[[float], object] = lambda seconds: None) -> None:
        """``on_sync(seconds)`` hears, in whatever thread, what each sync and each commit has taken."""
        self._on_sync = on_sync

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def open(self, path: Path, fresh: bool) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
        return os.open(path, flags, 0o600)

    def write(self, file: int, data: memoryview, offset: int) -> int:
        return os.pwrite(file, data, offset)

    def sync(self, file: int) -> None:
        with self._timed():
            os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._timed():
                os.fsync(folder)
        finally:
            os.close(folder)

    def commit(self, connection: sqlite3.Connection) -> None:
        """End a transaction; with ``synchronous = FULL`` it is on disk when this returns."""
        with self._timed():
            connection.execute("COMMIT")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self._on_sync(time.monotonic() - begun)


def write_all(disk: Disk, file: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write until nothing is left.

    Raises:
        OSError: the disk took not all of it.
    """
    left = memoryview(data)
    while left:
        written = disk.write(file, left, offset)
        if not written:
            raise OSError(errno.EIO, "the disk took none of the bytes")
        left, offset = left[written:], offset + written


class Fuse:
    """Lets writes through until a sync fails. The kernel may then have dropped what it could not write and call the
    next sync a success, so that only a journal that is opened anew, and reads what is there, can be believed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blown: str | None = None

    def check(self) -> None:
        """Raises:
        JournalError: the fuse has blown.
        """
        if self._blown is not None:
            raise JournalError(self._blown)

    def passing(self, doing: str, cause: Exception) -> DiskError:
        """Return the error for a failure after which the journal can go on."""
        advice = (
            "make room; the journal then goes on by itself"
            if _is_full(cause)
            else "the journal goes on once the cause is gone"
        )
        return DiskError(
            f"journal {self._folder}: {doing} failed ({cause}); nothing of it was acknowledged or kept: {advice}"
        )

    def blow(self, doing: str, cause: Exception) -> JournalError:
        """Refuse every later write, and return the error that says so."""
        if self._blown is None:
            self._blown = (
                f"journal {self._folder}: {doing} failed ({cause}); as it is not known what reached the disk, the "
                "journal takes no more writes: check the disk and its free room, then start the server again"
            )
        return JournalError(self._blown)

    def close(self) -> None:
        """Refuse every later write because the journal was closed."""
        if self._blown is None:
            self._blown = f"journal {self._folder} was closed"


def _is_full(cause: Exception) -> bool:
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return isinstance(cause, OSError) and cause.errno in FULL

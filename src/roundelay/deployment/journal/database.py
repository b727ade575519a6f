"""The journal's tables: SQLite in one file, where a transaction that has returned is on disk."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from roundelay.deployment.journal.disk import Disk, Fuse, write_all
from roundelay.errors import JournalError

VERSION = 1
SCHEMA = (
    "CREATE TABLE run (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, job TEXT NOT NULL) STRICT",
    """
    CREATE TABLE clients (
        client TEXT NOT NULL,
        key_digest TEXT NOT NULL,
        sequence INTEGER NOT NULL DEFAULT -1,
        PRIMARY KEY (client, key_digest)
    ) STRICT
    """,
    """
    CREATE TABLE rounds (
        number INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        round_group TEXT NOT NULL,
        cohort TEXT NOT NULL,
        goal INTEGER,
        deadline_s REAL,
        elapsed_s REAL NOT NULL DEFAULT 0,
        state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
        PRIMARY KEY (number, attempt, round_group)
    ) STRICT
    """,
    # no foreign key to rounds: "evaluate" and "submit" tasks name a model version, which need not be an opened round
    """
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY,
        client TEXT NOT NULL,
        round INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        round_group TEXT NOT NULL,
        kind TEXT NOT NULL,
        config TEXT NOT NULL,
        sent TEXT,
        memory INTEGER,
        state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'received', 'closed', 'lost')),
        reason TEXT NOT NULL DEFAULT '',
        traceback TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    "CREATE INDEX tasks_by_round ON tasks (round, attempt, client)",
    "CREATE INDEX tasks_by_client ON tasks (client) WHERE state = 'open'",
    "CREATE INDEX tasks_by_sent ON tasks (sent) WHERE state = 'open'",
    """
    CREATE TABLE updates (
        number INTEGER PRIMARY KEY,
        task INTEGER NOT NULL UNIQUE REFERENCES tasks,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        fields TEXT NOT NULL,
        fate TEXT CHECK (fate IN ('admitted', 'refused', 'late')),
        reason TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    "CREATE INDEX updates_by_digest ON updates (digest)",
    """
    CREATE TABLE members (
        round INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        round_group TEXT NOT NULL,
        position INTEGER NOT NULL,
        task INTEGER NOT NULL UNIQUE REFERENCES updates (task),
        PRIMARY KEY (round, attempt, round_group, position),
        FOREIGN KEY (round, attempt, round_group) REFERENCES rounds
    ) STRICT
    """,
    "CREATE TABLE committed (client TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES updates (task)) STRICT",
    "CREATE TABLE answers (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, content TEXT NOT NULL) STRICT",
    "CREATE TABLE checkpoints (round INTEGER PRIMARY KEY, digest TEXT NOT NULL) STRICT",
    """
    CREATE TABLE uploads (
        client TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        received INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    # the blobs that must be there, and who needs them: an update until it came too late, or a checkpoint holds the
    # round that folded or refused it; what a task was sent until the task is answered; every checkpoint. No round folds
    # the answers to "evaluate" and "submit" tasks: they are needed until there is a checkpoint of a later round than
    # they name, since a run that goes on from the checkpoint of round n may have asked what became of version n
    # already, as cross-site evaluation does after the last round
    """
    CREATE VIEW needed (digest, holder) AS
        SELECT updates.digest, 'the update of task ' || tasks.id
            FROM updates
            JOIN tasks ON tasks.id = updates.task
            LEFT JOIN members ON members.task = updates.task
            WHERE CASE
                WHEN tasks.kind <> 'train' THEN COALESCE(tasks.round >= (SELECT MAX(round) FROM checkpoints), TRUE)
                WHEN updates.fate IS NULL THEN TRUE
                WHEN updates.fate = 'late' THEN FALSE
                WHEN updates.fate = 'refused' THEN COALESCE(tasks.round > (SELECT MAX(round) FROM checkpoints), TRUE)
                ELSE COALESCE(members.round > (SELECT MAX(round) FROM checkpoints), TRUE)
            END
        UNION ALL SELECT sent, 'task ' || id FROM tasks WHERE state = 'open' AND sent IS NOT NULL
        UNION ALL SELECT digest, 'the checkpoint of round ' || round FROM checkpoints
    """,
)


class Database:
    """A connection that writes and one that reads, each used by one thread at a time, for the milliseconds that a call
    lasts: whoever reads waits for no sync, and sees what is on disk.
    """

    def __init__(self, path: Path, disk: Disk, fuse: Fuse) -> None:
        self._path, self._disk, self._fuse = path, disk, fuse
        self._lock, self._reading = threading.RLock(), threading.Lock()
        self._writer = 0  # the thread in a transaction, which reads what it has written
        if sqlite3.sqlite_version_info < (3, 37):
            raise JournalError(
                f"a journal needs SQLite 3.37 or later, this Python comes with {sqlite3.sqlite_version}; use a newer "
                "Python or system"
            )
        self._write_log_anew()
        self._connection = self._connected()
        try:
            self._prepare()
            self._reader = self._connected()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block has ended, or, where it raised, never begun.

        Raises:
            JournalError: it could not be written, in whole; ``doing`` names it.
        """
        with self._lock:
            self._fuse.check()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._writer = threading.get_ident()
                yield self._connection
                self._disk.commit(self._connection)
            except sqlite3.Error as error:
                failure = self._failure(doing, error)
                self._roll_back()
                raise failure from error
            except BaseException:
                self._roll_back()
                raise
            finally:
                self._writer = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep every other thread from writing."""
        with self._lock:
            yield

    def all(self, sql: str, *values: object) -> list[tuple[Any, ...]]:  # Any: what the tables hold
        try:
            if self._writer == threading.get_ident():
                return self._connection.execute(sql, values).fetchall()
            with self._reading:
                return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure("reading the database", error) from error

    def one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        rows = self.all(sql, *values)
        return rows[0] if rows else None

    def close(self) -> None:
        with self._lock, self._reading:
            self._reader.close()
            self._connection.close()

    def _connected(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except sqlite3.Error as error:
            raise self._failure("opening the database", error) from error

    def _write_log_anew(self) -> None:
        """Write what the log of the last process holds over itself, and sync it. Where a sync failed, the kernel may
        show pages that never reached the disk and count them as written; SQLite would believe the commits in them.
        """
        log = self._path.with_name(f"{self._path.name}-wal")
        if not log.exists():
            return
        try:
            file = self._disk.open(log, fresh=False)
            try:
                write_all(self._disk, file, log.read_bytes(), 0)
                self._disk.sync(file)
            finally:
                self._disk.close(file)
        except OSError as error:
            raise self._fuse.passing("reading the log of the database", error) from error

    def _prepare(self) -> None:
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            (num_tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if version > VERSION:
                raise JournalError(
                    f"{self._path} was written by a newer roundelay (tables of version {version}, this one knows up to "
                    f"{VERSION}); use the version that wrote it"
                )
            if version == 0 and num_tables:
                raise JournalError(f"{self._path} is a database, but no journal; give another folder")
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise self._failure("opening the database", error) from error
        if version == 0:
            with self.writing("making the tables") as db:
                for statement in SCHEMA:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")

    def _failure(self, doing: str, error: sqlite3.Error) -> JournalError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._fuse.blow(doing, error)
        return self._fuse.passing(doing, error)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:  # after some errors SQLite has done it already
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._fuse.blow("taking back a transaction", error)

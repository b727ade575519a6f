"""The journal: what a server of real devices remembers, so that ``kill -9`` costs nobody anything.

What a method has written is on disk when it returns. Every method may be called from any thread. Most take milliseconds
and may be called from an event loop; those that move bytes (``blobs.put``, ``uploads``) or walk over all of them
(``collect``) belong into a thread, where they keep nobody else waiting.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from roundelay.deployment.journal.blobs import Blobs
from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.disk import Disk, Fuse
from roundelay.deployment.journal.records import (
    Ack,
    Answer,
    Checkpoint,
    Fate,
    Fields,
    Received,
    Run,
    TaskState,
    Verdict,
)
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.journal.tasks import Tasks
from roundelay.deployment.journal.uploads import Uploads
from roundelay.errors import JournalError, JournalMismatch, NoJournal
from roundelay.messages import TaskKind

_RECEIVED = """
    SELECT updates.number, updates.task, tasks.client, updates.digest, updates.size, updates.fields, updates.fate,
        updates.reason
    FROM updates JOIN tasks ON tasks.id = updates.task
"""


class Journal:
    """The memory of one run, in a folder of its own that one process has open at a time.

    It holds no clock and decides nothing: callers say what time it is, and which round is open. Calls that repeat what
    was written return what they returned then; those that contradict it raise ``JournalMismatch`` and change nothing.
    """

    def __init__(
        self, folder: Path, run: Run | None, *, max_upload_bytes: int = 2**33, disk: Disk | None = None
    ) -> None:
        """Open the journal of ``run``, or begin it; with None open the one that is there, whatever its run.

        Raises:
            JournalError: it cannot be read or made, another process has it open, or a newer version wrote it.
            NoJournal: ``run`` is None, and there is none.
            JournalMismatch: it is the journal of another run; the message names what differs.
        """
        self.folder = folder
        disk, self._fuse = disk or Disk(), Fuse(folder)
        path = folder / "journal.db"
        if run is None and not path.exists():
            raise NoJournal(f"there is no journal in {folder}; give the folder of a run that was served")
        with ExitStack() as opened:
            opened.callback(os.close, _locked(folder, disk, self._fuse))
            self._db = Database(path, disk, self._fuse)
            opened.callback(self._db.close)
            self.run = self._same_run(folder, run)
            self.blobs = Blobs(folder, disk, self._fuse)
            self.uploads = Uploads(self._db, self.blobs, max_upload_bytes)
            self.clients, self.rounds = Clients(self._db), Rounds(self._db)
            self.tasks = Tasks(self._db, self.blobs, self.rounds)
            self._require_blobs(folder)
            self.collect()
            self._opened = opened.pop_all()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. May be repeated."""
        self._fuse.close()
        self._opened.close()

    def check(self) -> None:
        """Raises:
        JournalError: the disk failed in a way after which nothing can be written.
        """
        self._fuse.check()

    # ---- updates ----------------------------------------------------------------------------------------------------

    def accept(self, task_id: int, client: str, digest: str, size: int, fields: Fields) -> Ack:
        """Take a client's answer, whose blob is there, to its task. When this returns "accepted" the update is on disk
        for good, and only then may its client hear so. Of a repeated answer the first ``fields`` stand.

        Raises:
            JournalError: the blob is not there, or the disk failed; nothing was accepted.
        """
        if self.known_answer(task_id, client, digest) is None:
            self.blobs.require(digest, size)  # may wait for a sync, and others write meanwhile
        with self._db.writing(f"accepting the answer to task {task_id}") as db:
            ack = self.known_answer(task_id, client, digest)
            if ack is None:
                sql = "INSERT INTO updates (task, digest, size, fields) VALUES (?, ?, ?, ?)"
                number = db.execute(sql, (task_id, digest, size, json.dumps(dict(fields)))).lastrowid
                assert number is not None
                ack = Ack(task_id, digest, Verdict.ACCEPTED, number)
                db.execute("UPDATE tasks SET state = 'received' WHERE id = ?", (task_id,))
            db.execute("DELETE FROM uploads WHERE client = ? AND digest = ?", (client, digest))
        # whoever else has put the same bytes and loses this pin too is asked for them again: a rare and safe case
        self.blobs.release(digest)
        return ack

    def known_answer(self, task_id: int, client: str, digest: str) -> Ack | None:
        """Return what a task's state says to an answer without a look at it, or None where the task waits for one."""
        known = self.tasks.get(task_id)
        if known is None or known.task.client != client:
            return Ack(task_id, digest, Verdict.UNKNOWN)
        if known.state is TaskState.OPEN:
            return None
        first = self.update(task_id)
        if first is not None:
            if first.digest != digest:
                return Ack(task_id, digest, Verdict.CONFLICT)
            return Ack(task_id, digest, Verdict.ACCEPTED, first.number, duplicate=True)
        drawn = (known.task.round, known.task.attempt, known.group)
        stale = known.task.kind == "train" and self.rounds.was_drawn_again(*drawn)
        return Ack(task_id, digest, Verdict.STALE if stale else Verdict.LATE)

    def settle(self, task_id: int, fate: Fate, reason: str = "") -> None:
        """Note what became of an accepted update.

        Raises:
            JournalMismatch: there is no such update, or it met another fate.
        """
        with self._db.writing(f"noting the fate of task {task_id}") as db:
            known = self.update(task_id)
            if known is None:
                raise JournalMismatch(f"task {task_id} has no update that could be {fate.value}")
            if known.fate not in (None, fate):
                raise JournalMismatch(
                    f"the update of task {task_id} was {known.fate}, it cannot be {fate.value} as well"
                )
            if known.fate is None:
                db.execute("UPDATE updates SET fate = ?, reason = ? WHERE task = ?", (fate.value, reason, task_id))

    def update(self, task_id: int) -> Received | None:
        rows = self._db.all(f"{_RECEIVED} WHERE updates.task = ?", task_id)
        return _received(*rows[0]) if rows else None

    def updates(self, number: int | None = None, attempt: int = 0, kind: TaskKind = "train") -> tuple[Received, ...]:
        """Return what was accepted for the tasks of a round, of all its groups, that are of this kind, or for all tasks
        of a run, in the order of arrival.
        """
        if number is None:
            rows = self._db.all(f"{_RECEIVED} ORDER BY updates.number")
        else:
            where = "WHERE tasks.round = ? AND tasks.attempt = ? AND tasks.kind = ? ORDER BY updates.number"
            rows = self._db.all(f"{_RECEIVED} {where}", number, attempt, kind)
        return tuple(_received(*row) for row in rows)

    def fates(self) -> dict[tuple[str, str], int]:
        """Return how many answers to training tasks were accepted, by fate ("waiting" where it is not known yet) and,
        of those that were refused, by the guard's reason.
        """
        sql = """
            SELECT COALESCE(fate, 'waiting'), CASE fate WHEN 'refused'
                THEN substr(updates.reason, 1, instr(updates.reason || ':', ':') - 1) ELSE '' END, count(*)
            FROM updates JOIN tasks ON tasks.id = updates.task WHERE kind = 'train' GROUP BY 1, 2
        """
        return {(fate, reason): count for fate, reason, count in self._db.all(sql)}

    def commit(self, task_ids: Sequence[int]) -> None:
        """Note that the model counts these updates: what their clients came to remember is theirs for good.

        Raises:
            JournalMismatch: one of the tasks has no admitted update; nothing was committed.
        """
        # by client the highest id: a call that is repeated after later ones takes nobody back
        sql = """
            INSERT INTO committed
                SELECT client, id FROM tasks JOIN updates ON updates.task = tasks.id
                WHERE id = ? AND fate = 'admitted'
            ON CONFLICT (client) DO UPDATE SET task = max(task, excluded.task)
        """
        with self._db.writing(f"committing {len(task_ids)} updates") as db:
            for task_id in task_ids:
                if db.execute(sql, (task_id,)).rowcount != 1:
                    raise JournalMismatch(f"task {task_id} has no admitted update that could be committed")

    def committed(self) -> dict[str, int]:
        """Return by client the last of its tasks that was committed: the memory that is its own now."""
        return dict(self._db.all("SELECT client, task FROM committed ORDER BY client"))

    # ---- what a workflow was told, and where its model is ------------------------------------------------------------

    def record(self, kind: str, content: object) -> int:
        """Note an answer before the workflow gets it; ``content`` is what JSON can say. Return its number, from 1."""
        with self._db.writing(f"recording an answer ({kind})") as db:
            number = db.execute(
                "INSERT INTO answers (kind, content) VALUES (?, ?)", (kind, json.dumps(content))
            ).lastrowid
        assert number is not None
        return number

    def recorded(self, after: int = 0) -> tuple[Answer, ...]:
        """Return the answers beyond that number, in order."""
        rows = self._db.all("SELECT number, kind, content FROM answers WHERE number > ? ORDER BY number", after)
        return tuple(Answer(number, kind, json.loads(content)) for number, kind, content in rows)

    def save_checkpoint(self, number: int, digest: str) -> None:
        """Note the blob of the model after a round. It takes the place of the one before, and updates that rounds up to
        this one have folded are needed no more.

        Raises:
            JournalMismatch: there is a checkpoint of a later round.
        """
        with self._db.writing(f"noting the checkpoint of round {number}") as db:
            last = self.checkpoint()
            if last is not None and last.round > number:
                raise JournalMismatch(f"the checkpoint of round {last.round} is there; {number} would lead back")
            self.blobs.require(digest)
            db.execute("DELETE FROM checkpoints")
            db.execute("INSERT INTO checkpoints VALUES (?, ?)", (number, digest))
        self.blobs.release(digest)

    def checkpoint(self) -> Checkpoint | None:
        row = self._db.one("SELECT round, digest FROM checkpoints")
        return None if row is None else Checkpoint(*row)

    def collect(self) -> int:
        """Remove the blobs that nothing refers to; return how many they were. May stop anywhere, and run beside
        everything else.
        """
        num_removed = 0
        for digest in self.blobs.digests():
            with self._db.quiet():  # nothing comes to refer to it in between
                if not self._is_needed(digest):
                    num_removed += self.blobs.discard(digest)
        return num_removed

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _same_run(self, folder: Path, run: Run | None) -> Run:
        row = self._db.one("SELECT id, job FROM run")
        known = None if row is None else Run(*row)
        if known is None:
            if run is None:
                raise NoJournal(f"the journal in {folder} was never begun; give the folder of a run that was served")
            with self._db.writing("beginning the journal") as db:
                db.execute("INSERT INTO run VALUES (1, ?, ?)", (run.id, run.job))
            return run
        if run is not None and known != run:
            raise JournalMismatch(
                f"the journal in {folder} is that of run {known.id!r}, not of this one: {known.difference(run)}; "
                "give another folder, or the job that it was begun with"
            )
        return known

    def _require_blobs(self, folder: Path) -> None:
        for digest, holder in self._db.all("SELECT digest, holder FROM needed"):
            if not self.blobs.path(digest).exists():
                raise JournalError(
                    f"journal {folder}: blob {digest}, which {holder} needs, is not there; was something removed "
                    "by hand? Bring the whole folder back from a copy"
                )

    def _is_needed(self, digest: str) -> bool:
        # an upload keeps the blob that it has become, so that a crash before ``accept`` costs no second upload
        sql = "SELECT 1 FROM needed WHERE digest = ?1 UNION ALL SELECT 1 FROM uploads WHERE digest = ?1 LIMIT 1"
        return self._db.one(sql, digest) is not None


def _locked(folder: Path, disk: Disk, fuse: Fuse) -> int:
    """Make the folder where there is none, and return a descriptor that keeps other processes out until it is closed,
    which the end of a process does as well.
    """
    try:
        disk.make_folder(folder)
        disk.sync_folder(folder.parent)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise fuse.passing("making its folder", error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise JournalError(f"the journal in {folder} is open already, in this process or another one") from error
    return lock


def _received(
    number: int, task_id: int, client: str, digest: str, size: int, fields: str, fate: str | None, reason: str
) -> Received:
    known = None if fate is None else Fate(fate)
    return Received(number, task_id, client, digest, size, json.loads(fields), known, reason)

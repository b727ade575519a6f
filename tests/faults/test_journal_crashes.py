"""The journal after a loss of power: a short run is recorded, and cut off after each of its calls.

Whatever the disk then holds, the journal opens; what was acknowledged is there, once and in the right bytes; and the
run goes on to the same end. Each bug that is planted below must be caught by that.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from crashes import LOG, AcknowledgedBeforeCommitted, Model, Recorder, Step, Told, crashes
from figures import Figures
from journals import check, opened, quick_folder, result, serve

from roundelay.deployment.journal import database
from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import KeptTask, TaskState
from roundelay.deployment.journal.tasks import Tasks


def recorded(disk_of: type[Recorder] = Recorder) -> tuple[Recorder, tuple[object, ...]]:
    """A whole run that nothing disturbs: every call of it, and what it came to."""
    with quick_folder() as root:
        disk = disk_of(Path(root))
        with opened(Path(root) / "run", disk) as journal:
            serve(journal, disk.tell)
            return disk, result(journal)


def survive(
    disk: Recorder, whole: tuple[object, ...], go_on_every: int, first: int = 0, draws: int = 1, seed: int = 0
) -> Counter[str]:
    """Open what each crash may have left and hold it against what had been told. From every so manyth of these states
    go on to the end. Return how many different states there were of each kind.
    """
    states: Counter[str] = Counter()
    for count, (number, what, told, root) in enumerate(crashes(disk, first=first, draws=draws, seed=seed), start=1):
        recover(root, whole, told, f"call {number}, {what}", go_on=count % go_on_every == 0)
        states[kind_of(what)] += 1
    return states


def kind_of(what: str) -> str:
    found = what.rpartition(": ")[2]
    return "clean" if found == "everything" else "torn" if " at " in found else "something that was not synced is lost"


def recover(root: Path, whole: tuple[object, ...], told: Told, where: str, go_on: bool) -> None:
    try:
        with opened(root / "run") as journal:
            check(journal, told)
            if go_on:
                serve(journal, lambda *_: None)
                assert result(journal) == whole
    except Exception as error:
        raise AssertionError(f"cut off after {where}") from error


def survive_twice(every: int, num_calls: int, seed: int = 0) -> int:
    """Cut off what comes after a crash as well, within so many calls from the opening."""
    disk, whole = recorded()
    count = 0
    for number, (_, first, told, root) in enumerate(crashes(disk, seed=seed)):
        if number % every:
            continue
        found, again = Model.of(root), Recorder(root)
        with opened(root / "run", again) as journal:
            serve(journal, again.tell)
        again.steps = again.steps[:num_calls]
        for number, what, told_since, second in crashes(again, found, told, seed=seed):
            recover(second, whole, told_since, f"{first}, and then call {number}, {what}", go_on=count % 20 == 0)
            count += 1
    return count


def check_every_prefix(figures: Figures, go_on_every: int, draws: int, seed: int = 0) -> None:
    disk, whole = recorded()
    states = survive(disk, whole, go_on_every, draws=draws, seed=seed)
    figures("calls that change the disk", sum(step.call != "told" for step in disk.steps))
    figures("states", states.total())
    for kind, count in sorted(states.items()):
        figures(f"states, {kind}", count)
    figures("states gone on from to the same end", states.total() // go_on_every)
    assert states.total() >= 1000


def test_no_crash_loses_or_doubles_what_was_acknowledged(figures: Figures) -> None:
    check_every_prefix(figures, go_on_every=30, draws=2)


def test_no_crash_while_a_crash_is_recovered_from_loses_anything() -> None:
    assert survive_twice(every=400, num_calls=30) > 50


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_after_every_crash_the_run_goes_on_to_the_same_end(figures: Figures, chaos_seed: int) -> None:
    check_every_prefix(figures, go_on_every=1, draws=5, seed=chaos_seed)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_no_crash_of_many_while_a_crash_is_recovered_from_loses_anything(figures: Figures, chaos_seed: int) -> None:
    states = survive_twice(every=30, num_calls=60, seed=chaos_seed)
    figures("states after a second crash", states)
    assert states > 2000


# ---- planted bugs ---------------------------------------------------------------------------------------------------


class DataNeverSynced(Recorder):
    def sync(self, file: int) -> None:
        pass


class PartsNeverSynced(Recorder):
    def sync(self, file: int) -> None:
        if not self._open[file].endswith(".part"):
            super().sync(file)


class RenamedBeforeSynced(Recorder):
    """Blobs are renamed first, and synced when the next file is opened. (Were they synced after the rename, but before
    anybody heard of them, no crash could tell: what no row refers to is collected when a journal is opened.)
    """

    renamed = ""

    def sync(self, file: int) -> None:
        if self._open[file].endswith(".part"):
            super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.renamed = str(target.relative_to(self.root))

    def open(self, path: Path, fresh: bool) -> int:
        if self.renamed:
            self.steps.append(Step("sync", self.renamed))
        return super().open(path, fresh)


class FoldersNeverSynced(Recorder):
    def sync_folder(self, path: Path) -> None:
        pass


class NewFoldersNeverSynced(Recorder):
    def sync_folder(self, path: Path) -> None:
        if path.name != "blobs":
            super().sync_folder(path)


class IncomingNeverSynced(Recorder):
    def sync_folder(self, path: Path) -> None:
        if path.name != "incoming":
            super().sync_folder(path)


@pytest.mark.parametrize(
    "bug",
    [DataNeverSynced, PartsNeverSynced, RenamedBeforeSynced, FoldersNeverSynced, NewFoldersNeverSynced,
     IncomingNeverSynced, AcknowledgedBeforeCommitted],
)  # fmt: skip
def test_the_check_of_crashes_catches_a_disk_that_is_used_wrongly(bug: type[Recorder]) -> None:
    with pytest.raises(AssertionError, match="cut off after call"):
        survive(*recorded(bug), go_on_every=5)


Planting = Callable[[pytest.MonkeyPatch], None]


def collect_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "_is_needed", lambda self, digest: False)
    patch.setattr(Journal, "_require_blobs", lambda self, folder: None)


def let_go_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    save = Journal.save_checkpoint

    def planted(self: Journal, number: int, digest: str) -> None:
        last = self.checkpoint()
        if last is not None:
            self.blobs.discard(last.digest)
        save(self, number, digest)

    patch.setattr(Journal, "save_checkpoint", planted)


def commit_each_statement(patch: pytest.MonkeyPatch) -> None:
    class Piecemeal:
        def __init__(self, connection: sqlite3.Connection, steps: list[Step]) -> None:
            self._connection, self._steps = connection, steps

        def execute(self, *arguments: object) -> sqlite3.Cursor:
            cursor = self._connection.execute(*arguments)  # type: ignore[arg-type]
            self._steps.append(Step("commit", data=self._connection.serialize()))
            return cursor

        def executemany(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
            for row in rows:
                self.execute(sql, row)

    writing = Database.writing

    @contextmanager
    def planted(self: Database, doing: str) -> Iterator[Piecemeal | sqlite3.Connection]:
        with writing(self, doing) as connection:
            recording = isinstance(self._disk, Recorder) and doing != "making the tables"
            yield Piecemeal(connection, self._disk.steps) if recording else connection  # type: ignore[attr-defined]

    patch.setattr(Database, "writing", planted)


def commit_in_memory(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Journal, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            self.committed()[self.tasks.get(task_id).task.client] = task_id  # type: ignore[union-attr]

    patch.setattr(Journal, "commit", planted)
    patch.setattr(Journal, "committed", lambda self: self.__dict__.setdefault("planted", {}))


def lose_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    lose = Tasks.lose
    late: list[tuple[int, str, str]] = []

    def planted(self: Tasks, task_id: int, reason: str, traceback: str = "") -> KeptTask:
        for one in late:
            lose(self, *one)
        late[:] = [(task_id, reason, traceback)]
        known = self.get(task_id)
        assert known is not None
        if known.state is not TaskState.OPEN:
            return known
        return replace(known, state=TaskState.LOST, reason=reason, traceback=traceback)

    patch.setattr(Tasks, "lose", planted)


def forget_what_no_round_folds(patch: pytest.MonkeyPatch) -> None:
    """As soon as there is a checkpoint of the version that a task was about."""
    tables = tuple(one.replace("tasks.round >= (", "tasks.round > (") for one in database.SCHEMA)
    patch.setattr(database, "SCHEMA", tables)


def forget_the_log(patch: pytest.MonkeyPatch) -> None:
    """What was committed since the database's file was written last lies in its log alone."""

    def planted(self: Database) -> None:
        self._path.with_name(LOG).unlink(missing_ok=True)

    patch.setattr(Database, "_write_log_anew", planted)


@pytest.mark.parametrize(
    ("plant", "first"),
    [(collect_everything, 0), (forget_the_log, 0), (let_go_before_the_commit, 220), (commit_each_statement, 100),
     (commit_in_memory, 0), (lose_before_it_is_written, 0), (forget_what_no_round_folds, 200)],
)  # fmt: skip
def test_the_check_of_crashes_catches(plant: Planting, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="cut off after call"):
        survive(*recorded(), go_on_every=5, first=first)

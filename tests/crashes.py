"""What may be on a disk after power was lost, from a record of every call that changed something.

The model is more forgetful than any file system: data is on disk when its file was synced, a name when its folder was.
Whatever was not synced may be there or not, each piece for itself. A commit of the database is there once the call that
makes it has been made; while it is made, its log may have any part of what is written there.
"""

import os
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from journals import quick_folder

from roundelay.deployment.journal.disk import Disk

DATABASE, LOG = "journal.db", "journal.db-wal"


@dataclass(frozen=True)
class Step:
    """One call: what it was, on which path, and what went with it. With a commit goes the database's file before it,
    and its log before and after. "told" is no call, but what the caller was told.
    """

    call: str
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""
    log: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    told: tuple[object, ...] = ()


class Recorder(Disk):
    """A disk that keeps a record, by paths relative to ``root``."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.steps: list[Step] = []
        self._open: dict[int, str] = {}

    def tell(self, *told: object) -> None:
        self.steps.append(Step("told", told=told))

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self._note("make_folder", path)

    def open(self, path: Path, fresh: bool) -> int:
        file = super().open(path, fresh)
        self._open[file] = str(path.relative_to(self.root))
        self._note("truncate" if fresh else "open", path)
        return file

    def write(self, file: int, data: memoryview, offset: int) -> int:
        written = super().write(file, data, offset)
        self.steps.append(Step("write", self._open[file], offset=offset, data=bytes(data[:written])))
        return written

    def sync(self, file: int) -> None:
        super().sync(file)
        self.steps.append(Step("sync", self._open[file]))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self.steps.append(Step("replace", str(source.relative_to(self.root)), str(target.relative_to(self.root))))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._note("remove", path)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._note("sync_folder", path)

    def commit(self, connection: sqlite3.Connection) -> None:
        (_, _, database), *_ = connection.execute("PRAGMA database_list")
        file, log = Path(database), Path(database).with_name(LOG)
        before = file.read_bytes(), log.read_bytes() if log.exists() else b""
        super().commit(connection)
        self.steps.append(Step("commit", data=connection.serialize(), log=(*before, log.read_bytes())))

    def _note(self, call: str, path: Path) -> None:
        self.steps.append(Step(call, str(path.relative_to(self.root))))


class AcknowledgedBeforeCommitted(Recorder):
    """A planted bug. The database writes behind: a commit is on disk when the next call is made."""

    behind: Step | None = None

    def commit(self, connection: sqlite3.Connection) -> None:
        late, self.behind = self.behind, None
        self.steps += [late] if late is not None else []
        super().commit(connection)
        self.behind = self.steps.pop()


@dataclass
class File:
    now: bytes = b""
    synced: bytes = b""
    is_folder: bool = False


@dataclass
class Model:
    """The disk after some steps: what a reader sees now, and what is sure to be there after a loss of power."""

    names: dict[str, File] = field(default_factory=dict)
    synced_names: dict[str, File] = field(default_factory=dict)
    database: bytes | None = None
    log: bytes = b""
    """What the database's log holds beyond ``database``: only until the first commit, which is noted with all of it."""

    @staticmethod
    def of(root: Path) -> "Model":
        """What a machine finds when it has started again: all that is there is on disk."""
        model = Model()
        for path in sorted(root.rglob("*")):
            data = b"" if path.is_dir() else path.read_bytes()
            if path.name == DATABASE:
                model.database = data
            elif path.name == LOG:
                model.log = data
            else:
                model.names[str(path.relative_to(root))] = File(data, data, path.is_dir())
        model.synced_names = dict(model.names)
        return model

    def take(self, step: Step) -> None:
        if Path(step.path).name == LOG:  # its own bytes are written over it once more
            return
        match step.call:
            case "make_folder":
                self.names.setdefault(step.path, File(is_folder=True))
            case "open":
                self.names.setdefault(step.path, File())
            case "truncate":
                self.names.setdefault(step.path, File()).now = b""
            case "write":
                file = self.names[step.path]
                before = file.now.ljust(step.offset, b"\0")
                file.now = before[: step.offset] + step.data + before[step.offset + len(step.data) :]
            case "sync":
                if step.path in self.names:  # else it has another name by now, see the planted bugs
                    self.names[step.path].synced = self.names[step.path].now
            case "replace":
                self.names[step.other] = self.names.pop(step.path)
            case "remove":
                self.names.pop(step.path, None)
            case "sync_folder":
                kept = {name: file for name, file in self.synced_names.items() if _parent(name) != step.path}
                found = {name: file for name, file in self.names.items() if _parent(name) == step.path}
                self.synced_names = kept | found
            case "commit":
                self.database, self.log = step.data, b""


def _parent(name: str) -> str:
    return str(Path(name).parent)


@dataclass(frozen=True)
class Picture:
    """Names, the contents of files by their identity (two names may be of one file), and the database with its log."""

    names: dict[str, File]
    contents: dict[int, bytes]
    database: bytes | None
    log: bytes = b""

    @property
    def fingerprint(self) -> int:
        files = frozenset((name, self.contents[id(file)]) for name, file in self.names.items())
        return hash((self.database, self.log, files))


def pictures(model: Model, last: Step, seed: str, draws: int) -> Iterator[tuple[str, Picture]]:
    """Yield what may be found after a loss of power: all that was done, and what may be missing of it,
    drawn so many times where it is some only.
    """
    files = {id(file): file for names in (model.names, model.synced_names) for file in names.values()}
    now = {key: file.now for key, file in files.items()}
    synced = {key: file.synced for key, file in files.items()}
    found = Picture(model.names, now, model.database, model.log)
    yield "everything", found
    if last.call == "write" and last.path in model.names:
        torn = id(model.names[last.path])
        for cut in sorted({0, len(last.data) // 2, len(last.data) - 1}):
            kept = now[torn][: last.offset + cut] + synced[torn][last.offset + cut :]
            yield f"torn at {cut}", replace(found, contents={**now, torn: kept})
    file, *logs = last.log
    for name, log in torn_logs(*logs):
        yield name, replace(found, database=file, log=log)
    if synced != now:
        yield "no data that was not synced", replace(found, contents=synced)
        zeros = {key: synced[key].ljust(len(data), b"\0") for key, data in now.items()}
        yield "zeros for data that was not synced", replace(found, contents=zeros)
    if model.names != model.synced_names:
        yield "no name that was not synced", replace(found, names=model.synced_names)
        if synced != now:
            yield "nothing that was not synced", replace(found, names=model.synced_names, contents=synced)
        for number in range(draws):
            draw = random.Random(f"{seed} {number}")
            some = _some_names(model, draw)
            mixed = {key: now[key] if draw.random() < 0.5 else synced[key] for key in now}
            yield "some of what was not synced", replace(found, names=some, contents=mixed)


def torn_logs(before: bytes, after: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what the log may hold of a commit that is not on disk yet."""
    at = len(before)
    if not after.startswith(before):  # it was begun anew
        at = next(i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    num_new = len(after) - at
    for cut in sorted({num_new // 2, num_new - 1}) if num_new > 1 else ():
        yield f"torn in its log at {cut}", after[: at + cut] + before[at + cut :]
    if num_new:
        yield "zeros in its log", after[:at] + bytes(num_new)


def _some_names(model: Model, draw: random.Random) -> dict[str, File]:
    """Each change of a name was kept or was not; but a rename loses no file: it has its old name, the new, or both."""
    some = {
        name: file for name, file in {**model.synced_names, **model.names}.items()
        if (model.names.get(name) is model.synced_names.get(name)) or draw.random() < 0.5
    }  # fmt: skip
    there, kept = ({id(file) for file in names.values()} for names in (model.names, some))
    for name, file in model.synced_names.items():
        if id(file) in there - kept:
            some[name] = file
    return some


def materialise(picture: Picture, root: Path, run: str) -> None:
    """Put such a picture on a real disk."""
    made: dict[int, Path] = {}
    for name in sorted(picture.names):  # a folder before what lies in it
        file, path = picture.names[name], root / name
        if not path.parent.is_dir():
            continue  # lost with its folder
        if file.is_folder:
            path.mkdir()
        elif id(file) in made:
            os.link(made[id(file)], path)
        else:
            path.write_bytes(picture.contents[id(file)])
            made[id(file)] = path
    if picture.database is not None and (root / run).is_dir():
        (root / run / DATABASE).write_bytes(picture.database)
        if picture.log:
            (root / run / LOG).write_bytes(picture.log)


Told = list[tuple[object, ...]]


def crashes(
    disk: Recorder, before: Model | None = None, told: Told | None = None, first: int = 0, draws: int = 1,
    seed: int = 0, run: str = "run",
) -> Iterator[tuple[int, str, Told, Path]]:  # fmt: skip
    """Yield a folder for each state that a crash of the recorded run may have left, with the number of the call after
    which it was cut off, what that was, and what had been told until then. ``before`` and ``told`` say how the run
    began; what is cut off before the ``first`` call is left out. ``run`` is the folder of the journal.
    """
    model, told, seen = before or Model(), list(told or []), set()
    for number, step in enumerate(disk.steps):
        if step.call == "told":
            told.append(step.told)
            continue
        model.take(step)
        for name, picture in pictures(model, step, f"{seed} {number}", draws) if number >= first else ():
            key = (len(told), picture.fingerprint)
            if key in seen:
                continue
            seen.add(key)
            with quick_folder() as root:
                materialise(picture, Path(root), run)
                yield number, f"{step.call} {step.path}: {name}", told, Path(root)

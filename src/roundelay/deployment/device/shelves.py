"""What lies in a device's folder: models that were fetched, what the client remembers, answers that are not settled.

A file is there whole or not at all. What was kept here was synced when the method returned, except models: those can be
fetched again, and a damaged one is found out when it is read.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from roundelay import wire
from roundelay.client.exchange import read_model
from roundelay.deployment.protocol import Digest, Message, Offer
from roundelay.errors import WireError
from roundelay.files import remove_unfinished, save_atomically
from roundelay.header import Bytes, Limits
from roundelay.messages import Memory, Payload
from roundelay.wire import Frame

LARGEST = Limits(body_bytes=2**40)
"""For what this device has written itself, or was fetched up to a size that was looked at before."""

NUM_MODELS = 2
"""A model is trained on and measured; then the next one is, and an attempt may be made again."""

NUM_RUNS = 8
"""Of so many runs the memory is kept: a server may go back to an earlier one."""

_MAX_HEAD, _PIECE = 2**20, 2**20


def made(folder: Path) -> Path:
    """Make a folder whose name is on the disk for good, and return it."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700)
        _sync(folder.parent)
    return folder


class Models:
    """Frames of kind "model" by SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fresh: set[str] = set()  # verified by this process, and not read since

    def path(self, digest: str) -> Path:
        return self._folder / digest

    def has(self, digest: str, size: int) -> bool:
        path = self.path(digest)
        return path.exists() and path.stat().st_size == size

    def part(self, digest: str) -> Path:
        """Return the file for what has come of a model. Those of others are removed: they will not be asked for."""
        part = self._folder / f"{digest}.part"
        for other in self._folder.glob("*.part"):
            if other != part:
                other.unlink()
        return part

    def having(self) -> list[str]:
        """Return the digests of the models that are here."""
        return [path.name for path in self._folder.iterdir() if path.suffix == ""]

    def keep(self, digest: str, model: bytes) -> None:
        """Keep a model that came in one piece, and was verified."""
        self.part(digest).write_bytes(model)
        self.put(digest)

    def put(self, digest: str) -> None:
        """Let the verified part become the model, and forget all but the last ones."""
        os.replace(self.part(digest), self.path(digest))
        self._fresh.add(digest)
        kept = sorted(map(self.path, self.having()), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-NUM_MODELS]:
            if old.name != digest:
                old.unlink()

    def read(self, digest: str) -> Payload:
        """Return a model. Its tensors are the file's own pages, which the system may take back and read again; what is
        changed in them is changed in memory only. One that was just verified and put is believed, the first time.

        Raises:
            WireError: the file holds none, or was damaged; it is removed.
        """
        verified = digest in self._fresh
        self._fresh.discard(digest)
        try:
            with self.path(digest).open("rb") as file:
                if not os.fstat(file.fileno()).st_size:  # of nothing there are no pages
                    raise WireError("it is empty")
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return read_model(wire.decode(memoryview(pages), LARGEST, verified=verified))
        except WireError:
            self.path(digest).unlink(missing_ok=True)
            raise


class Memories:
    """What a client came to remember in its tasks: one frame for each, by run and task id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, run: str, task_id: int, memory: Memory) -> None:
        """Keep what the client remembers after a task; also where that is nothing, so that it is not taken for lost."""
        folder = made(self._folder / run)
        _save(folder / str(task_id), wire.encode(_memory_frame(memory), LARGEST))

    def read(self, run: str, task_id: int) -> dict[str, Tensor] | None:
        """Return what was remembered after a task, or None where it is not there, or damaged."""
        try:
            frame = _read(self._folder / run / str(task_id))
        except (FileNotFoundError, WireError):
            return None
        return dict(frame.tensors) if frame.kind == "memory" else None

    def forget(self, run: str, task_id: int) -> None:
        (self._folder / run / str(task_id)).unlink(missing_ok=True)

    def forget_before(self, run: str, task_id: int) -> None:
        """Forget what was remembered after earlier tasks than this one."""
        for path in _numbered(self._folder / run, ""):
            if int(path.stem) < task_id:
                path.unlink(missing_ok=True)

    def turn_to(self, run: str) -> None:
        """Say which run it is that this device takes part in; the longest past ones are forgotten."""
        os.utime(made(self._folder / run))
        remove_unfinished(self._folder / run)
        runs = sorted((f for f in self._folder.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime_ns)
        for old in runs[:-NUM_RUNS]:
            for path in old.iterdir():
                path.unlink()
            old.rmdir()


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished answer on this device's disk: ``size`` bytes with SHA-256 ``digest``, from ``start`` of a file."""

    offer: Offer
    digest: str
    size: int
    path: Path
    start: int

    def read(self, offset: int, num_bytes: int) -> memoryview:
        """Return a part, as the file's own pages: what is there of it."""
        first = self.start + offset
        skipped = first % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            end = min(first + num_bytes, os.fstat(file.fileno()).st_size)
            if end <= first:
                return memoryview(b"")
            begin = first - skipped
            return memoryview(mmap.mmap(file.fileno(), end - begin, access=mmap.ACCESS_READ, offset=begin))[skipped:]

    def is_whole(self) -> bool:
        """Whether the bytes still are those that were written."""
        sha = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(self.start)
            while piece := file.read(_PIECE):
                sha.update(piece)
        return sha.hexdigest() == self.digest


class _Head(Message):
    """The first line of a kept answer."""

    offer: Offer
    digest: Digest
    size: int


class Answers:
    """Finished answers, by run and task id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, run: str, offer: Offer, frame: Frame) -> Kept:
        """Write an answer; it is on disk when this returns.

        Raises:
            WireError: it cannot be a frame.
            OSError: the disk is full, or failed.
        """
        buffers = wire.encode(frame, LARGEST)
        sha, size = hashlib.sha256(), 0
        for buffer in buffers:
            sha.update(buffer)
            size += len(buffer)
        head = _Head(offer=offer, digest=sha.hexdigest(), size=size).model_dump_json().encode() + b"\n"
        path = made(self._folder / run) / f"{offer.id}.answer"
        _save(path, [head, *buffers])
        return Kept(offer, sha.hexdigest(), size, path, len(head))

    def of(self, run: str) -> tuple[Kept, ...]:
        """Return the answers for a run that are not settled, in the order of their tasks."""
        remove_unfinished(self._folder / run)
        found = (_kept(path) for path in _numbered(self._folder / run, ".answer"))
        return tuple(kept for kept in found if kept is not None)

    def drop(self, kept: Kept) -> None:
        kept.path.unlink(missing_ok=True)

    def drop_others(self, run: str) -> int:
        """Forget the answers for other runs than this one; return how many there were."""
        num_dropped = 0
        for folder in self._folder.iterdir():
            if folder.is_dir() and folder.name != run:
                for path in folder.iterdir():
                    num_dropped += path.suffix == ".answer"
                    path.unlink()
                folder.rmdir()
        return num_dropped


def _kept(path: Path) -> Kept | None:
    """Read the head of a kept answer. One that is damaged is removed: its task will be offered again."""
    with path.open("rb") as file:
        line = file.readline(_MAX_HEAD)
        num_bytes = os.fstat(file.fileno()).st_size
    try:
        head = _Head.model_validate_json(line)
    except ValidationError:
        head = None
    if head is None or len(line) + head.size != num_bytes or path.stem != str(head.offer.id):
        path.unlink()
        return None
    return Kept(head.offer, head.digest, head.size, path, len(line))


def _memory_frame(memory: Memory) -> Frame:
    return Frame("memory", {}, dict(memory))


def _numbered(folder: Path, suffix: str) -> Iterator[Path]:
    found = [p for p in folder.glob(f"*{suffix}") if p.stem.isdigit() and p.suffix == suffix]
    return iter(sorted(found, key=lambda path: int(path.stem)))


def _save(path: Path, buffers: list[Bytes]) -> None:
    save_atomically(path, lambda file: file.writelines(buffers), mode=0o600)


def _read(path: Path) -> Frame:
    """Read a frame into memory that its tensors then lie in."""
    with path.open("rb") as file:
        data = wire.bytes_of(wire.aligned(os.fstat(file.fileno()).st_size))
        left = data
        while left and (num_read := file.readinto(left)):
            left = left[num_read:]
    return wire.decode(data[: len(data) - len(left)], LARGEST)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

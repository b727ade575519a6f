"""Blobs: bytes in files that are named by their SHA-256, on disk before anybody hears of them.

A blob is written under a temporary name, synced, renamed, and its folder is synced: after a crash it is there whole or
not at all. Everything here may be called from any thread; large writes hold no lock.
"""

import hashlib
import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from roundelay.deployment.journal.disk import Disk, Fuse, write_all
from roundelay.errors import JournalError

DIGEST = re.compile(r"[0-9a-f]{64}")
Buffer = bytes | bytearray | memoryview
_PIECE = 4 * 2**20
_NEW, _PART = ".new", ".part"


class Blobs:
    def __init__(self, folder: Path, disk: Disk, fuse: Fuse) -> None:
        self._root, self._incoming = folder / "blobs", folder / "incoming"
        self._disk, self._fuse = disk, fuse
        self._names = itertools.count()
        self._lock = threading.Lock()  # held while a blob gets its name, or loses it
        self._synced: set[str] = set()  # folders, and blobs, of which it is known that their names are on disk
        self._intact: set[str] = set()  # blobs of which this process has hashed the bytes
        self._pinned: Counter[str] = Counter()
        with self._saying("making the folders of the blobs"):
            for made in (self._root, self._incoming):
                disk.make_folder(made)
            disk.sync_folder(folder)

    def put(self, data: bytes | Iterable[Buffer], digest: str | None = None) -> str:
        """Keep these bytes; return their SHA-256 once they are on disk. ``digest`` is that, where the caller has hashed
        them already.

        No collection takes the blob from then on until it was referred to (by ``Journal.accept`` and the like, which
        give the pin back) or ``release`` is called, as often as it was put.

        Raises:
            JournalError: they could not be written; nothing of them is kept.
        """
        self._fuse.check()
        temporary = self._incoming / f"{next(self._names)}{_NEW}"
        hasher, offset = hashlib.sha256(), 0
        try:
            with self._opened(temporary, "writing a blob", fresh=True) as file:
                for piece in (data,) if isinstance(data, bytes) else data:  # what ``data`` raises is not the disk's
                    if digest is None:
                        hasher.update(piece)
                    with self._saying("writing a blob"):
                        write_all(self._disk, file, piece, offset)
                    offset += len(piece)
                self._sync(file)
            digest = digest or hasher.hexdigest()
            self._place(temporary, digest, pins=1)
        except BaseException:
            self._try_to_remove(temporary)
            raise
        return digest

    def path(self, digest: str) -> Path:
        """Return where a blob lies, or would lie.

        Raises:
            ValueError: that is no SHA-256 in hexadecimal: no path is made from anything else.
        """
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"expected 64 lower-case hexadecimal digits, got {digest!r}")
        return self._root / digest[:2] / digest

    def open(self, digest: str) -> IO[bytes]:
        """Open a blob to be read. Its bytes have the SHA-256 that is its name: one that was written before this process
        began is hashed before it is believed.

        Raises:
            JournalError: it is not there, or damaged.
        """
        try:
            if digest not in self._intact:
                if _digest_of(self.path(digest)) != digest:
                    raise JournalError(
                        f"blob {digest} was damaged on the disk: its bytes have another digest. Check the disk, and "
                        "bring the whole journal back from a copy"
                    )
                self._intact.add(digest)
            return self.path(digest).open("rb")
        except OSError as error:
            raise JournalError(f"blob {digest} cannot be read ({error}); was something removed by hand?") from error

    def require(self, digest: str, size: int | None = None) -> None:
        """Return where a blob is there, with its name on disk.

        Raises:
            JournalError: it is not there, or has another size.
        """
        with self._lock:
            path = self.path(digest)
            try:
                came = path.stat().st_size
            except FileNotFoundError:
                raise JournalError(f"blob {digest} is not there; put it before anything refers to it") from None
            if size is not None and came != size:
                raise JournalError(f"blob {digest} has {came} bytes, not the {size} that were stated")
            if digest not in self._synced:  # a process that was killed may have renamed it and not come to the sync
                self._sync_folder(path.parent)
                self._synced.add(digest)

    def release(self, digest: str) -> None:
        """Give one pin back."""
        with self._lock:
            self._pinned[digest] -= 1
            if self._pinned[digest] <= 0:
                del self._pinned[digest]

    def digests(self) -> Iterator[str]:
        for path in self._root.glob("??/*"):
            if DIGEST.fullmatch(path.name):
                yield path.name

    def discard(self, digest: str) -> bool:
        """Remove a blob to which nothing refers; return False where a pin keeps it."""
        with self._lock:
            if digest in self._pinned:
                return False
            self._fuse.check()
            self._synced.discard(digest)
            self._intact.discard(digest)
            with self._saying("removing a blob that nothing refers to"):
                self._disk.remove(self.path(digest))
            return True

    # ---- uploads: a file that grows in parts, each synced before it is counted ---------------------------------------

    def part(self, client: str) -> Path:
        """Return the file of a client's upload. Its name is a digest, as an id may hold any character."""
        return self._incoming / f"{hashlib.sha256(client.encode()).hexdigest()}{_PART}"

    def append(self, part: Path, pieces: Sequence[Buffer], offset: int) -> None:
        """Write a part of an upload, piece after piece; it is on disk when this returns."""
        self._fuse.check()
        doing = "writing a part of an upload"
        with self._saying(doing):
            if offset == 0:  # not truncated: after a crash in a rename it may be a blob's second name
                self._disk.remove(part)
            with self._opened(part, doing, fresh=offset == 0) as file:
                at = offset
                for piece in pieces:
                    write_all(self._disk, file, piece, at)
                    at += len(piece)
                self._sync(file)
        if offset == 0:
            self._sync_folder(self._incoming)

    def promote(self, part: Path, digest: str, written: str | None = None) -> bool:
        """Let a whole upload become a blob; return False, and touch nothing, where its bytes have another digest.
        ``written`` is the digest of what this process wrote there; None: it is read, and hashed.
        """
        if written is None:
            with self._saying("reading an upload"):
                written = _digest_of(part)
        if written != digest:
            return False
        self._place(part, digest, pins=0)
        return True

    def drop(self, part: Path) -> None:
        """Forget the bytes of an upload. Where that fails, they lie there until the journal is opened anew."""
        self._try_to_remove(part)

    def remove_unfinished(self, keep: set[Path]) -> None:
        """Remove what a process that is gone had begun to write, except the uploads in ``keep``."""
        for path in self._incoming.iterdir():
            if path.suffix == _NEW or (path.suffix == _PART and path not in keep):
                self._try_to_remove(path)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _place(self, temporary: Path, digest: str, pins: int) -> None:
        """Give synced bytes their name. Under the lock: what ``require`` finds has been synced into its folder."""
        target = self.path(digest)
        with self._lock:
            self._fuse.check()
            made = not target.exists()
            if made:
                self._make_folder(target.parent)
                with self._saying("renaming a blob"):
                    self._disk.replace(temporary, target)
            if digest not in self._synced:
                try:
                    self._sync_folder(target.parent)
                except JournalError:
                    if made:  # its name may never reach the disk; what was there before may be referred to
                        self._try_to_remove(target)
                    raise
            if not made:
                self._try_to_remove(temporary)
            self._synced.add(digest)
            self._intact.add(digest)
            if pins:
                self._pinned[digest] += pins

    def _make_folder(self, folder: Path) -> None:
        if folder.name in self._synced:
            return
        with self._saying("making a folder of blobs"):
            self._disk.make_folder(folder)
        self._sync_folder(self._root)  # also where it was there: whoever made it may not have come to this
        self._synced.add(folder.name)

    @contextmanager
    def _opened(self, path: Path, doing: str, fresh: bool) -> Iterator[int]:
        with self._saying(doing):
            file = self._disk.open(path, fresh)
        try:
            yield file
        finally:
            with self._saying(doing):
                self._disk.close(file)

    @contextmanager
    def _saying(self, doing: str) -> Iterator[None]:
        """Let a failure of the disk be heard as one of the journal."""
        try:
            yield
        except OSError as error:
            raise self._fuse.passing(doing, error) from error

    def _sync(self, file: int) -> None:
        try:
            self._disk.sync(file)
        except OSError as error:
            raise self._fuse.blow("syncing a file", error) from error

    def _sync_folder(self, folder: Path) -> None:
        try:
            self._disk.sync_folder(folder)
        except OSError as error:
            raise self._fuse.blow(f"syncing the folder {folder.name}", error) from error

    def _try_to_remove(self, path: Path) -> None:
        with suppress(OSError):
            self._disk.remove(path)


def _digest_of(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()

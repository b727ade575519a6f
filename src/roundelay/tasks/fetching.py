"""Fetching a task's data from where its makers publish it: whole files only, checked, unpacked inside their folder."""

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from roundelay.errors import ConfigError, DataError

TIMEOUT_S = 60.0
"""How long a server may say nothing."""

MOST_BYTES, MOST_UNPACKED, MOST_FILES = 8 * 2**30, 32 * 2**30, 2_000_000
"""What one source may hold: far more than any of ours, far less than a disk."""

PIECE = 2**20

Progress = Callable[["Source", int, int | None], None]
"""``progress(source, bytes so far, bytes in all)``; None where the server does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``url`` holds ``file``, a path in the task's folder; or, with ``unpack`` "tar" or "zip", an archive: what its
    folder ``inside`` holds goes into the task's folder, ``file`` among it. A file that is there is not fetched again.
    """

    url: str
    file: str
    sha256: str | None = None
    unpack: str | None = None
    inside: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigError(f"source url: expected one of http or https, got {self.url!r}")
        if self.unpack not in (None, "tar", "zip"):
            raise ConfigError(f'source unpack: expected "tar" or "zip", got {self.unpack!r}')
        for name in (self.file, self.inside):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ConfigError(f"source: expected a path inside the task's folder, got {name!r}")


def fetch(sources: Sequence[Source], folder: Path, put: str, progress: Progress) -> list[Path]:
    """Bring what is not there yet into ``folder``, which is made; return the files that came. ``put`` tells whoever has
    no network what to do by hand.

    Raises:
        DataError: a source cannot be reached, or what came is not what it should be; names the URL. Nothing of that
            source stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    came = []
    for source in sources:
        if (folder / source.file).exists():
            continue
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as kept:
            try:
                _bring(source, folder, Path(kept), progress)
            except (OSError, HTTPException, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
                raise DataError(f"cannot fetch {source.url}: {error}; try again, or by hand: {put}") from error
        came.append(folder / source.file)
    return came


def _bring(source: Source, folder: Path, temporary: Path, progress: Progress) -> None:
    loaded = temporary / "loaded"
    _load(source, loaded, progress)
    if source.unpack is None:
        (folder / source.file).parent.mkdir(parents=True, exist_ok=True)
        loaded.replace(folder / source.file)
        return
    unpacked = temporary / "unpacked"
    unpacked.mkdir()
    {"tar": _untar, "zip": _unzip}[source.unpack](loaded, unpacked, source.url)
    loaded.unlink()
    wanted = unpacked / source.inside
    if not (wanted / source.file).exists():
        raise DataError(
            f"{source.url}: the archive has no {PurePosixPath(source.inside, source.file)}; has it changed?"
        )
    last = PurePosixPath(source.file).parts[0]  # in place last: while it is absent, this is fetched again
    for entry in sorted(wanted.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
        _put(entry, folder / entry.name)


def _put(entry: Path, place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    entry.replace(place)


def _load(source: Source, path: Path, progress: Progress) -> None:
    digest, size = hashlib.sha256(), 0
    request = urllib.request.Request(source.url, headers={"User-Agent": "roundelay"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, path.open("xb") as file:
        told = answer.headers.get("Content-Length")
        total = int(told) if told is not None and told.isdigit() else None
        while piece := answer.read(PIECE):
            size += len(piece)
            _bounded(source.url, size, MOST_BYTES)
            file.write(piece)
            digest.update(piece)
            progress(source, size, total)
    if total is not None and size != total:
        raise DataError(f"{source.url}: it broke off after {size} of {total} bytes; try again")
    if source.sha256 is not None and digest.hexdigest() != source.sha256:
        raise DataError(f"{source.url}: expected a file of SHA-256 {source.sha256}, got {digest.hexdigest()}; "
                        "it was changed, or is another page: nothing of it was kept")  # fmt: skip


def _untar(archive: Path, into: Path, url: str) -> None:
    size = number = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            size, number = size + member.size, number + 1
            _bounded(url, size, MOST_UNPACKED)
            _bounded(url, number, MOST_FILES, "files")
            tar.extract(member, into, filter="data")  # refuses what leaves the folder, devices, and odd modes


def _unzip(archive: Path, into: Path, url: str) -> None:
    size = 0
    with zipfile.ZipFile(archive) as packed:
        _bounded(url, len(packed.infolist()), MOST_FILES, "files")
        for member in packed.infolist():
            size += member.file_size
            _bounded(url, size, MOST_UNPACKED)
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if not member.filename or path.is_absolute() or ".." in path.parts:
                raise DataError(f"{url}: the archive has a file {member.filename!r}, which would leave its folder")
            if member.is_dir():
                (into / path).mkdir(parents=True, exist_ok=True)
                continue
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as inside, (into / path).open("xb") as file:
                shutil.copyfileobj(inside, file, PIECE)


def _bounded(url: str, got: int, most: int, what: str = "bytes") -> None:
    if got > most:
        raise DataError(f"{url}: it holds more than {most:,} {what}; is it what it should be?")

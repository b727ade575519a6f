"""What all readers of image files say and check."""

import gzip
import os
import zlib
from pathlib import Path

from roundelay.errors import DataError

REPLACE = "it is truncated or damaged, replace it with a fresh copy"

_PIECE = 2**18


def existing_folder(folder: str | os.PathLike[str], wanted: str) -> Path:
    """Return the folder.

    Raises:
        DataError: it is not there; says what to put into it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; make it and put {wanted} into it")
    return path


def content(file: Path, most: int) -> bytearray:
    """Return the first ``most`` bytes of what a file holds, unpacked where its name ends in .gz: a small one may unpack
    to gigabytes.

    Raises:
        DataError: it is no gzip file, though its name says so.
    """
    read = bytearray()
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while piece := stream.read(min(_PIECE, most - len(read))):
                read += piece
        return read
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot unpack it ({error}); {REPLACE}") from error

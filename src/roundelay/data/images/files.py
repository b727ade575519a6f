"""What all readers of image files say and check."""

import gzip
import os
import zlib
from pathlib import Path

from roundelay.errors import DataError

REPLACE = "it is truncated or damaged, replace it with a fresh copy"


def existing_folder(folder: str | os.PathLike[str], wanted: str) -> Path:
    """Return the folder.

    Raises:
        DataError: it is not there; says what to put into it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; make it and put {wanted} into it")
    return path


def content(file: Path) -> bytes:
    """Return what a file holds, unpacked where its name ends in .gz.

    Raises:
        DataError: it is no gzip file, though its name says so.
    """
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot unpack it ({error}); {REPLACE}") from error

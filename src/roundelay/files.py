"""Files that are there whole or not at all, whatever interrupts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

SUFFIX = ".tmp"


def save_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a file beside ``path``, sync it, and put it in place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process had begun to write into ``folder``."""
    for left in folder.glob(f".*{SUFFIX}"):
        left.unlink(missing_ok=True)

"""Files that are there whole or not at all, whatever interrupts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

SUFFIX = ".tmp"


def save_atomically(path: Path, write: Callable[[IO[bytes]], object], mode: int = 0o666) -> None:
    """Let ``write`` fill a file beside ``path``, sync it, and put it in place in one step.

    The file has ``mode``, less the umask, from its first moment.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    temporary.unlink(missing_ok=True)  # one that is there already would keep the mode that it has
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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

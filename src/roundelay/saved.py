"""Files of ``torch.save``, read as data: nothing in them is run, and they take no more room than they have bytes."""

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from roundelay.errors import ConfigError

_ARCHIVE = b"PK\x03\x04"
"""How a file begins that torch has written since 1.6."""

_ROOM = b"bytearray\n"
"""What torch takes in a pickle, and fills with as many zeros as that says; no tensor needs it."""

_LONG_LINE = re.compile(rb"(?<![^\n])[^\n]{1000,}+\n")
"""What may hold a name of a class that is as long: torch takes the square of its length to say that it knows none."""


def load_saved(path: Path, what: str) -> Any:  # Any: plain values and tensors, however they were put together
    """Return what was saved, on the CPU.

    Raises:
        ConfigError: the file is absent, damaged, or holds something else than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
        # what is none is of before torch 1.6: torch then makes room for as many bytes as the file says, of memory too
        source = _checked(path) if is_archive else io.BytesIO(_without_room(path.read_bytes()))
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: a wrong file is the user's mistake, whatever its kind
        raise ConfigError(f"cannot read {what} from {path}: {error}") from error


def _checked(path: Path) -> Path:
    """Return the path of an archive that unpacks to no more than it is: torch compresses nothing."""
    num_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as torch.save never writes it; unpack it, and save it with torch.save")
        if sum(entry.file_size for entry in entries) > num_bytes:
            raise ValueError(f"it says that it holds more than its {num_bytes} bytes: it is damaged")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                _without_room(archive.read(entry))
    return path


def _without_room(pickled: bytes) -> bytes:
    if _ROOM in pickled:
        raise ValueError("a bytearray is in it, expected tensors and plain values")
    if _LONG_LINE.search(pickled):
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL" and len(str(argument)) > 1_000:
                raise ValueError("a name of more than 1,000 characters is in it, expected tensors and plain values")
    return pickled

"""What a look at a site or a server found, and what is looked at on both sides."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

_SCARCE_BYTES, _TOO_FEW_BYTES = 5 * 2**30, 200 * 2**20
_SCARCE_FILES = 1_000


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """``about`` in a word or two; ``text`` is for people, and says what to do where something is to be done."""

    state: State
    about: str
    text: str


Report = Callable[[State, str, str], None]


def check_versions(report: Report) -> None:
    found = []
    for package in ("roundelay", "torch", "aiohttp", "cryptography"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            report(State.WRONG, "software", f"{package} is not installed: pip install 'roundelay[serve]'")
    report(State.OK, "software", f"{', '.join(found)}, Python {python_version()}")


def check_disk(report: Report, folder: Path, what: str) -> None:
    """Look at the room on the disk that ``folder`` is on, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        disk = os.statvfs(there)
    except OSError as error:
        report(State.WRONG, "disk", f"{there}: cannot be looked at ({error.strerror})")
        return
    free = disk.f_bavail * disk.f_frsize
    shown = f"{folder} ({what}): {free / 2**30:.1f} GiB free"
    if free < _TOO_FEW_BYTES:
        report(State.WRONG, "disk", f"{shown}; a full disk stops the run until there is room: make room now")
    elif free < _SCARCE_BYTES:
        report(State.WARNING, "disk", f"{shown}; is that enough for several models of the run's size?")
    elif disk.f_files and disk.f_favail < _SCARCE_FILES:
        report(State.WARNING, "disk", f"{shown}, but only {disk.f_favail} more files fit on it: delete old ones")
    elif not os.access(there, os.W_OK | os.X_OK):
        report(State.WRONG, "disk", f"{there}: this account may not write there; run it as the account that may")
    else:
        report(State.OK, "disk", shown)


def day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def span(seconds: float) -> str:
    for size, unit in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

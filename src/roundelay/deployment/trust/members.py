"""The file of a roster: the clients that may take part, and the open invitations. Several processes may use it."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from roundelay.deployment.trust.identity import PUBLIC_KEY_BYTES, checked_name, decode, read_secret
from roundelay.errors import IdentityError
from roundelay.files import save_atomically

_MAX_BYTES = 256 * 2**20
_MEMBER: Mapping[str, type | tuple[type, ...]] = {
    "client": str,
    "token_sha256": str,
    "expires_s": (int, float),
    "public_key": str,
}
_INVITATION: Mapping[str, type | tuple[type, ...]] = {
    "token_sha256": str,
    "expires_s": (int, float),
    "seats": int,
    "names": list,
}
_RESTORE = "restore it from a copy"
_RACY_NS = 2_000_000_000
"""A file that was written so little ago may be written again without its times telling: it is read once more."""


@dataclass(frozen=True, slots=True)
class Member:
    """One client. Texts are empty where there is nothing: no token was given out, or no key has come yet."""

    client: str
    token_sha256: str = ""
    expires_s: float = 0.0
    public_key: str = ""

    def waits(self, now_s: float) -> bool:
        """Whether somebody may still come with the token that was made for this client."""
        return bool(self.token_sha256) and now_s < self.expires_s


@dataclass(frozen=True, slots=True)
class Invitation:
    """An open one: ``seats`` are left, each for one of ``names``."""

    token_sha256: str
    expires_s: float
    seats: int
    names: tuple[str, ...]


def read_members(path: Path) -> tuple[dict[str, Member], tuple[Invitation, ...]]:
    """Return the members by name, and the open invitations.

    Raises:
        IdentityError: the file is not a roster, or others than its owner may open it.
    """
    try:
        content = json.loads(read_secret(path, limit=_MAX_BYTES).decode())  # json itself would try other encodings
    except (ValueError, RecursionError) as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(f"{path}: expected a roster in JSON; {_RESTORE}") from None
    if not isinstance(content, dict) or content.keys() != {"clients", "invitations"}:
        raise IdentityError(f"{path}: expected a table of clients and invitations; {_RESTORE}")
    members = {}
    for row in _rows(path, content, "clients", _MEMBER):
        member = Member(**row)
        if checked_name(member.client) in members:
            raise IdentityError(f"{path}: client {member.client!r} is there twice; {_RESTORE}")
        if member.public_key:
            decode(member.public_key, PUBLIC_KEY_BYTES, f"{path}: the key of {member.client!r}")
        members[member.client] = member
    invitations = []
    for row in _rows(path, content, "invitations", _INVITATION):
        names = row["names"]
        if not all(isinstance(name, str) for name in names):
            raise IdentityError(f"{path}: an invitation's names are not names; {_RESTORE}")
        invitations.append(Invitation(**{**row, "names": tuple(names)}))
    return members, tuple(invitations)


def write_members(path: Path, members: Mapping[str, Member], invitations: Sequence[Invitation]) -> None:
    """Put the file in place, whole."""
    content = {
        "clients": [asdict(members[name]) for name in sorted(members)],
        "invitations": [asdict(one) for one in invitations],
    }
    text = (json.dumps(content, indent=1) + "\n").encode()

    def write(file: IO[bytes]) -> None:
        file.write(text)
        _give_to_owner(file.fileno(), path.parent)

    save_atomically(path, write, mode=0o600)


class MembersFile:
    """What the file holds. May be used from any thread; other processes may change the file at any time."""

    def __init__(self, path: Path) -> None:
        """``path`` need not exist yet.

        Raises:
            IdentityError: the file is not a roster, or others than its owner may open it.
        """
        self._path = path
        self._lock = threading.RLock()
        self._seen: tuple[int, int, int] | None = None
        self._certain = False
        self.members: Mapping[str, Member] = {}
        self.invitations: tuple[Invitation, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Read the file anew if it was changed; that costs one look at its times, and no more, where it was not.

        Raises:
            IdentityError: it is not a roster any more, or gone.
        """
        if self._certain and self._stamp() == self._seen:
            return
        with self._lock:
            stamp = self._stamp()  # before reading: what is written meanwhile is read the next time
            if stamp is None:
                if self._seen is not None:
                    raise IdentityError(f"{self._path}: was there, and is gone; {_RESTORE}")
                return
            if not (self._certain and stamp == self._seen):
                self.members, self.invitations = read_members(self._path)
                self._note(stamp)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other threads and processes from changing the file, and know what is in it now.

        Raises:
            IdentityError: as in ``refresh``.
            OSError: the file beside it that is locked cannot be opened.
        """
        with self._lock:
            lock = os.open(
                self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                _give_to_owner(lock, self._path.parent)
                fcntl.flock(lock, fcntl.LOCK_EX)  # held for one small write; it ends with its process, too
                self.refresh()
                yield
            finally:
                os.close(lock)

    def save(self, members: Mapping[str, Member], invitations: tuple[Invitation, ...]) -> None:
        """Only while ``changing``. Only what is on the disk is believed: should writing fail, all stays as it was."""
        write_members(self._path, members, invitations)
        self.members, self.invitations = members, invitations
        stamp = self._stamp()
        assert stamp is not None
        self._note(stamp)

    def _note(self, stamp: tuple[int, int, int]) -> None:
        self._seen = stamp
        self._certain = abs(time.time_ns() - stamp[1]) > _RACY_NS

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"{self._path}: cannot be looked at ({error.strerror})") from error
        return status.st_ino, status.st_mtime_ns, status.st_size


def _give_to_owner(descriptor: int, folder: Path) -> None:
    """Should the administrator act as root, a file is still whose its folder is: the server must be able to read it."""
    if os.geteuid() == 0:
        owner = os.stat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _rows(
    path: Path, content: Mapping[str, Any], what: str, fields: Mapping[str, type | tuple[type, ...]]
) -> Iterator[dict[str, Any]]:  # Any: what JSON holds
    """Return the entries of a table, each with these fields, of these types, and no others."""
    if not isinstance(content[what], list):
        raise IdentityError(f"{path}: expected a list of {what}; {_RESTORE}")
    for at, row in enumerate(content[what]):
        if not (
            isinstance(row, dict)
            and row.keys() == fields.keys()
            and all(isinstance(row[name], kind) for name, kind in fields.items())
        ):
            raise IdentityError(f"{path}: entry {at} of {what} is not one with {sorted(fields)}; {_RESTORE}")
        yield row

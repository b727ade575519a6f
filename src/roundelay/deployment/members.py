"""The file of a roster: the clients that may take part, and the open invitations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roundelay.deployment.identity import PUBLIC_KEY_BYTES, checked_name, decode, read_secret, write_secret
from roundelay.errors import IdentityError

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
    "names": (list, type(None)),
}
_RESTORE = "restore it from a copy"


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
    """An open one: ``seats`` are left, each for one of ``names`` (None: for any name)."""

    token_sha256: str
    expires_s: float
    seats: int
    names: tuple[str, ...] | None


def read_members(path: Path) -> tuple[dict[str, Member], tuple[Invitation, ...]]:
    """Return the members by name, and the open invitations.

    Raises:
        IdentityError: the file is not a roster, or others than its owner may open it.
    """
    try:
        content = json.loads(read_secret(path, limit=_MAX_BYTES))
    except ValueError as error:
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
        if not all(isinstance(name, str) for name in names or ()):
            raise IdentityError(f"{path}: an invitation's names are not names; {_RESTORE}")
        invitations.append(Invitation(**{**row, "names": None if names is None else tuple(names)}))
    return members, tuple(invitations)


def write_members(path: Path, members: Mapping[str, Member], invitations: Sequence[Invitation]) -> None:
    """Put the file in place, whole."""
    content = {
        "clients": [asdict(members[name]) for name in sorted(members)],
        "invitations": [asdict(one) for one in invitations],
    }
    write_secret(path, (json.dumps(content, indent=1) + "\n").encode())


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

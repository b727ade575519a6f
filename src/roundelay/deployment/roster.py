"""Who may take part, kept by the server: each client's public key, or the hash of the token that it may bring one with.

It holds for all runs of a server. Which clients take part in one run, and which requests they have made, is in the
journal of that run.

A token opens the door once. It may be shown again with the key that it was shown with first, since the answer to a
device may have been lost on the way; with any other key it is spent.
"""

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from roundelay.deployment.identity import PUBLIC_KEY_BYTES, checked_name, decode, encode, read_secret, write_secret
from roundelay.errors import IdentityError

TOKEN_BYTES = 32
_MAX_BYTES = 256 * 2**20
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "client": str,
    "token_sha256": str,
    "expires_s": (int, float),
    "public_key": str,
}


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time secret of 256 random bits. Only ``reveal`` shows it: its ``repr`` and ``str`` do not."""

    _text: str = field(repr=False)

    @staticmethod
    def new() -> "Token":
        return Token(encode(secrets.token_bytes(TOKEN_BYTES)))

    def reveal(self) -> str:
        return self._text

    def __str__(self) -> str:
        return "<token, not shown>"


@dataclass(frozen=True, slots=True)
class Member:
    """One client. Texts are empty where there is nothing: no token was given out, or no key has come yet."""

    client: str
    token_sha256: str = ""
    expires_s: float = 0.0
    public_key: str = ""


class Roster:
    """The members, in one JSON file that is written whole at each change, before the change is answered for.

    ``now_s`` is seconds since 1970 by the server's own clock. Made for the thousands; not for a million.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist yet.

        Raises:
            IdentityError: the file is not a roster, or others than its owner may open it.
        """
        self._path = path
        self._members = _members(path) if path.exists() else {}

    def __contains__(self, client: str) -> bool:
        return client in self._members

    def clients(self) -> list[str]:
        return sorted(self._members)

    def invite(self, client: str, valid_s: float, now_s: float) -> Token:
        """Return a token with which ``client`` may enrol within ``valid_s``; one given out before is void.

        A client that is enrolled keeps its key until the new token is used: it is how a device gets a new key.

        Raises:
            IdentityError: the name or the time cannot be.
        """
        if not (math.isfinite(valid_s) and valid_s > 0):
            raise IdentityError(f"client {client!r}: a token must be valid for some seconds, got valid_s = {valid_s!r}")
        token = Token.new()
        known = self._members.get(client, Member(checked_name(client)))
        self._put(replace(known, token_sha256=_hash(token.reveal()), expires_s=now_s + valid_s))
        return token

    def admit(self, client: str, public_key: bytes) -> None:
        """Enrol ``client`` without a token: its key was made together with its kit."""
        self._put(Member(checked_name(client), public_key=_public_text(public_key)))

    def enrol(self, token: str, public_key: bytes, now_s: float) -> str:
        """Spend the token, bind the key to the client that it was made for, and return that client's name.

        Raises:
            IdentityError: the token is unknown, too old, or was used with another key.
        """
        came, shown = _hash(token), _public_text(public_key)
        found: Member | None = None
        for member in self._members.values():  # all of them, each in constant time: how long it takes tells nothing
            if hmac.compare_digest(member.token_sha256, came):
                found = member
        if found is None:
            raise IdentityError(
                "this token is not one that the server has given out, or a later one took its place; "
                "was it copied whole? Otherwise ask the server's administrator for a new one"
            )
        who = f"client {found.client!r}"
        if not found.expires_s:
            if found.public_key == shown:
                return found.client
            raise IdentityError(f"{who}: this token has been used with another key; ask for a new one, and if nobody "
                                "at your site has used it, say so")  # fmt: skip
        if now_s >= found.expires_s:
            late = _span(now_s - found.expires_s)
            raise IdentityError(f"{who}: this token ran out {late} ago; ask the server's administrator for a new one")
        self._put(replace(found, expires_s=0.0, public_key=shown))
        return found.client

    def public_key(self, client: str) -> bytes:
        """Return the key that ``client`` signs with.

        Raises:
            IdentityError: nobody of that name is enrolled.
        """
        member = self._members.get(client)
        if member is None or not member.public_key:
            raise IdentityError(f"client {client!r} is not enrolled; it must join with a token first")
        return decode(member.public_key, PUBLIC_KEY_BYTES, f"the key of {client!r}")

    def revoke(self, client: str) -> None:
        """Forget the client, its key and its token: nothing that it signs is taken from now on."""
        if client in self._members:
            self._save({name: member for name, member in self._members.items() if name != client})

    def _put(self, member: Member) -> None:
        self._save({**self._members, member.client: member})

    def _save(self, members: dict[str, Member]) -> None:
        """Only what is on the disk is believed: should writing fail, the roster stays as it was."""
        rows = [asdict(members[name]) for name in sorted(members)]
        write_secret(self._path, (json.dumps(rows, indent=1) + "\n").encode())
        self._members = members


def _members(path: Path) -> dict[str, Member]:
    try:
        rows = json.loads(read_secret(path, limit=_MAX_BYTES))
    except ValueError as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(f"{path}: expected a roster in JSON; restore it from a copy") from None
    if not isinstance(rows, list):
        raise IdentityError(f"{path}: expected a list of clients, got {type(rows).__name__}; restore it from a copy")
    members = {}
    for at, row in enumerate(rows):
        if not (
            isinstance(row, dict)
            and row.keys() == _FIELDS.keys()
            and all(isinstance(row[name], kind) for name, kind in _FIELDS.items())
        ):
            raise IdentityError(f"{path}: entry {at} is not a client with {sorted(_FIELDS)}; restore it from a copy")
        member = Member(**row)
        if checked_name(member.client) in members:
            raise IdentityError(f"{path}: client {member.client!r} is there twice; restore the file from a copy")
        if member.public_key:
            decode(member.public_key, PUBLIC_KEY_BYTES, f"{path}: the key of {member.client!r}")
        members[member.client] = member
    return members


def _public_text(public_key: bytes) -> str:
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise IdentityError(f"a public key has {PUBLIC_KEY_BYTES} bytes, got {len(public_key)}")
    return encode(public_key)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"

"""Who may take part, kept by the server: each client's public key, or the hash of the token that it may bring one with.

It holds for all runs of a server. Which clients take part in one run, and which requests they have made, is in the
journal of that run.

A token opens the door once, for the client that it was made for; that of an open invitation opens it as often as there
are seats, for whoever comes first. It may be shown again with a key that it was shown with, since the answer may have
been lost on the way.
"""

import hashlib
import hmac
import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from roundelay.deployment.trust.identity import PUBLIC_KEY_BYTES, checked_name, decode, encode
from roundelay.deployment.trust.members import Invitation, Member, MembersFile
from roundelay.errors import IdentityError

TOKEN_BYTES = 32
_REMEMBERED_S = 30 * 86_400.0
"""For how long it is told of an open invitation that it ran out; then it is forgotten."""


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


class Roster:
    """The members and the open invitations, in one JSON file that is written whole at each change, before the change is
    answered for. May be called from any thread, and other processes may change the file: it is read anew then.

    ``now_s`` is seconds since 1970 by the server's own clock. Made for the thousands; not for a million.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist yet.

        Raises:
            IdentityError: the file is not a roster, or others than its owner may open it.
        """
        self._file = MembersFile(path)

    def __contains__(self, client: str) -> bool:
        return client in self._file.members

    def refresh(self) -> None:
        """See what other processes have changed. ``public_key`` and all that changes something do so by themselves.

        Raises:
            IdentityError: the file is not a roster any more, or gone.
        """
        self._file.refresh()

    def clients(self) -> list[str]:
        return sorted(self._file.members)

    def members(self) -> list[Member]:
        """Return who may take part, and who was invited, by name."""
        return [self._file.members[name] for name in self.clients()]

    def expects(self, client: str, now_s: float) -> bool:
        """Whether a client may come as it is: it has a key, or a token that was made for it."""
        known = self._file.members.get(client)
        return known is not None and bool(known.public_key or known.waits(now_s))

    def invitations(self) -> tuple[Invitation, ...]:
        """Return those that anybody of several may use, in the order of their making."""
        return self._file.invitations

    def invite(self, client: str, valid_s: float, now_s: float) -> Token:
        """Return a token with which ``client`` may enrol within ``valid_s``; one given out before is void.

        A client that is enrolled keeps its key until the new token is used: it is how a device gets a new key.

        Raises:
            IdentityError: the name or the time cannot be.
        """
        _check_time(f"client {client!r}", valid_s)
        token = Token.new()
        with self._file.changing():  # from reading to writing: a seat is given once
            known = self._file.members.get(client, Member(checked_name(client)))
            self._put(replace(known, token_sha256=_hash(token.reveal()), expires_s=now_s + valid_s))
        return token

    def open_door(self, names: Sequence[str], seats: int, valid_s: float, now_s: float) -> Token:
        """Return a token with which ``seats`` devices may enrol within ``valid_s``, each as another one of
        ``names``. Those given out before stay good until they run out.

        Raises:
            IdentityError: a name or a number cannot be.
        """
        _check_time("an open invitation", valid_s)
        if seats < 1 or not names:
            raise IdentityError(f"an open invitation needs seats and names for them, got {seats} seats for {names}")
        token = Token.new()
        allowed = tuple(checked_name(name) for name in names)
        made = Invitation(_hash(token.reveal()), now_s + valid_s, seats, allowed)
        with self._file.changing():
            kept = [one for one in self._file.invitations if now_s < one.expires_s + _REMEMBERED_S]
            self._save(self._file.members, (*kept, made))
        return token

    def admit(self, client: str, public_key: bytes) -> None:
        """Enrol ``client`` without a token: its key was made together with its kit."""
        with self._file.changing():
            self._put(Member(checked_name(client), public_key=_public_text(public_key)))

    def bind(self, client: str, public_key: bytes) -> None:
        """Enrol ``client`` without a token, as whoever is reached under its address; the first key that came stands.

        Raises:
            IdentityError: the client has another key already.
        """
        shown = _public_text(public_key)
        with self._file.changing():
            known = self._file.members.get(client, Member(checked_name(client)))
            if known.public_key == shown:
                return
            if known.public_key:
                raise IdentityError(f"client {client!r} came with another key before; if its machine was replaced, "
                                    "have the server's administrator revoke it, so that it is met anew")  # fmt: skip
            self._put(replace(known, public_key=shown))

    def enrol(
        self, token: str, public_key: bytes, now_s: float, client: str | None = None, taken: Collection[str] = ()
    ) -> str:
        """Bind the key to a client's name, spend the token or one of its seats, and return the name.

        A personal token is for the client that it was made for, and ``client`` may only repeat it. With an open
        invitation ``client`` is who the device would be; None: the first free name. ``taken`` are names that it does
        not give, though they are not on this roster.

        Raises:
            IdentityError: the token is unknown, too old, was made for another client, or was used with another key; or
                the name is taken, or no seat is left.
        """
        shown = _public_text(public_key)
        with self._file.changing():
            found = self._found(_hash(token))
            if isinstance(found, Invitation):
                return self._seat(found, shown, now_s, client, taken)
            if client is not None and client != found.client:
                raise IdentityError(f"this token was made for client {found.client!r}, not for {client!r}; join "
                                    "without a name, or ask for a token of this name")  # fmt: skip
            return self._spend(found, shown, now_s)

    def public_key(self, client: str) -> bytes:
        """Return the key that ``client`` signs with.

        Raises:
            IdentityError: nobody of that name is enrolled, or the file cannot be read any more.
        """
        self._file.refresh()
        member = self._file.members.get(client)
        if member is None or not member.public_key:
            raise IdentityError(f"client {client!r} is not enrolled; it must join with a token first")
        return decode(member.public_key, PUBLIC_KEY_BYTES, f"the key of {client!r}")

    def revoke(self, client: str) -> None:
        """Forget the client, its key and its token: nothing that it signs is taken from now on."""
        with self._file.changing():
            if client in self._file.members:
                left = {name: member for name, member in self._file.members.items() if name != client}
                self._save(left, self._file.invitations)

    def close_doors(self) -> int:
        """Make all open invitations void; return of how many seats. Those who came with one stay, and so do tokens that
        were made for one client.
        """
        with self._file.changing():
            left = sum(one.seats for one in self._file.invitations)
            self._save(self._file.members, ())
        return left

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _found(self, came: str) -> Member | Invitation:
        found: Member | Invitation | None = None
        known: list[Member | Invitation] = [*self._file.members.values(), *self._file.invitations]
        for one in known:  # all of them, each in constant time: how long it takes tells nothing
            if hmac.compare_digest(one.token_sha256, came):
                found = one
        if found is None:
            raise IdentityError(
                "this token is not one that the server has given out, or a later one took its place; "
                "was it copied whole? Otherwise ask the server's administrator for a new one"
            )
        return found

    def _spend(self, found: Member, shown: str, now_s: float) -> str:
        who = f"client {found.client!r}"
        if not found.expires_s:
            if found.public_key == shown:
                return found.client
            raise IdentityError(f"{who}: this token has been used with another key; ask for a new one, and if nobody "
                                "at your site has used it, say so")  # fmt: skip
        _check_date(who, found.expires_s, now_s)
        self._put(replace(found, expires_s=0.0, public_key=shown))
        return found.client

    def _seat(self, found: Invitation, shown: str, now_s: float, client: str | None, taken: Collection[str]) -> str:
        for name, member in self._file.members.items():
            if member.public_key == shown and name in found.names and client in (None, name):
                return name  # it has a seat: the answer was lost on the way
        _check_date("an open invitation", found.expires_s, now_s)
        if client is not None and client not in found.names:
            raise IdentityError(f"this token is for other clients than {client!r}; expected {_some(found.names)}, or "
                                "no name, to be given one of these")  # fmt: skip
        if not found.seats:
            raise IdentityError("all seats of this invitation are taken; ask the server's administrator for a new one")
        if client is None:
            client = next((name for name in found.names if self._is_free(name, now_s, taken)), None)
            if client is None:
                raise IdentityError("all names of this invitation are taken; ask the server's administrator for "
                                    "another one")  # fmt: skip
        elif not self._is_free(client, now_s, taken):
            raise IdentityError(f"the name is taken: {client!r} is with another device, or a token of its own was made "
                                "for it; join under another name, or without one, to be given one")  # fmt: skip
        fewer = replace(found, seats=found.seats - 1)
        invitations = tuple(fewer if one is found else one for one in self._file.invitations)
        self._save({**self._file.members, client: Member(client, public_key=shown)}, invitations)
        return client

    def _is_free(self, name: str, now_s: float, taken: Collection[str]) -> bool:
        return name not in taken and not self.expects(name, now_s)

    def _put(self, member: Member) -> None:
        self._save({**self._file.members, member.client: member}, self._file.invitations)

    def _save(self, members: Mapping[str, Member], invitations: tuple[Invitation, ...]) -> None:
        self._file.save(members, invitations)


def _check_time(who: str, valid_s: float) -> None:
    if not (math.isfinite(valid_s) and valid_s > 0):
        raise IdentityError(f"{who}: a token must be valid for some seconds, got valid_s = {valid_s!r}")


def _check_date(who: str, expires_s: float, now_s: float) -> None:
    if now_s >= expires_s:
        late = _span(now_s - expires_s)
        raise IdentityError(f"{who}: this token ran out {late} ago; ask the server's administrator for a new one")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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

"""Who comes in: tokens and dialled connections let a client join, signatures let it speak."""

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.problems import Rejected
from roundelay.deployment.protocol import Join
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.identity import PUBLIC_KEY_BYTES, decode
from roundelay.deployment.trust.roster import Roster
from roundelay.deployment.trust.signing import Claim, Headers, Reason, Refused, Request, claimed, verify
from roundelay.errors import IdentityError, RoundelayError

log = logging.getLogger(__name__)


class Admission:
    """The roster says over all runs who has which key, the journal who takes part in this one. Blocks: for threads."""

    def __init__(self, board: Board, roster: Roster, doors: Doors, now_s: Callable[[], float]) -> None:
        self._board, self._journal = board, board.journal
        self._roster, self._doors, self._now_s = roster, doors, now_s
        self._lock = threading.Lock()  # what decides who joins is done by one at a time

    def has_room(self) -> bool:
        return self._doors.has_room(self._inside())

    def join(self, message: Join, dialled: str | None) -> str:
        """Bind a key to a name, admit the client of that name, and return the name. ``dialled`` is who was to be
        reached over this connection, None where it was opened from the other side.

        Raises:
            Rejected: the token, the key or the name is refused, or the run has no such client.
        """
        try:
            key = decode(message.public_key, PUBLIC_KEY_BYTES, "the public key")
        except IdentityError as error:
            raise Rejected("message", str(error)) from None
        self._look()
        with self._lock:
            inside = self._inside()
            name = message.client if message.token else dialled
            if name is not None and not self._doors.admits(name):  # before a token is spent on it
                raise Rejected("token", self._doors.refusal(name))
            try:
                client = self._enrolled(message, key, dialled, inside)
            except IdentityError as error:
                raise Rejected("token", str(error)) from None
            self._admit(client, _digest(key))
        self._board.saw(client)
        return client

    def enter(self, asked: Sequence[tuple[Request, Headers]]) -> list[Claim | RoundelayError]:
        """Return of each request who signed it, once its number was used up, or why it is refused: ``Refused`` where
        nobody did or it was made before, ``Rejected`` where whoever did is not enrolled or takes no part in this run.
        Those that came together cost one sync. A claim's digest and round are as it says: whoever reads the body, and
        knows the round, holds them against it.
        """
        self._look()
        entered: list[Claim | RoundelayError] = []
        signed: list[tuple[int, Claim, str]] = []
        for request, headers in asked:
            try:
                claim, key = self._signed(request, list(headers))
                signed.append((len(entered), claim, key))
                entered.append(claim)
            except RoundelayError as error:
                entered.append(error)
        late = self._uncounted(signed)
        for at, claim, key in late:
            refused = self._refused(claim, key)
            if refused is not None:
                entered[at] = refused
        new = [one for one in late if not isinstance(entered[one[0]], RoundelayError)]
        if new:
            with self._lock:
                self._journal.clients.admit_all([(claim.client, key) for _, claim, key in new])
            for at, claim, _ in self._uncounted(new):
                entered[at] = _replayed(claim)
        for at, claim, _ in signed:
            if entered[at] is claim:
                self._board.saw(claim.client)
        return entered

    def _uncounted(self, signed: Sequence[tuple[int, Claim, str]]) -> list[tuple[int, Claim, str]]:
        """Use up the numbers of requests; return those whose number does not count."""
        counts = self._journal.clients.advance([(claim.client, key, claim.sequence) for _, claim, key in signed])
        return [one for one, does_count in zip(signed, counts, strict=True) if not does_count]

    def _signed(self, request: Request, fields: Sequence[tuple[str, str]]) -> tuple[Claim, str]:
        """Return who signed a request, and the digest of the key."""
        claim = claimed(fields)
        try:
            key = self._roster.public_key(claim.client)
        except IdentityError as error:
            self._shut_out(claim.client)
            raise Rejected("signature", str(error)) from None
        said = replace(request, round=claim.round, digest=claim.digest)
        verify(said, fields, key, client=claim.client, last_sequence=-1, now_s=self._now_s())
        return claim, _digest(key)

    def _refused(self, claim: Claim, key: str) -> RoundelayError | None:
        """Say why a client whose request does not count is not let in; None: the journal does not know it yet with this
        key, and the run has a seat for it.
        """
        if self._journal.clients.get(claim.client, key) is not None:
            return _replayed(claim)
        if not self._doors.admits(claim.client):
            return Rejected("token", self._doors.refusal(claim.client))
        return None

    def _look(self) -> None:
        """See whom an administrator has revoked or invited in the meantime.

        Raises:
            Rejected: nobody can tell now who takes part; that is no reason for a device to give up.
        """
        try:
            self._roster.refresh()
        except (IdentityError, OSError) as error:
            log.error("nobody is let in: %s", error)
            raise Rejected(
                "disk", "the server cannot read who may take part; its administrator must see to it"
            ) from None

    def _shut_out(self, client: str) -> None:
        """Wait no longer for a client that is on no roster: it was revoked, and nothing of it would be taken."""
        self._board.forget(client)
        for kept in self._journal.tasks.open_of(client):
            self._journal.tasks.lose(kept.task.id, f"client {client!r} was revoked")
            self._board.came(kept.task.id)

    def _enrolled(self, message: Join, key: bytes, dialled: str | None, inside: Collection[str]) -> str:
        if message.token:
            # who was revoked is on no roster, and its name is not for the next one that comes
            taken = {name for name in inside if name not in self._roster}
            return self._roster.enrol(message.token, key, self._now_s(), message.client, taken)
        if dialled is None:
            raise IdentityError("a token is needed to join; ask the server's administrator for one")
        if message.client not in (None, dialled):
            raise IdentityError(f"this connection was made to reach client {dialled!r}, not {message.client!r}")
        if dialled not in self._roster and self._journal.clients.get(dialled, _digest(key)) is not None:
            raise IdentityError(f"client {dialled!r} was revoked, and comes with the key of before; if it is to take "
                                "part again, delete its folder, so that it makes a new one")  # fmt: skip
        self._roster.bind(dialled, key)
        return dialled

    def _admit(self, client: str, key: str) -> None:
        if not self._doors.admits(client):
            raise Rejected("token", self._doors.refusal(client))
        self._journal.clients.admit(client, key)

    def _inside(self) -> set[str]:
        return {one.client for one in self._journal.clients.all()}


def require_open(phase: Phase, reason: str) -> None:
    """Raises:
    Rejected: the run has ended, or is about to stop.
    """
    if phase is Phase.ENDED:
        raise Rejected("over", f"the run has ended: {reason}" if reason else "the run has ended")
    if phase is Phase.DRAINING:
        raise Rejected("draining", f"the server is about to stop{': ' if reason else ''}{reason}; come again")


def _replayed(claim: Claim) -> Refused:
    return Refused(
        Reason.REPLAYED,
        f"client {claim.client!r}: sequence number {claim.sequence} was used, or a higher one; sign it anew",
    )


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()

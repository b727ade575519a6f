"""Who has joined: enrolments, the one-time tokens that lead to them, and the numbers of signed requests."""

import hashlib
import sqlite3

from roundelay.deployment.database import Database
from roundelay.deployment.records import Denial, Enrolment, RequestDenied
from roundelay.errors import JournalMismatch

MAX_SEQUENCE = 2**63 - 1


class Clients:
    def __init__(self, db: Database) -> None:
        self._db = db

    def add_token(self, token: str, expires_at: float) -> None:
        """Let whoever shows this token enrol once, until then. Only its SHA-256 is kept.
        One that was added before stays as it is, used or not.
        """
        with self._db.writing("adding a token") as db:
            db.execute("INSERT OR IGNORE INTO tokens (sha256, expires_at) VALUES (?, ?)", (_sha256(token), expires_at))

    def enrol(self, client: str, public_key: bytes, token: str, now: float) -> Enrolment:
        """Let a client join, and use its token up. With the key that it has enrolled before it gets the same again:
        it may not have heard the first answer. ``now`` is what tokens expire by.

        Raises:
            RequestDenied: the token is unknown, used or expired; or the id has another key, or was revoked. A token is
                used up by an enrolment only.
        """
        # all in one transaction, so that of two who show one token at the same time only one gets in
        with self._db.writing(f"enrolling client {client!r}") as db:
            known = self.get(client)
            if known is not None and known.public_key == public_key:
                if not known.active:
                    raise _revoked(client)
                return known
            row = db.execute("SELECT expires_at, used_by FROM tokens WHERE sha256 = ?", (_sha256(token),)).fetchone()
            if row is None or row[1] is not None or now >= row[0]:
                problem = "is not known" if row is None else "was used before" if row[1] is not None else "has expired"
                raise RequestDenied(Denial.BAD_TOKEN, f"client {client!r}: the token {problem}; ask for another one")
            self._known(client, public_key)  # after the token: only who shows a good one learns that the id is taken
            enrolment = self._add(db, client, public_key, now)
            db.execute("UPDATE tokens SET used_by = ? WHERE sha256 = ?", (client, _sha256(token)))
        return enrolment

    def admit(self, client: str, public_key: bytes, now: float) -> Enrolment:
        """Let a client join whose key is known from elsewhere, from a roster, without a token. May be repeated.

        Raises:
            RequestDenied: the id has another key, or was revoked.
        """
        with self._db.writing(f"admitting client {client!r}") as db:
            return self._known(client, public_key) or self._add(db, client, public_key, now)

    def _known(self, client: str, public_key: bytes) -> Enrolment | None:
        known = self.get(client)
        if known is None:
            return None
        if known.public_key != public_key:
            raise RequestDenied(
                Denial.OTHER_KEY,
                f"client {client!r} has enrolled with another key; join under another id, or with the first key",
            )
        if not known.active:
            raise _revoked(client)
        return known

    def _add(self, db: sqlite3.Connection, client: str, public_key: bytes, now: float) -> Enrolment:
        sql = "INSERT INTO enrolments (client, public_key, enrolled_at) VALUES (?, ?, ?)"
        db.execute(sql, (client, public_key, now))
        return Enrolment(client, public_key, True, now)

    def revoke(self, client: str) -> None:
        """Shut a client out, for good.

        Raises:
            JournalMismatch: nobody of that id has enrolled.
        """
        with self._db.writing(f"revoking client {client!r}") as db:
            if not db.execute("UPDATE enrolments SET active = 0 WHERE client = ?", (client,)).rowcount:
                raise JournalMismatch(f"no client {client!r} has enrolled; is the id spelt right?")

    def advance(self, client: str, sequence: int) -> bool:
        """Take note of a signed request's number; return False where it is not higher than every one before, so that
        the request was captured or repeated, and for a client that is not enrolled or was revoked.
        """
        if not 0 <= sequence <= MAX_SEQUENCE:
            return False
        with self._db.writing(f"noting a request of client {client!r}") as db:
            sql = "UPDATE enrolments SET sequence = ? WHERE client = ? AND active AND sequence < ?"
            return db.execute(sql, (sequence, client, sequence)).rowcount == 1

    def get(self, client: str) -> Enrolment | None:
        rows = self._select("WHERE client = ?", client)
        return rows[0] if rows else None

    def all(self) -> tuple[Enrolment, ...]:
        """Return every enrolment, by client id."""
        return self._select("ORDER BY client")

    def _select(self, which: str, *values: object) -> tuple[Enrolment, ...]:
        rows = self._db.all(
            f"SELECT client, public_key, active, enrolled_at, sequence FROM enrolments {which}", *values
        )
        return tuple(
            Enrolment(client, key, bool(active), when, sequence) for client, key, active, when, sequence in rows
        )


def _revoked(client: str) -> RequestDenied:
    return RequestDenied(Denial.REVOKED, f"client {client!r} was revoked")


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

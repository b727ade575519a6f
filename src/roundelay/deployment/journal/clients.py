"""Which clients take part in this run, and the numbers of their signed requests.

Who may take part, and with which key, is for the roster to say, over all runs of a server. Here a key is a SHA-256 in
hexadecimal digits: enough to keep the numbers of one key apart from those of the next.
"""

from collections.abc import Sequence

from roundelay.deployment.journal.blobs import DIGEST
from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.records import Participant

MAX_SEQUENCE = 2**63 - 1


class Clients:
    """One row for each key that a client has come with. None is ever removed: were a client to come back to a key of
    before and begin anew, every request that was captured then would be good once more.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def admit(self, client: str, key_digest: str) -> Participant:
        """Let a client take part with the key that the roster has for it. May be repeated, and changes nothing then.
        With another key it begins a new sequence; what it was asked and has sent stays its own.

        Raises:
            ValueError: the digest is none; in another spelling it would be another key.
        """
        self.admit_all([(client, key_digest)])
        known = self.get(client, key_digest)
        assert known is not None
        return known

    def admit_all(self, clients: Sequence[tuple[str, str]]) -> None:
        """Let these clients take part, each with its key, at the cost of one.

        Raises:
            ValueError: as above.
        """
        for client, key_digest in clients:
            if not DIGEST.fullmatch(key_digest):
                raise ValueError(
                    f"client {client!r}: expected the SHA-256 of its key in 64 lower-case hexadecimal digits, "
                    f"got {key_digest!r}"
                )
        with self._db.writing(f"admitting {', '.join(client for client, _ in clients[:3])}") as db:
            db.executemany("INSERT OR IGNORE INTO clients (client, key_digest) VALUES (?, ?)", clients)

    def advance(self, requests: Sequence[tuple[str, str, int]]) -> list[bool]:
        """Take note of the numbers of requests, each with its client and the key that it was signed with, all of them
        or none. Return for each whether it counts: not where its number is not higher than every one before, so that
        the request was captured or repeated, and not where the client was not admitted with that key.
        """
        # the caller names the key that it verified with: it may have changed since, and the number is not the new one's
        if not requests:
            return []
        sql = "UPDATE clients SET sequence = ?1 WHERE client = ?2 AND key_digest = ?3 AND sequence < ?1"
        with self._db.writing(f"noting {len(requests)} requests") as db:
            return [
                0 <= number <= MAX_SEQUENCE and db.execute(sql, (number, client, key)).rowcount == 1
                for client, key, number in requests
            ]

    def get(self, client: str, key_digest: str) -> Participant | None:
        rows = self._select("WHERE client = ? AND key_digest = ?", client, key_digest)
        return rows[0] if rows else None

    def all(self) -> tuple[Participant, ...]:
        """Return every client, once for each of its keys, by id and in the order of their coming."""
        return self._select("ORDER BY client, rowid")

    def takes_part(self, client: str) -> bool:
        """Whether it was admitted, with whichever key."""
        return self._db.one("SELECT 1 FROM clients WHERE client = ? LIMIT 1", client) is not None

    def _select(self, which: str, *values: object) -> tuple[Participant, ...]:
        rows = self._db.all(f"SELECT client, key_digest, sequence FROM clients {which}", *values)
        return tuple(Participant(*row) for row in rows)

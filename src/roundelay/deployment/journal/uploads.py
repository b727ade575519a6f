"""Uploads in parts: what a client has sent stays, over cut connections and crashes, until the last byte is there.

Each client has one upload at most, so that what unfinished ones take is bounded by the number of clients.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from roundelay.deployment.journal.blobs import DIGEST, Blobs, Buffer
from roundelay.deployment.journal.database import Database
from roundelay.deployment.journal.records import Denial, RequestDenied


class Uploads:
    """May be called from any thread; of two calls for one client at the same time, one is denied."""

    def __init__(self, db: Database, blobs: Blobs, max_bytes: int) -> None:
        self._db, self._blobs, self._max_bytes = db, blobs, max_bytes
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        # by client: how far its upload was hashed while it came, so that it is not read again when whole. One that
        # was begun before a restart is not here, and is read
        self._hashed: dict[str, tuple[int, hashlib._Hash]] = {}
        blobs.remove_unfinished({blobs.part(client) for (client,) in db.all("SELECT client FROM uploads")})

    def begin(self, client: str, digest: str, size: int) -> int:
        """Return the offset from which the client is to go on: 0, or where the synced part of the same upload ends.
        Another upload that the client had begun is forgotten.

        Raises:
            RequestDenied: the size is not allowed, or the digest is none. Nothing was written.
        """
        if not DIGEST.fullmatch(digest):
            raise RequestDenied(Denial.BAD_DIGEST, f"client {client!r}: expected a SHA-256 in hexadecimal digits")
        if not 0 < size <= self._max_bytes:
            raise RequestDenied(
                Denial.WRONG_SIZE, f"client {client!r} wants to send {size} bytes; up to {self._max_bytes} are allowed"
            )
        with self._alone(client):
            kept = self._db.one("SELECT digest, size, received FROM uploads WHERE client = ?", client)
            received: int = kept[2] if kept is not None and kept[:2] == (digest, size) else 0
            if received and not self._is_there(client, digest, size, received):
                received = 0
            if kept != (digest, size, received):
                self._hashed.pop(client, None)
                with self._db.writing("beginning an upload") as db:
                    db.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?)", (client, digest, size, received))
            return received

    def received(self, client: str, digest: str, size: int) -> int | None:
        """Return where the client's upload goes on, None where it has begun no such upload."""
        row = self._db.one(
            "SELECT received FROM uploads WHERE client = ? AND digest = ? AND size = ?", client, digest, size
        )
        return None if row is None else int(row[0])

    def write(self, client: str, digest: str, offset: int, data: bytes | Sequence[Buffer]) -> int:
        """Add a part, in one piece or several; return the offset of the next one. The part is on disk when this
        returns.

        Raises:
            RequestDenied: no such upload was begun, or the part lies elsewhere than at its end; ``begin`` says where.
            JournalError: it could not be written, and is not counted.
        """
        pieces = [data] if isinstance(data, bytes) else data
        end = offset + sum(map(len, pieces))
        with self._alone(client):
            size, received = self._begun(client, digest)
            if offset != received:
                raise RequestDenied(
                    Denial.WRONG_OFFSET, f"client {client!r} sent a part at {offset}; its upload goes on at {received}"
                )
            if end > size:
                raise RequestDenied(Denial.WRONG_SIZE, f"client {client!r} sent {end} bytes of an upload of {size}")
            if end > offset:
                at, hasher = self._hashed.pop(client, (0, None))  # it is kept only if all of this comes to its end
                self._blobs.append(self._blobs.part(client), pieces, offset)
                with self._db.writing("counting a part of an upload") as db:
                    db.execute("UPDATE uploads SET received = ? WHERE client = ?", (end, client))
                if not offset:
                    at, hasher = 0, hashlib.sha256()
                if hasher is not None and at == offset:
                    for piece in pieces:
                        hasher.update(piece)
                    self._hashed[client] = (end, hasher)
            return end

    def take_whole(self, client: str, digest: str, pieces: Sequence[Buffer]) -> None:
        """Take an upload that comes in one part, whether it was begun or not; one that the client had begun is
        forgotten. It is a blob when this returns, and pinned as one that was put. Nothing is noted of its progress, as
        there is none: after a crash before ``Journal.accept`` it is sent again.

        Raises:
            RequestDenied: the bytes have another digest; the message says so.
            JournalError: it could not be written.
        """
        hasher = hashlib.sha256()
        for piece in pieces:
            hasher.update(piece)
        with self._alone(client):
            if self._db.one("SELECT 1 FROM uploads WHERE client = ?", client) is not None:
                self._forget(client)
            if hasher.hexdigest() != digest:
                raise _damaged(client, digest, sum(map(len, pieces)))
            self._blobs.put(pieces, digest)

    def finish(self, client: str, digest: str) -> None:
        """Verify the whole upload, which then is a blob. It is kept until the client begins another one, or until
        ``Journal.accept`` takes it. May be repeated.

        Raises:
            RequestDenied: bytes are missing; or they have another digest, and are removed.
        """
        with self._alone(client):
            size, received = self._begun(client, digest)
            if received != size:
                raise RequestDenied(
                    Denial.INCOMPLETE, f"client {client!r} has sent {received} of {size} bytes; go on at {received}"
                )
            part = self._blobs.part(client)
            at, hasher = self._hashed.pop(client, (0, None))
            if not part.exists():
                self._blobs.require(digest, size)
            elif not self._blobs.promote(part, digest, hasher.hexdigest() if hasher and at == size else None):
                self._forget(client)
                raise _damaged(client, digest, size)

    def drop(self, client: str) -> None:
        """Forget what the client has sent of an upload, if it has begun one."""
        with self._alone(client):
            self._forget(client)

    def _forget(self, client: str) -> None:
        self._hashed.pop(client, None)
        with self._db.writing("forgetting an upload") as db:
            db.execute("DELETE FROM uploads WHERE client = ?", (client,))
        self._blobs.drop(self._blobs.part(client))

    def _begun(self, client: str, digest: str) -> tuple[int, int]:
        row = self._db.one("SELECT size, received FROM uploads WHERE client = ? AND digest = ?", client, digest)
        if row is None:
            raise RequestDenied(
                Denial.NO_UPLOAD, f"client {client!r} has begun no upload of {digest!r}; begin it first"
            )
        size, received = row
        return size, received

    def _is_there(self, client: str, digest: str, size: int, received: int) -> bool:
        """Tell whether the counted bytes lie where they should; a person may have removed them."""
        part = self._blobs.part(client)
        if part.exists():
            return part.stat().st_size >= received
        return received == size and self._blobs.path(digest).exists()

    @contextmanager
    def _alone(self, client: str) -> Iterator[None]:
        with self._lock:
            if client in self._busy:
                raise RequestDenied(Denial.BUSY, f"client {client!r} is uploading on another connection; try again")
            self._busy.add(client)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(client)


def _damaged(client: str, digest: str, size: int) -> RequestDenied:
    return RequestDenied(
        Denial.WRONG_DIGEST,
        f"client {client!r}: the {size} bytes do not have the SHA-256 {digest} that was announced; they were removed, "
        "send them again",
    )

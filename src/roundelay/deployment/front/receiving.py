"""Receiving the parts of an answer: how many bytes at a time, from whom, and for how long they are waited for."""

import asyncio
import hashlib
import mmap
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiohttp import web

from roundelay.deployment.front.connections import BUFFER_BYTES
from roundelay.deployment.front.problems import Rejected
from roundelay.deployment.front.threads import outlasting
from roundelay.deployment.front.turns import Turns
from roundelay.deployment.journal.blobs import Buffer
from roundelay.deployment.journal.disk import Disk, write_all
from roundelay.deployment.protocol import MAX_MESSAGE_BYTES, PART_BYTES

_QUERY = re.compile(r"digest=(?P<digest>[0-9a-f]{64})&offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})")
_DISK = Disk()

SPILL_BYTES = 16 * 2**10
ROOM_BYTES = SPILL_BYTES + 2 * BUFFER_BYTES
"""So much of a part is in memory before it is written to a file, and so much more on its way there."""

_WAYS = "digest=<sha-256>&offset=<bytes>&size=<bytes>"


@dataclass(frozen=True, slots=True)
class Part:
    """``length`` bytes from ``offset`` on, of an answer of ``size`` bytes that has this digest."""

    digest: str
    offset: int
    size: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def is_whole(self) -> bool:
        return self.length == self.size


def announced(request: web.Request) -> Part:
    """Return which part a request brings, by its signed query, and by its header fields, which must not differ.

    Raises:
        Rejected: they do, or it is longer than a part may be.
    """
    found = _QUERY.fullmatch(request.raw_path.partition("?")[2])
    if not found:
        raise Rejected("message", f"the query must be {_WAYS}, in this order")
    length = request.content_length
    if length is None:
        raise Rejected("message", "a part needs a Content-Length")
    if length > PART_BYTES:
        raise Rejected("too_large", f"a part may have {PART_BYTES} bytes, this one has {length}; send smaller ones")
    part = Part(found["digest"], int(found["offset"]), int(found["size"]), length)
    if not length or part.end > part.size:
        raise Rejected(
            "message", f"a part of {length} bytes at {part.offset} does not fit an answer of {part.size} bytes"
        )
    ranges = request.headers.getall("Content-Range", [])
    expected = f"bytes {part.offset}-{part.end - 1}/{part.size}"
    if ranges != [expected]:
        raise Rejected("message", f"Content-Range must be there once, as {expected!r}, to fit query and length")
    return part


class Intake:
    """Receives parts, one for each client at a time: one that comes while another is under way takes its place, since
    its client then has given the other one up.

    The budget is of memory. ``ROOM_BYTES`` of it are kept for each part, which is how many there may be at once, and
    the rest is for whoever comes first. When it is used up, what has come goes to files that have no name, so that
    nobody who sends slowly, or stops in the middle, keeps others from sending.
    """

    def __init__(self, budget_bytes: int, patience_s: float, folder: Path, writers: Executor, turns: Turns) -> None:
        """``folder`` is where files may be opened; ``writers`` are the threads that write them."""
        if budget_bytes < ROOM_BYTES:
            raise ValueError(f"in_flight_bytes: expected at least {ROOM_BYTES}, got {budget_bytes}")
        self.budget_bytes, self.patience_s, self.folder, self.writers = budget_bytes, patience_s, folder, writers
        self.turns = turns
        self.in_flight = 0
        self._reading: dict[str, web.Request] = {}
        self.num_parts = 0

    @contextmanager
    def receiving(self, client: str) -> Iterator["Body"]:
        """Give what a part is read into. It counts as long as the block lasts.

        Raises:
            Rejected: there are too many already.
        """
        if client in self._reading:
            _cut(self._reading.pop(client))
        if self.num_parts >= self.budget_bytes // ROOM_BYTES:
            raise Rejected("busy", f"{self.num_parts} answers are on their way in; come again in a second")
        self.num_parts += 1
        body = Body(self)
        try:
            yield body
        finally:
            self.num_parts -= 1
            body.close()

    @property
    def is_full(self) -> bool:
        """Whether what is held beyond the room of each part must go to files."""
        return self.in_flight > self.budget_bytes - self.num_parts * ROOM_BYTES

    @contextmanager
    def alone(self, client: str, request: web.Request) -> Iterator[None]:
        self._reading[client] = request
        try:
            yield
        finally:
            if self._reading.get(client) is request:
                del self._reading[client]


class Body:
    """What has come of a part: the first of it in a file, if it was too much for the memory, and the rest."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._pieces: list[bytes] = []
        self._held = self._written = 0
        self._file: IO[bytes] | None = None

    async def read(self, request: web.Request, client: str, length: int, alive: Callable[[], object]) -> bytes:
        """Read it, and return its SHA-256. Whoever sends nothing for too long is cut; ``alive`` is called whenever
        something comes.

        Raises:
            ConnectionError: it did not come whole.
        """
        came, hasher = 0, hashlib.sha256()
        with self._intake.alone(client, request):
            while came < length:
                piece = await _piece(request, self._intake.patience_s)
                if not piece:
                    raise ConnectionResetError(f"{came} of {length} bytes came")
                alive()
                came += len(piece)
                await self._intake.turns.turn()
                hasher.update(piece)
                await self._keep(piece)
        if came != length:
            raise Rejected("message", f"the body has {came} bytes, not the {length} of its Content-Length")
        return hasher.digest()

    def pieces(self) -> list[Buffer]:
        """Return it as it came, in order. What is in the file are pages of the file, no memory of the server's."""
        if self._file is None:
            return list(self._pieces)
        pages = mmap.mmap(self._file.fileno(), self._written, access=mmap.ACCESS_READ)
        return [memoryview(pages), *self._pieces]

    def close(self) -> None:
        """Give back what it takes; what is being written must have been written."""
        self._intake.in_flight -= self._held
        self._held = 0
        if self._file is not None:
            self._file.close()

    async def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        self._intake.in_flight += len(piece)
        if self._held < SPILL_BYTES or not self._intake.is_full:
            return
        await outlasting(asyncio.get_running_loop().run_in_executor(self._intake.writers, self._spill))
        self._written += self._held
        self._intake.in_flight -= self._held
        self._held, self._pieces = 0, []

    def _spill(self) -> None:
        """In a thread."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._intake.folder)  # noqa: SIM115 - until ``close``
        at = self._written
        for piece in self._pieces:
            write_all(_DISK, self._file.fileno(), piece, at)
            at += len(piece)


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def read_message(request: web.Request, patience_s: float, most: int = MAX_MESSAGE_BYTES) -> bytes:
    """Return a body in JSON. Whoever has not sent all of it after ``patience_s`` seconds is cut.

    Raises:
        Rejected: it is longer than a message may be.
        ConnectionError: it did not come whole.
    """
    too_large = Rejected("too_large", f"such a message may have {most} bytes, this one has more")
    if (request.content_length or 0) > most:
        raise too_large
    body, until_s = bytearray(), asyncio.get_running_loop().time() + patience_s
    while piece := await _piece(request, until_s - asyncio.get_running_loop().time()):
        body += piece
        if len(body) > most:
            raise too_large
    return bytes(body)


async def _piece(request: web.Request, patience_s: float) -> bytes:
    """Return what has come of the body, b"" at its end. Whoever sends nothing for so long is cut."""
    try:
        async with asyncio.timeout(patience_s):
            return await request.content.readany()
    except TimeoutError:
        _cut(request)
        raise ConnectionResetError("nothing came for too long") from None

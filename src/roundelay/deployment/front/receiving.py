"""Receiving the parts of an answer: how many bytes at a time, from whom, and for how long they are waited for."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from roundelay.deployment.front.problems import Rejected
from roundelay.deployment.protocol import MAX_MESSAGE_BYTES, PART_BYTES

_QUERY = re.compile(r"digest=(?P<digest>[0-9a-f]{64})&offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})")
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
    """Bounds what is held in memory of parts that are under way: by a budget in bytes, and by one part for each client.
    One that comes while another is under way takes its place, since its client then has given the other one up.
    """

    def __init__(self, budget_bytes: int, patience_s: float) -> None:
        if budget_bytes < PART_BYTES:
            raise ValueError(f"in_flight_bytes: expected at least one part, {PART_BYTES}, got {budget_bytes}")
        self._budget, self._patience_s = budget_bytes, patience_s
        self.in_flight = 0
        self._reading: dict[str, web.Request] = {}

    @contextmanager
    def holding(self, client: str, length: int) -> Iterator[None]:
        """Count these bytes as long as the block lasts.

        Raises:
            Rejected: there are too many already.
        """
        if client in self._reading:
            _cut(self._reading.pop(client))
        if self.in_flight + length > self._budget:
            raise Rejected("busy", f"{self.in_flight} bytes of answers are under way; come again in a second")
        self.in_flight += length
        try:
            yield
        finally:
            self.in_flight -= length

    async def read(
        self, request: web.Request, client: str, length: int, alive: Callable[[], object]
    ) -> tuple[list[bytes], bytes]:
        """Return the body, in pieces as they came, and its SHA-256. Whoever sends nothing for too long is cut;
        ``alive`` is called whenever something comes.

        Raises:
            ConnectionError: it did not come whole.
        """
        self._reading[client] = request
        body, came, hasher = list[bytes](), 0, hashlib.sha256()
        try:
            while came < length:
                piece = await _piece(request, self._patience_s)
                if not piece:
                    raise ConnectionResetError(f"{came} of {length} bytes came")
                alive()
                body.append(piece)
                came += len(piece)
                hasher.update(piece)
        finally:
            if self._reading.get(client) is request:
                del self._reading[client]
        if came != length:
            raise Rejected("message", f"the body has {came} bytes, not the {length} of its Content-Length")
        return body, hasher.digest()


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

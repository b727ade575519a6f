"""Sending a blob to a client: all of it, or the part that it does not have yet."""

import asyncio
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aiohttp import web

from roundelay.deployment.front.connections import BUFFER_BYTES
from roundelay.deployment.front.problems import refusal
from roundelay.deployment.front.threads import InThread, outlasting
from roundelay.deployment.front.turns import Turns
from roundelay.errors import JournalError

PIECE = 256 * 2**10
NUM_PIECES = 32
"""What is read of a blob at a time, and how many pieces are kept: what a cohort fetches at once is read once."""

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")


class Sender:
    """All belongs to one loop."""

    def __init__(self, in_thread: InThread, patience_s: float, turns: Turns) -> None:
        """A client that takes nothing for ``patience_s`` seconds is cut."""
        self._in_thread, self._patience_s, self._turns = in_thread, patience_s, turns
        self._pieces: OrderedDict[tuple[str, int], asyncio.Future[bytes]] = OrderedDict()

    async def send(
        self, request: web.Request, path: Path, digest: str, alive: Callable[[], object]
    ) -> web.StreamResponse:
        """Answer with the file, whose name is its digest and so its ETag, as ``Range``, ``If-Range`` and
        ``If-None-Match`` ask for it. ``alive`` is called whenever the client has taken something.

        Raises:
            JournalError: the file is not there.
        """
        etag = f'"{digest}"'
        fields = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if _names(request.headers.get("If-None-Match", ""), etag):
            return web.Response(status=304, headers={"ETag": etag})
        with await self._opened(path, digest) as file:
            size = os.fstat(file.fileno()).st_size
            part = _part(request.headers.get("Range", ""), size)
            if part is None or request.headers.get("If-Range", etag) != etag:
                first, end, status = 0, size, 200
            else:
                first, end, status = *part, 206
                if first >= end:
                    answer = refusal("message", f"the blob has {size} bytes; that range has none of them", status=416)
                    answer.headers["Content-Range"] = f"bytes */{size}"
                    return answer
                fields["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
            return await self._sent(request, web.StreamResponse(status=status, headers=fields), b"",
                                    Blob(file, digest, first, end), alive)  # fmt: skip

    async def enclose(
        self, request: web.Request, head: bytes, path: Path, digest: str, alive: Callable[[], object]
    ) -> web.StreamResponse:
        """Answer with ``head`` and, behind it, all of the file.

        Raises:
            JournalError: the file is not there.
        """
        with await self._opened(path, digest) as file:
            size = os.fstat(file.fileno()).st_size
            return await self._sent(request, web.StreamResponse(), head, Blob(file, digest, 0, size), alive)

    async def _opened(self, path: Path, digest: str) -> IO[bytes]:
        try:
            file: IO[bytes] = await self._in_thread(path.open, "rb", 0)
        except OSError as error:
            raise JournalError(f"blob {digest} cannot be read ({error}); was something removed by hand?") from error
        return file

    async def _sent(
        self, request: web.Request, response: web.StreamResponse, head: bytes, blob: "Blob", alive: Callable[[], object]
    ) -> web.StreamResponse:
        response.content_length = len(head) + blob.end - blob.first
        writer = await response.prepare(request)
        assert writer is not None
        _, slice_bytes = (0, BUFFER_BYTES) if request.transport is None else request.transport.get_write_buffer_limits()
        if head:
            await writer.write(head)
        for index in range(blob.first // PIECE, -(-blob.end // PIECE)):
            piece, begin = memoryview(await self._piece(blob, index)), index * PIECE
            wanted = piece[max(0, blob.first - begin) : blob.end - begin]
            if begin + len(piece) < min(blob.end, begin + PIECE):
                raise JournalError(f"blob {blob.digest} is shorter than it was; was something removed by hand?")
            for at in range(0, len(wanted), slice_bytes):
                await self._turns.turn()
                try:
                    async with asyncio.timeout(self._patience_s):
                        await writer.write(wanted[at : at + slice_bytes])
                        await writer.drain()
                except TimeoutError:
                    if request.transport is not None:
                        request.transport.abort()
                    raise ConnectionResetError("the client takes nothing") from None
            alive()
        await response.write_eof()
        return response

    async def _piece(self, blob: "Blob", index: int) -> bytes:
        """Return a piece of a blob, which all who want it at one time wait for together."""
        key = (blob.digest, index)
        reading = self._pieces.get(key)
        if reading is None:
            reading = asyncio.ensure_future(self._in_thread(os.pread, blob.file.fileno(), PIECE, index * PIECE))
            self._pieces[key] = reading
            while len(self._pieces) > NUM_PIECES:
                self._pieces.popitem(last=False)
        self._pieces.move_to_end(key)
        try:
            return await outlasting(reading)  # only then may its file be closed
        except BaseException:
            self._pieces.pop(key, None)
            raise


@dataclass(frozen=True, slots=True)
class Blob:
    """The bytes of an open file from ``first`` to before ``end``."""

    file: IO[bytes]
    digest: str
    first: int
    end: int


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last of a range; None: all of it, as of several ranges."""
    found = _RANGE.fullmatch(asked)
    if not found or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        return max(0, size - int(found["last"])), size
    first = int(found["first"])
    if found["last"] and int(found["last"]) < first:
        return None
    return first, min(size, int(found["last"]) + 1) if found["last"] else size


def _names(field: str, etag: str) -> bool:
    return etag in (tag.strip().removeprefix("W/") for tag in field.split(",")) or field.strip() == "*"

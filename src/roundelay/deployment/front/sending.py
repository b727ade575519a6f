"""Sending a blob to a client: all of it, or the part that it does not have yet."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from aiohttp import web

from roundelay.deployment.front.problems import refusal
from roundelay.errors import JournalError

PIECE = 2**20
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")

InThread = Callable[..., Awaitable[Any]]  # Any: what the function returns that runs there


async def send(
    request: web.Request, path: Path, digest: str, in_thread: InThread, patience_s: float, alive: Callable[[], object]
) -> web.StreamResponse:
    """Answer with the file, whose name is its digest and so its ETag, as ``Range``, ``If-Range`` and ``If-None-Match``
    ask for it. A client that takes nothing for ``patience_s`` seconds is cut; ``alive`` is called whenever it has.

    Raises:
        JournalError: the file is not there.
    """
    etag = f'"{digest}"'
    fields = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if _names(request.headers.get("If-None-Match", ""), etag):
        return web.Response(status=304, headers={"ETag": etag})
    try:
        file, size = await in_thread(_opened, path)
    except OSError as error:
        raise JournalError(f"blob {digest} cannot be read ({error}); was something removed by hand?") from error
    try:
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
        response = web.StreamResponse(status=status, headers=fields)
        response.content_length = end - first
        await response.prepare(request)
        while first < end:
            piece = await in_thread(os.pread, file.fileno(), min(PIECE, end - first), first)
            if not piece:
                raise JournalError(f"blob {digest} is shorter than it was; was something removed by hand?")
            first += len(piece)
            try:
                async with asyncio.timeout(patience_s):
                    await response.write(piece)
                alive()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the client takes nothing") from None
        await response.write_eof()
        return response
    finally:
        file.close()


def _opened(path: Path) -> tuple[IO[bytes], int]:
    file = path.open("rb", buffering=0)
    return file, os.fstat(file.fileno()).st_size


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

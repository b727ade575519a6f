"""What comes back over a link: read up to a limit, parsed by its form, or turned into the trouble that it means."""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from roundelay.deployment.device.trouble import Again, Refusal, Unreachable
from roundelay.deployment.protocol import Message, Problem, printable
from roundelay.deployment.trust.address import Address
from roundelay.header import Bytes

MAX_RETRY_S = 60.0
"""A server may ask to be left alone for so long, and no longer."""

PIECE_BYTES = 256 * 1024
_MOST_FAULTS = 100
M = TypeVar("M", bound=Message)
Moved = Callable[[], None]


class Clock:
    """Puts a limit off whenever something moves. aiohttp may go on writing a body for which nobody waits any more."""

    def __init__(self, put_off: Callable[[], None]) -> None:
        self._put_off = put_off
        self._runs = True

    def moved(self) -> None:
        if self._runs:
            try:
                self._put_off()
            except RuntimeError:  # it is about to strike, which its owner has not heard of yet
                self._runs = False

    def stop(self) -> None:
        self._runs = False


async def pieces(body: Bytes, moved: Moved) -> AsyncIterator[memoryview]:
    """Hand a body over piece by piece: the next one is asked for when the last one is on its way."""
    view = memoryview(body)
    for at in range(0, len(view), PIECE_BYTES):
        yield view[at : at + PIECE_BYTES]
        moved()


async def body_of(came: aiohttp.ClientResponse, moved: Moved, max_bytes: int) -> bytes:
    data = bytearray()
    async for piece in came.content.iter_any():
        moved()
        data += piece
        if len(data) > max_bytes:
            raise Unreachable(
                f"{came.url.host}: sent a message of more than {max_bytes} bytes; is it a roundelay server?"
            )
    return bytes(data)


def parsed(kind: type[M], body: bytes, address: Address) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors()[:3] if error.error_count() <= _MOST_FAULTS else []  # each takes its time to tell
        where = ", ".join(".".join(map(str, one["loc"])) or "all of it" for one in faults) or "all of it"
        raise Unreachable(
            f"{address}: answered something else than a {kind.__name__} ({printable(where)}); is it a roundelay server "
            "of the same version, or does a proxy answer in its place?"
        ) from None


def refused(came: aiohttp.ClientResponse, body: bytes, address: Address) -> Exception:
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        problem = None
    if came.status == 429 or came.status >= 500:
        after = came.headers.get("Retry-After", "")
        after_s = min(float(after), MAX_RETRY_S) if after.isdecimal() else 0.0
        said = printable(problem.message) if problem else f"status {came.status}"
        return Again(f"{address}: cannot answer now ({said})", after_s)
    if problem is None:
        return Unreachable(
            f"{address}: what answers there is no roundelay server (status {came.status}); check host and port, and "
            "whether a proxy answers in its place"
        )
    return Refusal(came.status, problem, address)


def digest_of(body: Bytes) -> bytes:
    return hashlib.sha256(body).digest()

"""A device's side of its conversation with a server: one signed request after another, each in one method.

Requests are made strictly one at a time: their numbers only go up, and a single connection, which may be one that was
dialled by the other side, is enough. Nothing is tried twice in here; whoever asks decides that.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from roundelay.deployment import protocol
from roundelay.deployment.device.connector import Connector, TcpConnector
from roundelay.deployment.device.download import Download
from roundelay.deployment.device.replies import PIECE_BYTES, Clock, Moved, body_of, digest_of, parsed, pieces, refused
from roundelay.deployment.device.trouble import DIALLED_S, LONGEST_S, Again, OwnDisk, Refusal, Unreachable
from roundelay.deployment.protocol import (
    ENCLOSED_BYTES,
    MAX_BRIEFING_BYTES,
    MAX_MESSAGE_BYTES,
    PART_BYTES,
    Announce,
    Beat,
    Beaten,
    Briefing,
    Failure,
    Hello,
    Holding,
    Join,
    Joined,
    LoggedScalar,
    Message,
    Noted,
    Offer,
    Poll,
    Receipt,
    Scalars,
)
from roundelay.deployment.trust.address import Address, explained
from roundelay.deployment.trust.identity import Counter, DeviceKey, encode
from roundelay.deployment.trust.signing import Request, sign
from roundelay.header import Bytes

_QUICK_S = 2.0
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a peer is waited for: until it is connected to, and from one byte to the next."""

    connect_s: float = 20.0
    silent_s: float = 30.0


class Link:
    """An async context. ``client`` and ``run`` are what requests are signed for; both may change between two requests.

    Every method may raise ``Unreachable``, ``Again``, ``Refusal`` or ``OwnDisk``.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        key: DeviceKey,
        counter: Counter,
        *,
        client: str = "",
        run: str = "",
        connector: Callable[[], Connector] | None = None,
        limits: Limits = Limits(),
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``context`` is None where nothing is encrypted, or where ``connector``, which is called once the loop runs,
        sees to it. ``now_s`` is the time of day.
        """
        self.address, self.client, self.run = address, client, run
        self._key, self._counter, self._limits, self._now_s = key, counter, limits, now_s
        self._connector = connector or (lambda: TcpConnector(limit=1, ssl=context or True, keepalive_timeout=60))
        self._base = str(address) if connector is None else f"http://{address.host}"  # a connector has its own TLS
        # One that is dialled need not be spared: it costs nothing to wait for it.
        self.longest_pause_s = LONGEST_S if connector is None else DIALLED_S
        self._alone = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Link":
        self._made = self._connector()
        self._session = aiohttp.ClientSession(
            connector=self._made,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s),
            headers={"User-Agent": "roundelay", "Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        # Not public, but without it aiohttp sends a GET or PUT again by itself, with a number that was used.
        self._session._retry_connection = False
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ---- who is who -------------------------------------------------------------------------------------------------

    async def hello(self) -> Hello:
        return await self._ask(Hello, "GET", protocol.HELLO, signed=False)

    async def join(self, token: str, client: str | None) -> Joined:
        """Show a token and this device's key; may be repeated with the same key."""
        message = Join(token=token, public_key=encode(self._key.public), client=client)
        return await self._ask(Joined, "POST", protocol.JOIN, message, signed=False)

    async def briefing(self) -> Briefing:
        return await self._ask(Briefing, "GET", protocol.RUN, max_bytes=MAX_BRIEFING_BYTES)

    # ---- work -------------------------------------------------------------------------------------------------------

    async def poll(
        self, doing: Sequence[int], wait_s: float, having: Sequence[str] | None = None
    ) -> tuple[Offer, bytes] | None:
        """Return something to do that is not in ``doing``, or None where nothing came up in ``wait_s``; with the bytes
        of its model, checked, where they came with it: a small one that is not in ``having`` does, unless that is None.
        """
        message = Poll(doing=list(doing), wait_s=wait_s, having=None if having is None else list(having))
        async with self._asked("POST", protocol.WORK, message.model_dump_json().encode(), wait_s=wait_s) as (
            came,
            moved,
        ):
            if came.status == 204:
                return None
            head, _, model = (await body_of(came, moved, MAX_MESSAGE_BYTES + ENCLOSED_BYTES)).partition(b"\n")
            offer = parsed(Offer, head, self.address)
            if offer.enclosed and digest_of(model).hex() != offer.sent:
                raise Unreachable(f"{self.address}: the model that came with task {offer.id} is not the one that is "
                                  "meant: damaged on the way; it is asked for again")  # fmt: skip
            return offer, model

    async def fetch(self, digest: str, size: int, part: Path, between: Callable[[], Awaitable[None]]) -> None:
        """Bring what there is in ``part`` of a blob to its end, and check it. After a cut, call it again.

        It is asked for in pieces that take some seconds each; ``between`` two of them other requests may be made.
        """
        loop, length = asyncio.get_running_loop(), PART_BYTES
        with await asyncio.to_thread(Download, part, digest, size) as download:
            while not download.is_there:
                begun = loop.time()
                await self._fetch_piece(download, length)
                if loop.time() - begun < _QUICK_S:
                    length *= 2
                await between()
            download.check()

    async def _fetch_piece(self, download: Download, length: int) -> None:
        path = f"{protocol.BLOBS}/{download.digest}"
        async with self._asked("GET", path, fields=download.fields(length)) as (came, moved):
            download.begin_piece(came.status == 206, came.headers.get("Content-Range", ""))
            async for data in came.content.iter_any():
                moved()
                download.write(data)
            download.end_piece()

    async def beat(self, doing: Sequence[int]) -> Beaten:
        return await self._ask(Beaten, "POST", protocol.BEAT, Beat(doing=list(doing)))

    async def tell(self, holding: Holding) -> None:
        """Say how much data is here."""
        await self._ask(Noted, "POST", protocol.DATA, holding)

    async def scalars(self, round: int, scalars: Sequence[LoggedScalar]) -> None:
        await self._ask(Noted, "POST", protocol.SCALARS, Scalars(round=round, scalars=list(scalars)), round=round)

    # ---- answers ----------------------------------------------------------------------------------------------------

    async def announce(self, task: int, round: int, digest: str, size: int) -> Receipt:
        """Say that the answer to a task is here; hear what the server has of it."""
        message = Announce(digest=digest, size=size)
        return await self._ask(Receipt, "POST", f"{protocol.UPDATES}/{task}", message, round=round)

    async def put_part(self, task: int, round: int, digest: str, size: int, offset: int, data: Bytes) -> Receipt:
        """Send a part, from ``offset``, of an answer of ``size`` bytes."""
        query = f"digest={digest}&offset={offset}&size={size}"
        fields = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"bytes {offset}-{offset + len(data) - 1}/{size}",
        }
        path = f"{protocol.UPDATES}/{task}"
        async with self._asked("PUT", path, data, query=query, round=round, fields=fields) as (came, moved):
            return parsed(Receipt, await body_of(came, moved, MAX_MESSAGE_BYTES), self.address)

    async def fail(self, task: int, round: int, reason: str, traceback: str) -> None:
        """Say that this device cannot do a task. Of a long traceback the end is told, which says what was raised."""
        message = Failure(reason=reason[:4_000], traceback=traceback[-60_000:])
        await self._ask(Noted, "POST", f"{protocol.FAILURES}/{task}", message, round=round)

    # ---- steps ------------------------------------------------------------------------------------------------------

    async def _ask(
        self, kind: type[_M], method: str, path: str, message: Message | None = None, *, round: int = 0,
        signed: bool = True, max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> _M:  # fmt: skip
        body = b"" if message is None else message.model_dump_json().encode()
        async with self._asked(method, path, body, round=round, signed=signed) as (came, moved):
            return parsed(kind, await body_of(came, moved, max_bytes), self.address)

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: Bytes = b"", *, query: str = "", round: int = 0, signed: bool = True,
        fields: dict[str, str] | None = None, wait_s: float = 0.0,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Moved]]:  # fmt: skip
        """Yield an answer that is none of refusal, and what is to be called whenever more of it has come."""
        assert self._session is not None, "a link is an async context"
        async with self._alone:
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(fields or {})}
            if not body:
                del headers["Content-Type"], headers["Content-Length"]
            if signed:
                headers |= await self._signed(method, path, query, body, round)
            url = URL(f"{self._base}{path}{'?' * bool(query)}{query}", encoded=True)
            loop, silent_s = asyncio.get_running_loop(), self._limits.silent_s
            try:
                async with asyncio.timeout(self._limits.connect_s + silent_s + wait_s) as limit:
                    clock = Clock(lambda: limit.reschedule(loop.time() + silent_s + wait_s))
                    data = pieces(body, clock.moved) if body else None
                    try:
                        async with self._session.request(
                            method, url, headers=headers, data=data, allow_redirects=False
                        ) as came:
                            clock.moved()
                            if came.status not in (200, 204, 206):
                                raise refused(came, await body_of(came, clock.moved, MAX_MESSAGE_BYTES), self.address)
                            yield came, clock.moved
                    except (Refusal, Again):
                        raise
                    except BaseException:
                        self._made.drop()
                        raise
                    finally:
                        clock.stop()
            except aiohttp.ClientPayloadError as error:
                raise Unreachable(f"{self.address}: the connection was cut in mid-answer") from error
            except (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError) as error:
                raise Unreachable(f"{self.address}: the connection was cut before an answer came") from error
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Unreachable(explained(error, self.address)) from error

    async def _signed(self, method: str, path: str, query: str, body: Bytes, round: int) -> dict[str, str]:
        digest = await asyncio.to_thread(digest_of, body) if len(body) > PIECE_BYTES else digest_of(body)
        request = Request(method, path, self.run, round, query, digest)
        try:
            number = self._counter.next()
        except OSError as error:
            raise OwnDisk("noting the number of a request", error) from error
        return dict(sign(request, self.client, self._key, number, self._now_s()))

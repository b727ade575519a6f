"""The connections of a server: how many there may be, and for how long one may keep it waiting for a request."""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aiohttp import StreamReader

HANDSHAKE_S = 20
BUFFER_BYTES = 16 * 2**10
"""Of TLS, for each connection and in each direction: a record. asyncio's own are 16 and 32 times as large: a thousand
clients that send a megabyte each would make it hold half a gigabyte.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_connections`` may be open at once; one more takes the place of the one that has asked nothing for longest.
    Whoever has begun a request, or has just connected, must have sent its whole header ``header_s`` seconds later.
    """

    max_connections: int = 4_096
    header_s: float = 20.0


LIMITS = Limits()


class Tls(SSLProtocol):
    """TLS with small buffers."""

    max_size = BUFFER_BYTES


@runtime_checkable
class ReadLimited(Protocol):
    """A transport that reads ahead, as those of TLS do."""

    def set_read_buffer_limits(self, high: int) -> None: ...


class Connection(asyncio.Protocol):
    """Passes on what a transport says to what speaks HTTP there, and knows whether a request is under way."""

    def __init__(self, inner: asyncio.Protocol, connections: "Connections", over: Callable[[], None]) -> None:
        self.inner, self._connections, self._over = inner, connections, over
        self.transport: asyncio.Transport | None = None
        self.num_served = 0
        self.quiet_since = connections.now_s()
        self.header_since: float | None = None
        self._body: StreamReader | None = None  # of the last request: what was refused may still be on its way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(BUFFER_BYTES)
        if isinstance(transport, ReadLimited):
            transport.set_read_buffer_limits(BUFFER_BYTES)
        self.quiet_since = self.header_since = self._connections.now_s()
        self.inner.connection_made(transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        is_body = self._body is not None and not self._body.is_eof()
        if not (self.num_served or is_body) and self.header_since is None:
            self.header_since = self._connections.now_s()
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._over()
        self.inner.connection_lost(exc)

    def begin_request(self) -> None:
        self.num_served += 1
        self.header_since = None

    def end_request(self, body: StreamReader) -> None:
        self.num_served -= 1
        self._body = body
        self.quiet_since = self._connections.now_s()

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Connections:
    """All belongs to one loop, but ``__len__``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[object, Connection] = {}  # by what speaks HTTP there
        self._is_closed = False
        self._looking: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def made(
        self, handler: asyncio.Protocol, tls: ssl.SSLContext | None, over: Callable[[], None] = lambda: None
    ) -> asyncio.BaseProtocol:
        """Return what a new transport is to talk to; ``over`` is called when the connection has ended."""
        connection = Connection(handler, self, over)
        if tls is None:
            return connection
        loop = asyncio.get_running_loop()
        shaken = loop.create_future()
        shaken.add_done_callback(lambda done: done.cancelled() or done.exception())  # a handshake that fails is heard
        return Tls(loop, connection, tls, shaken, server_side=True, ssl_handshake_timeout=HANDSHAKE_S)

    def of(self, handler: object) -> Connection | None:
        return self._open.get(handler)

    def add(self, connection: Connection) -> None:
        if self._is_closed:  # it was half way in when the server began to stop
            connection.cut()
            return
        if len(self._open) >= self._limits.max_connections:
            quiet = [one for one in self._open.values() if not one.num_served]
            if not quiet:
                connection.cut()
                return
            least = min(quiet, key=lambda one: one.quiet_since)
            del self._open[least.inner]
            least.cut()
        self._open[connection.inner] = connection
        if self._looking is None:
            self._look()

    def discard(self, connection: Connection) -> None:
        self._open.pop(connection.inner, None)

    def close(self) -> None:
        """Cut all that are open, and those that are still to come."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self._open.values()):
            connection.cut()

    def _look(self) -> None:
        """Cut those that are late with a header; look again after a quarter of the time that they have."""
        late_s = self.now_s() - self._limits.header_s
        for connection in list(self._open.values()):
            if connection.header_since is not None and connection.header_since < late_s:
                connection.cut()
        self._looking = asyncio.get_running_loop().call_later(self._limits.header_s / 4, self._look)

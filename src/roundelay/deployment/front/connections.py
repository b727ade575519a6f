"""The connections of a server: how many there may be, for how long one may keep it waiting, and what each may hold.

asyncio's own TLS and aiohttp's own streams hold more than a megabyte for each connection that is busy, and never give
most of it back: a thousand clients that send and fetch at once would take gigabytes.
"""

import asyncio
import resource
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from aiohttp import StreamReader

HANDSHAKE_S = 20
BUFFER_BYTES = 8 * 2**10
"""What each buffer of a connection holds, where there are many. Less would cost more time than it saves memory."""

NUM_LARGE, LARGE_BYTES = 10, 256 * 2**10
"""So many connections have buffers of that size: few clients with a large model are in a hurry."""

_MOST_FILES = 65_536
_OTHER_FILES = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_connections`` may be open at once; one more takes the place of the one that has asked nothing for longest.
    Whoever has connected, or begun a request, must have sent its whole header ``header_s`` seconds later.
    """

    max_connections: int = 4_096
    header_s: float = 20.0


LIMITS = Limits()


def open_files(num_wanted: int) -> int:
    """Have this process be allowed as many open files as the system lets it; return how many connections that is good
    for, at most ``num_wanted``. Each may have a file of its own, to read or to write.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # some systems have a limit below their limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return num_wanted if soft == resource.RLIM_INFINITY else max(1, min(num_wanted, (soft - _OTHER_FILES) // 2))


@runtime_checkable
class ReadLimited(Protocol):
    """A transport that reads ahead, as those of TLS do."""

    def set_read_buffer_limits(self, high: int, low: int) -> None: ...

    def set_write_buffer_limits(self, high: int) -> None: ...


class Connection(asyncio.Protocol):
    """Passes on what a transport says to what speaks HTTP there, and knows whether a request is under way."""

    def __init__(
        self, inner: asyncio.Protocol, connections: "Connections", over: Callable[[], None], buffer_bytes: int
    ) -> None:
        self.inner, self._connections, self._over, self.buffer_bytes = inner, connections, over, buffer_bytes
        self.num_served = 0
        self.quiet_since = connections.now_s()
        self.header_since: float | None = None
        self._wire: asyncio.Transport | None = None
        self._body: StreamReader | None = None  # of the last request: what was refused may still be on its way

    def reached(self, wire: asyncio.BaseTransport) -> None:
        """Hear of the connection itself, before TLS is spoken on it."""
        assert isinstance(wire, asyncio.Transport)
        self._wire = wire
        wire.set_write_buffer_limits(self.buffer_bytes)
        self.quiet_since = self.header_since = self._connections.now_s()
        self._connections.add(self)

    def gone(self) -> None:
        self._connections.discard(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._wire is None:
            self.reached(transport)
        else:
            assert isinstance(transport, ReadLimited)
            transport.set_read_buffer_limits(1, 1)  # nothing is read ahead of who takes it
            transport.set_write_buffer_limits(self.buffer_bytes)
        if self._connections.is_shut:
            self.cut()
        self.inner.connection_made(transport)

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
        self.gone()
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
        """End it now. That is done below TLS, which would wait for a goodbye, for half a minute; and a TLS transport of
        asyncio that is closed twice, as aiohttp does, can be aborted no more.
        """
        if self._wire is not None:
            self._wire.abort()


class Tls(SSLProtocol):
    """TLS with small buffers, whose connection is known from its first byte on."""

    def __init__(self, connection: Connection, context: ssl.SSLContext, shaken: "asyncio.Future[None] | None") -> None:
        self._connection = connection
        self.max_size = connection.buffer_bytes  # type: ignore[misc]  # asyncio has one size for all
        super().__init__(
            asyncio.get_running_loop(), connection, context, shaken,  # type: ignore[arg-type]  # nobody need wait for it
            server_side=True, ssl_handshake_timeout=HANDSHAKE_S,
        )  # fmt: skip

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.reached(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connection.gone()


class Connections:
    """All belongs to one loop, but ``__len__``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[object, Connection] = {}  # by what speaks HTTP there
        self.is_shut = False
        self._looking: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def made(
        self,
        handler: asyncio.Protocol,
        tls: ssl.SSLContext | None,
        over: Callable[[], None] = lambda: None,
        shaken: "asyncio.Future[None] | None" = None,
    ) -> asyncio.BaseProtocol:
        """Return what a new transport is to talk to. ``over`` is called when the connection has ended; ``shaken`` is
        done when hands were shaken, with what went wrong.
        """
        connection = Connection(handler, self, over, LARGE_BYTES if len(self) < NUM_LARGE else BUFFER_BYTES)
        return connection if tls is None else Tls(connection, tls, shaken)

    def of(self, handler: object) -> Connection | None:
        return self._open.get(handler)

    def add(self, connection: Connection) -> None:
        if self.is_shut:
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

    def shut(self) -> None:
        """Cut those that are still to come, and those that are half way in."""
        self.is_shut = True

    def close(self) -> None:
        """Cut all."""
        self.shut()
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

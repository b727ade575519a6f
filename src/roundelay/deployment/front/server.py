"""The thread in which an application answers: on a port, and on connections that were dialled from here."""

import asyncio
import concurrent.futures
import errno
import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from roundelay.deployment.front.connections import LIMITS, Connections, Limits
from roundelay.deployment.front.problems import refusal
from roundelay.errors import RoundelayError, ServeError

log = logging.getLogger(__name__)

DIALLED: web.AppKey[dict[object, str]] = web.AppKey("dialled", dict)
"""Who was to be reached over a connection, by what a request calls its protocol."""

DRAIN: web.AppKey[Callable[[float], Awaitable[None]]] = web.AppKey("drain")
"""Called before connections are cut, with the seconds that requests may still take. Without it they get none."""

KEEP_ALIVE_S = 90.0
READ_BYTES = 4 * 2**10
"""So much of a body may wait for its reader, twice: aiohttp's own 256 KiB are too much for a crowd."""
RENEW_EVERY_S = 86_400.0
_CONNECTIONS_WAITING = 1_024
_CONNECTIONS_AT_ONCE = 2
"""So many new connections are taken in each turn of the loop: a handshake takes a millisecond, and others wait."""
_LINGER_S = 2.0
"""So long a body that was refused is read and thrown away, since who still sends might not hear the refusal."""

MAX_FIELDS, MAX_FIELD_BYTES = 64, 4_096
"""Of one request: a device's has a dozen, of which the longest has some hundred bytes."""

_NAME = "roundelay"
"""What this server calls itself: which versions of what run here is for no stranger to know."""


class Server:
    """Runs an application in a thread of its own, with a loop of its own. Its methods are for other threads."""

    def __init__(
        self,
        app: web.Application,
        host: str | None,
        port: int,
        tls: ssl.SSLContext | None = None,
        *,
        renew: Callable[[], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limits: Limits = LIMITS,
    ) -> None:
        """``host`` None: no port is opened, and all connections are adopted. ``renew`` is called once a day in the
        server's thread, to load a new certificate into contexts that are in use; ``sleep`` counts the time until then.
        """
        self._app, self._host, self._port, self._tls = app, host, port, tls
        if DIALLED not in app:
            app[DIALLED] = {}
        app.middlewares.insert(0, self._served)
        self._renew, self._sleep = renew, sleep
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="front", daemon=True)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._open = Connections(limits)
        self._serving, self._gate = False, threading.Lock()

    def start(self) -> int:
        """Return the port once it is open, 0 where none is. Once only.

        Raises:
            ServeError: it is taken, or not allowed.
        """
        self._thread.start()
        try:
            port: int = self._there(self._start())
            return port
        except BaseException:
            self._finish()
            raise

    def adopt(
        self, sock: socket.socket, client: str, tls: ssl.SSLContext | None = None
    ) -> "concurrent.futures.Future[None]":
        """Serve a connected socket, over which ``client`` was to be reached; with ``tls`` as its server. Return a
        future that is done when the connection has ended, with what went wrong if it never began.
        """
        ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        sock.setblocking(False)

        def failed(adopted: "concurrent.futures.Future[None]") -> None:
            error = None if adopted.cancelled() else adopted.exception()
            if adopted.cancelled() or error is not None:
                sock.close()
                if not ended.done():
                    ended.set_exception(error or ConnectionAbortedError("the server has stopped"))

        with self._gate:  # what passes it finds a loop that still turns
            if self._serving:
                adopting = asyncio.run_coroutine_threadsafe(self._adopt(sock, client, tls, ended), self._loop)
                adopting.add_done_callback(failed)
                return ended
        sock.close()
        ended.set_exception(ConnectionAbortedError("the server has stopped"))
        return ended

    @property
    def num_connections(self) -> int:
        return len(self._open)

    def stop(self, grace_s: float) -> None:
        """Take no new connections, let requests end for ``grace_s`` seconds, then cut. May be repeated."""
        if self._thread.is_alive():
            self._there(self._stop(grace_s))
            self._finish()

    # ---- in the thread ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in (left := asyncio.all_tasks(self._loop)):
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _there(self, work: Coroutine[Any, Any, Any]) -> Any:  # Any: whatever it returns
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _finish(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> int:
        self._app.on_response_prepare.append(_name)
        self._runner = web.AppRunner(self._app, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        if self._renew is not None:
            self._renewing = asyncio.create_task(self._renew_daily(self._renew))
        self._serving = True
        if self._host is None:
            return 0
        try:
            self._listening = await self._loop.create_server(
                lambda: self._open.made(self._handler(), self._tls), self._host, self._port,
                backlog=_CONNECTIONS_AT_ONCE,
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            self._serving = False
            await self._runner.cleanup()
            raise ServeError(_why(error, self._host, self._port)) from error
        for listening in self._listening.sockets:  # for asyncio both numbers are one
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(_CONNECTIONS_WAITING)
        return int(self._listening.sockets[0].getsockname()[1])

    def _handler(self) -> asyncio.Protocol:
        """Return what speaks HTTP on one connection."""
        assert self._runner is not None
        assert self._runner.server is not None
        how: dict[str, Any] = {  # Any: aiohttp wants loggers where it takes adapters and None
            "access_log": None, "keepalive_timeout": KEEP_ALIVE_S, "lingering_time": _LINGER_S,
            "auto_decompress": False, "max_headers": MAX_FIELDS, "max_field_size": MAX_FIELD_BYTES,
            "read_bufsize": READ_BYTES, "logger": _Heard(logging.getLogger(f"{__name__}.http"), {}),
        }  # fmt: skip
        return _Speaker(self._runner.server, loop=self._loop, **how)

    @web.middleware
    async def _served(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Have a connection know that its request is under way."""
        connection = self._open.of(request.protocol)
        if connection is None:  # it has just been cut
            return await handler(request)
        connection.begin_request()
        try:
            return await handler(request)
        finally:
            connection.end_request(request.content)

    async def _adopt(
        self, sock: socket.socket, client: str, tls: ssl.SSLContext | None,
        ended: "concurrent.futures.Future[None]",
    ) -> None:  # fmt: skip
        if not self._serving:
            raise ConnectionAbortedError("the server has stopped")
        handler = self._handler()

        def over() -> None:
            self._app[DIALLED].pop(handler, None)
            if not ended.done():
                ended.set_result(None)

        self._app[DIALLED][handler] = client
        shaken: asyncio.Future[None] = self._loop.create_future()
        try:
            await self._loop.connect_accepted_socket(lambda: self._open.made(handler, tls, over, shaken), sock)
            if tls is not None:
                await shaken
            if self._open.of(handler) is None:
                raise ConnectionAbortedError("the connection was cut before it began")
        except BaseException:
            self._app[DIALLED].pop(handler, None)
            raise

    async def _stop(self, grace_s: float) -> None:
        with self._gate:
            self._serving = False
        if self._renewing is not None:
            self._renewing.cancel()
        if self._listening is not None:
            self._listening.close()
        self._open.shut()
        drain = self._app.get(DRAIN)
        if drain is not None:
            await drain(grace_s)
        self._open.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _renew_daily(self, renew: Callable[[], None]) -> None:
        while True:
            await self._sleep(RENEW_EVERY_S)
            try:
                renew()  # in this thread, where no handshake can be half way
            except (OSError, RoundelayError) as error:
                log.warning("the server's certificate was not renewed (%s); it is tried again in a day", error)


async def _name(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = _NAME


class _Speaker(web.RequestHandler):
    """aiohttp's own, but for its answer to what is no HTTP: that quotes what came and tells versions, and no hook of an
    application hears of it.
    """

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        answer = super().handle_error(request, status, exc, message)
        if status == web.HTTPBadRequest.status_code:
            answer = refusal("message", "what came is no request as HTTP/1.1 has them, or its fields are too long")
            answer.force_close()
        answer.headers["Server"] = _NAME
        return answer


class _Heard(logging.LoggerAdapter[logging.Logger]):
    """What is no HTTP is somebody else's mistake, and no error of this server."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # Any: what logging takes
        if isinstance(kwargs.get("exc_info"), HttpProcessingError):
            level, kwargs = logging.DEBUG, {}
        super().log(level, msg, *args, **kwargs)


def _why(error: Exception, host: str, port: int) -> str:
    where = f"cannot listen on {host}, port {port}"
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return f"{where}: the port is taken; stop the program that has it, or give another port (0: any free one)"
    if code in (errno.EACCES, errno.EPERM):
        return f"{where}: not allowed; ports below 1024 are the system's, give a higher one"
    if code == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address; give one of its own, or 0.0.0.0 for all"
    if isinstance(error, socket.gaierror):
        return f"{where}: no such host; give an address of this machine, or 0.0.0.0 for all"
    return f"{where}: {getattr(error, 'strerror', None) or error}"

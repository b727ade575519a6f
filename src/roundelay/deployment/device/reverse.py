"""A worker that listens: coordinators dial it, and it then asks them for work, as any device asks its server.

Trust is as in ssh: the authority of the first coordinator is remembered in the worker's folder, and no other is let in.
Whoever was told a pin beforehand lets in that one only.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from roundelay.deployment.device.connector import Connector
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.trouble import Unreachable
from roundelay.deployment.greeting import (
    COORDINATOR,
    Greeting,
    Reply,
    is_loopback,
    keep_alive,
    read_greeting,
    send_line,
)
from roundelay.deployment.protocol import PROTOCOL
from roundelay.deployment.trust.certificates import pin_of
from roundelay.deployment.trust.pinning import client_context
from roundelay.errors import DeviceError, RoundelayError

_GREETING_S = 20.0
_MAX_GREETINGS = 8
"""At the same time; who comes beyond them waits in the system's queue."""


@dataclass(frozen=True, slots=True)
class _Coordinator:
    """Who is connected: for which run, and with which pin ("": nothing is encrypted)."""

    greeting: Greeting
    pin: str
    connection: ResponseHandler


class Listener:
    """Lets one coordinator in at a time, and hands its connection to whoever asks over a ``ReverseConnector``.

    A coordinator that comes back, for the same run and with the same authority, takes the place of its own earlier
    connection, which may be dead without anybody having heard of it. An async context.
    """

    def __init__(
        self, device: Device, say: Callable[[str], None], *, client: str = "", pin: str = "", insecure: bool = False
    ) -> None:
        """``client`` is who this worker is; "": whoever it is taken for first, and from then on. ``pin`` is that of the
        only authority to trust; "": the first that comes, unless the folder knows one.
        ``insecure`` lets coordinators of other machines in that encrypt nothing.

        Raises:
            DeviceError: the folder knows another pin already.
        """
        known = device.pin
        if pin and known and pin != known:
            raise DeviceError(f"{device.folder}: trusts the coordinator with pin {known}, not the one with {pin}; give "
                              "another folder, one for each coordinator")  # fmt: skip
        self._device, self._say, self._pin, self._insecure = device, say, pin or known or "", insecure
        self._client = client
        self._current: _Coordinator | None = None
        self._fresh = False
        self._changed = asyncio.Event()
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MAX_GREETINGS)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port, which the system chooses where ``port`` is 0.

        Raises:
            DeviceError: the address cannot be listened on.
        """
        try:
            sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DeviceError(f"cannot listen on {host}, port {port}: {why}; give another port, or stop what listens "
                              "there") from error  # fmt: skip
        sock.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(sock))
        return int(sock.getsockname()[1])

    async def __aenter__(self) -> "Listener":
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._greetings, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.release()

    async def arrived(self) -> Greeting:
        """Wait for a coordinator, and return what it said first."""
        await self._until(lambda: self._live() is not None)
        current = self._live()
        assert current is not None
        return current.greeting

    def release(self) -> None:
        """Hang up: the next coordinator may come, whoever it is."""
        if self._current is not None:
            _hang_up(self._current.connection)
            self._current = None

    async def take(self, timeout_s: float | None) -> ResponseHandler:
        """Return a connection over which nothing was asked yet.

        Raises:
            Unreachable: none came in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(lambda: self._fresh and self._live() is not None)
        except TimeoutError:
            raise Unreachable("no coordinator is connected; it dials when it runs and can reach this machine") from None
        self._fresh = False
        assert self._current is not None
        return self._current.connection

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _live(self) -> _Coordinator | None:
        current = self._current
        return current if current is not None and current.connection.is_connected() else None

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                await self._room.acquire()
                try:
                    sock, peer = await loop.sock_accept(listening)
                except OSError:  # whoever came is gone again, or there are too many files open: others come
                    self._room.release()
                    await asyncio.sleep(0.1)
                    continue
                except BaseException:
                    self._room.release()
                    raise
                task = asyncio.create_task(self._greet(sock, str(peer[0])))
                self._greetings.add(task)
                task.add_done_callback(partial(self._greeted, sock))

    def _greeted(self, sock: socket.socket, task: "asyncio.Task[None]") -> None:
        self._greetings.discard(task)
        self._room.release()
        if task.cancelled():
            sock.close()  # one that was cancelled before it began has closed nothing
        elif (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "greeting", "exception": error, "task": task})

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        """Let a coordinator in, or tell it why not."""
        try:
            async with asyncio.timeout(_GREETING_S):
                sock.setblocking(False)
                keep_alive(sock)
                greeting = await read_greeting(sock)
                pem = greeting.authority.encode()
                pin, refusal = self._judged(greeting, peer)
                if refusal:
                    await send_line(sock, Reply(error=refusal))
                    raise ValueError(refusal)
                await send_line(sock, Reply(ok=True))
                connection = await self._secured(sock, pem)
        except (OSError, ValueError, RoundelayError) as error:
            sock.close()
            self._say(f"a coordinator at {peer} was not let in: {str(error) or type(error).__name__}")
        except BaseException:
            sock.close()
            raise
        else:
            self._let_in(_Coordinator(greeting, pin, connection), pem, peer)

    def _judged(self, greeting: Greeting, peer: str) -> tuple[str, str]:
        """Return the pin of whoever greets, and why it is not let in, "" where it is."""
        pin, known = "", self._pin
        if greeting.roundelay != PROTOCOL:
            return (
                pin,
                f"this worker speaks version {PROTOCOL} of the protocol; install the same on both sides",
            )
        if greeting.authority:
            pin = _pin_of(greeting.authority)
            if not pin:
                return pin, "the authority is no certificate that is signed by its own key"
            if known and pin != known:
                return pin, f"this worker trusts the coordinator with pin {known} only, and yours is {pin}; {_FORGET}"
        elif known:
            return pin, f"this worker trusts the coordinator with pin {known}, and takes nothing that is not encrypted"
        elif not (self._insecure or is_loopback(peer)):
            return pin, "nothing would be encrypted; have the coordinator use TLS, or allow it with --insecure here too"
        joined = self._device.joined
        own = self._client if joined is None else joined.client
        if own and own != greeting.client:
            return pin, f"this worker is client {own!r}, not {greeting.client!r}; give it that name, or {_ANOTHER}"
        current = self._live()
        if current is not None and (current.greeting.run, current.pin) != (greeting.run, pin):
            return pin, f"busy with run {current.greeting.run!r} of a coordinator that is connected"
        return pin, ""

    async def _secured(self, sock: socket.socket, pem: bytes) -> ResponseHandler:
        """Return the connection once the coordinator has proved who it is, where it said that it would."""
        loop = asyncio.get_running_loop()
        connection = ResponseHandler(loop)
        context = client_context(self._device.authority or pem) if pem else None
        name = COORDINATOR if context is not None else None
        await loop.create_connection(lambda: connection, sock=sock, ssl=context, server_hostname=name)
        return connection

    def _let_in(self, came: _Coordinator, pem: bytes, peer: str) -> None:
        """Take a coordinator that has proved what it said, unless another one has come since it was judged."""
        _, refusal = self._judged(came.greeting, peer)
        try:
            if came.pin and not refusal and not self._device.authority:
                self._device.trust(pem)
                self._say(f"trusting the coordinator with pin {came.pin} from now on: compare it with the one that the "
                          "coordinator shows")  # fmt: skip
        except OSError as error:
            refusal = f"its certificate cannot be kept ({error.strerror})"
        if refusal:
            _hang_up(came.connection)
            self._say(f"a coordinator at {peer} was not let in: {refusal}")
            return
        self._pin = came.pin or self._pin
        self.release()
        self._current, self._fresh = came, True
        self._changed.set()


class ReverseConnector(Connector):
    """Makes no connections: it takes those that a ``Listener`` has let in, one at a time."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(limit=1, keepalive_timeout=3600)
        self._listener = listener

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        handler = await self._listener.take(timeout.sock_connect)
        self.made = handler.transport
        return handler


def _hang_up(connection: ResponseHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()  # the other side may be dead, and an orderly end would wait for it


def _pin_of(authority: str) -> str:
    """Return the pin of a certificate that its own key has signed; "" of anything else."""
    try:
        certificate = x509.load_pem_x509_certificate(authority.encode())
        certificate.verify_directly_issued_by(certificate)
        return pin_of(certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return ""


_ANOTHER = "the address of the worker that you mean"
_FORGET = "if the coordinator has a new one, give the worker a new folder"

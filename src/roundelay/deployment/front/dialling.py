"""A coordinator's side of workers that listen: one connection to each is kept, and made anew whenever it ends."""

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from roundelay.deployment.greeting import Greeting, Worker, is_loopback, keep_alive, read_reply, send_line
from roundelay.deployment.patience import SAY_S, Backoff, Sleep
from roundelay.deployment.protocol import PROTOCOL
from roundelay.errors import IdentityError

FIRST_S, LONGEST_S = 0.2, 5.0
CONNECT_S = 20.0
_BRIEF_S = 5.0
"""A connection that lasted for less was of no use: the next one is not made at once."""

Adopt = Callable[[socket.socket, str], "Future[None]"]
"""Takes a connected socket and whose it is; its result is done once the connection has ended (``Server.adopt``)."""


class Dialler:
    def __init__(
        self,
        workers: Sequence[Worker],
        run: str,
        authority_pem: bytes | None,
        adopt: Adopt,
        say: Callable[[str], None],
        *,
        insecure: bool = False,
        sleep: Sleep = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``authority_pem`` is None where nothing is encrypted, which ``insecure`` allows to other machines.

        Raises:
            IdentityError: a client is there twice, or something would be said to another machine in plain text.
        """
        names = [worker.client for worker in workers]
        if len(set(names)) != len(names):
            raise IdentityError(f"workers: each client once, got {', '.join(sorted(names))}")
        for worker in workers:
            if authority_pem is None and not (insecure or is_loopback(worker.host)):
                raise IdentityError(f"worker {worker}: nothing would be encrypted on the way to another machine; use "
                                    "TLS, or allow it with --insecure on both sides")  # fmt: skip
        self._workers, self._run, self._adopt, self._say = tuple(workers), run, adopt, say
        self._authority = (authority_pem or b"").decode("ascii")
        self._sleep, self._now_s, self._draw = sleep, now_s, draw
        self._connected: set[str] = set()

    @property
    def connected(self) -> frozenset[str]:
        """The clients to which there is a connection now."""
        return frozenset(self._connected)

    async def run(self) -> None:
        """Keep the connections until cancelled. Those that were handed over stay: they are their taker's."""
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(self._keep(worker))

    async def _keep(self, worker: Worker) -> None:
        backoff, said_s = Backoff(LONGEST_S, FIRST_S), None
        while True:
            begun_s = self._now_s()
            try:
                sock = await self._dial(worker)
                self._connected.add(worker.client)
                said_s = None
                try:
                    await asyncio.wrap_future(self._adopt(sock, worker.client))
                finally:
                    self._connected.discard(worker.client)
                if self._now_s() - begun_s >= _BRIEF_S:
                    backoff = Backoff(LONGEST_S, FIRST_S)
            except (OSError, ValueError, TimeoutError) as error:
                now_s = self._now_s()
                if said_s is None or now_s - said_s >= SAY_S:
                    said_s = now_s
                    self._say(f"worker {worker} is not there: {_why(error)}; it is tried again and again")
            await self._sleep(backoff.pause_s(self._draw()))

    async def _dial(self, worker: Worker) -> socket.socket:
        """Return a connection on which both sides have greeted.

        Raises:
            OSError: the worker cannot be reached.
            ValueError: it does not take us, or is none.
        """
        async with asyncio.timeout(CONNECT_S):
            sock = await _connected(worker)
            try:
                keep_alive(sock)
                greeting = Greeting(roundelay=PROTOCOL, client=worker.client, run=self._run, authority=self._authority)
                await send_line(sock, greeting)
                if error := await read_reply(sock):
                    raise ValueError(f"it does not take us: {error}")
            except BaseException:
                sock.close()
                raise
        return sock


class Dialling:
    """A ``Dialler`` at work in a thread of its own."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="dialling", daemon=True)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._dialler.run())
        self._thread.start()

    def stop(self) -> None:
        """Dial nobody any more."""
        if self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _turn(self) -> None:
        assert self._task is not None
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._loop.close()


async def _connected(worker: Worker) -> socket.socket:
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, number, _, address in await loop.getaddrinfo(worker.host, worker.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
    raise last or OSError("no such host")


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {CONNECT_S:.0f} s"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or type(error).__name__
    return str(error)

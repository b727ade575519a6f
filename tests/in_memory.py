"""A front without sockets and threads: real bytes into aiohttp's own parser, and what it writes, in one loop."""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from aiohttp import web
from fronts import RUN, Said, briefing_for

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.front import Front
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Run
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.roster import Roster


class Inline(asyncio.SelectorEventLoop):
    """What would be done in a thread is done at once: one request after another, and the same every time."""

    def run_in_executor(self, _: object, work: Callable[..., Any], *args: Any) -> "Future[Any]":
        future = self.create_future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class Pipe(asyncio.Transport):
    """The server's end of a connection whose other end is a variable."""

    def __init__(self, loop: AbstractEventLoop, peer: str) -> None:
        super().__init__({"peername": (peer, 1), "sockname": ("192.0.2.1", 8443)})
        self._loop, self._closing = loop, False
        self.came = bytearray()
        self.said: Future[Said] = loop.create_future()

    def write(self, data: Any) -> None:
        self.came += data
        head, found, body = bytes(self.came).partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        if len(body) >= int(fields.get("Content-Length", 0)) and not self.said.done():
            self.said.set_result(Said(int(first.split()[1]), fields, body))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 2**16

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Office:
    """A run's folder, and a server that works in it. ``wall_s`` is what the server takes for the time of day; whoever
    is heard is at the address ``peer``, the server at 192.0.2.1.
    """

    def __init__(self, root: Path, loop: AbstractEventLoop, wall_s: float, peer: str = "127.0.0.1") -> None:
        self.loop, self.wall_s, self._peer = loop, wall_s, peer
        self.journal = Journal(root / RUN, Run(RUN, ""), max_upload_bytes=2**20)
        self.roster = Roster(root / "roster.json")
        self.board = Board(self.journal, heartbeat_s=1.0, now_s=loop.time)
        front = Front(
            self.board, self.roster, Doors(tuple(ascii_lowercase)), run=RUN, briefing=briefing_for,
            max_answer_bytes=2**20, curves=lambda: p.Curves(left_out=0, rounds={}), authority_pem=None,
            on_scalar=lambda *_: None, now_s=lambda: self.wall_s,
        )  # fmt: skip
        self._runner = web.AppRunner(front.app, handle_signals=False, access_log=None, auto_decompress=False)
        loop.run_until_complete(self._runner.setup())
        self.board.turn(Phase.RUNNING)
        self._pipe: Pipe | None = None

    def hear(self, request: bytes) -> Said:
        """Return what is answered to these bytes."""
        return self.loop.run_until_complete(self._heard(request))

    async def _heard(self, request: bytes) -> Said:
        if self._pipe is None or self._pipe.is_closing():
            assert self._runner.server is not None
            self._pipe, self._protocol = Pipe(self.loop, self._peer), self._runner.server()
            self._protocol.connection_made(self._pipe)
        self._pipe.came.clear()
        self._pipe.said = self.loop.create_future()
        self._protocol.data_received(request)
        async with asyncio.timeout(10.0):
            return await self._pipe.said

    def close(self) -> None:
        if self._pipe is not None:
            self._protocol.connection_lost(None)
        self.loop.run_until_complete(self._runner.cleanup())
        self.journal.close()


def written(method: str, path: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
    """Return a request as it goes over a wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *(f"{n}: {v}" for n, v in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + body

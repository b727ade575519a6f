"""A front that serves on loopback, over a real journal, and devices that sign by hand."""

import asyncio
import hashlib
import io
import itertools
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from journals import quick_folder, sha256
from yarl import URL

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.connections import LIMITS, Limits
from roundelay.deployment.front.front import Front
from roundelay.deployment.front.server import Server
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Opening, Run
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.identity import DeviceKey, encode
from roundelay.deployment.trust.roster import Roster
from roundelay.deployment.trust.signing import EMPTY_DIGEST, Request, sign
from roundelay.messages import Task

RUN = "one"
MODEL = b"the model of round 1. " * 100
DAY_S = 86_400.0


@dataclass
class Place:
    """A server's folder and what works in it. ``news`` is what the run heard, ``scalars`` what scripts logged."""

    root: Path
    journal: Journal
    board: Board
    roster: Roster
    front: Front
    server: Server
    port: int
    keys: dict[str, DeviceKey]
    news: list[int | None] = field(default_factory=list)
    scalars: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open_round(self, number: int = 1, clients: Sequence[str] = "abc", first: int = 1, model: bytes = MODEL) -> str:
        """Ask these clients for tasks of ids from ``first`` on; return the digest of the model."""
        self.journal.rounds.open(Opening(number, 0, tuple(clients)))
        digest = self.journal.blobs.put(model)
        self.journal.tasks.open([Task(first + i, client, number) for i, client in enumerate(clients)], digest)
        self.board.post(clients)
        return digest


def briefing_for(client: str) -> p.Briefing:
    return p.Briefing(run=RUN, client=client, heartbeat_s=1.0, site={"name": client}, settings="")


@contextmanager
def place(
    *,
    root: Path | None = None,
    members: Sequence[str] = "abc",
    clients: Sequence[str] = ascii_lowercase,
    disk: Disk | None = None,
    tls: ssl.SSLContext | None = None,
    phase: Phase = Phase.RUNNING,
    run: str = RUN,
    keys: Mapping[str, DeviceKey] | None = None,
    limits: Limits = LIMITS,
    **options: Any,
) -> Iterator[Place]:
    """Serve a run of these ``clients``, whose ``members`` are enrolled, and take part."""
    with quick_folder() as temporary:
        folder = root or Path(temporary)
        known = dict(keys or {name: DeviceKey.new() for name in members})
        with Journal(folder / run, Run(run, ""), max_upload_bytes=2**30, disk=disk) as journal:
            roster = Roster(folder / "roster.json")
            for name in members:
                if name not in roster:
                    roster.admit(name, known[name].public)
                journal.clients.admit(name, hashlib.sha256(known[name].public).hexdigest())
            news: list[int | None] = []
            scalars: list[tuple[Any, ...]] = []
            board = Board(journal, heartbeat_s=1.0)
            board.listen_for_news(news.append)
            settings = {
                "briefing": briefing_for, "max_answer_bytes": 2**28,
                "curves": lambda: p.Curves(left_out=0, rounds={"loss": [0.5, None], "round": [1, 2]}),
                "authority_pem": b"PEM", "on_scalar": lambda *what: scalars.append(what),
            } | options  # fmt: skip
            front = Front(board, roster, Doors(tuple(clients)), run=run, **settings)
            board.turn(phase)
            server = Server(front.app, "127.0.0.1", 0, tls, limits=limits)
            port = server.start()
            try:
                yield Place(folder, journal, board, roster, front, server, port, known, news, scalars)
            finally:
                server.stop(grace_s=5.0)


@dataclass(frozen=True)
class Said:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """What a program reads of a refusal; "" where it is none."""
        return p.Problem.model_validate_json(self.body).error if self.status >= 400 else ""

    def json(self) -> Any:
        return json.loads(self.body)

    def receipt(self) -> p.Receipt:
        assert self.status == 200, self.body
        return p.Receipt.model_validate_json(self.body)


class Device:
    """Signs with its key, and sends what it is told to, also what no honest device would."""

    _numbers = itertools.count(1)  # of all devices: one key may be used by several objects

    def __init__(
        self, url: str, client: str = "a", key: DeviceKey | None = None, run: str = RUN,
        tls: ssl.SSLContext | None = None, late_s: float = 0.0,
    ) -> None:  # fmt: skip
        """``late_s`` is how far its clock is behind."""
        self.url, self.client, self.run, self.late_s = url, client, run, late_s
        self.tls: ssl.SSLContext | bool = True if tls is None else tls
        self.key = key or DeviceKey.new()

    @staticmethod
    def of(here: Place, client: str = "a") -> "Device":
        return Device(here.url, client, here.keys[client])

    async def __aenter__(self) -> "Device":
        connector = aiohttp.TCPConnector(ssl=self.tls)
        self.session = aiohttp.ClientSession(auto_decompress=False, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    def fields(
        self, method: str, path: str, body: bytes = b"", *, round: int = 0, sequence: int | None = None,
        digest: bytes | None = None,
    ) -> list[tuple[str, str]]:  # fmt: skip
        parts = urlsplit(path)
        digest = digest or (hashlib.sha256(body).digest() if body else EMPTY_DIGEST)
        asked = Request(method, parts.path, self.run, round, parts.query, digest)
        return sign(asked, self.client, self.key, sequence or next(self._numbers), time.time() - self.late_s)

    async def send(self, method: str, path: str, body: bytes = b"", fields: Sequence[tuple[str, str]] = ()) -> Said:
        """Send just this."""
        url = URL(self.url + path, encoded=True)
        async with self.session.request(
            method, url, data=io.BytesIO(body) if body else None, headers=list(fields)
        ) as answer:
            return Said(answer.status, answer.headers, await answer.read())

    async def ask(
        self, method: str, path: str, body: bytes | p.Message = b"", *, round: int = 0,
        fields: Sequence[tuple[str, str]] = (), sequence: int | None = None,
    ) -> Said:  # fmt: skip
        data = body if isinstance(body, bytes) else body.model_dump_json().encode()
        signed = self.fields(method, path, data, round=round, sequence=sequence)
        return await self.send(method, path, data, [*signed, *fields])

    async def poll(self, *doing: int, wait_s: float = 0.0) -> Said:
        return await self.ask("POST", p.WORK, p.Poll(doing=list(doing), wait_s=wait_s))

    async def announce(self, task: int, answer: bytes, *, round: int = 1, size: int | None = None) -> Said:
        message = p.Announce(digest=sha256(answer), size=size or len(answer))
        return await self.ask("POST", f"{p.UPDATES}/{task}", message, round=round)

    async def part(self, task: int, answer: bytes, offset: int, length: int, *, round: int = 1) -> Said:
        piece = answer[offset : offset + length]
        path, more = part_of(task, answer, offset, length)
        return await self.ask("PUT", path, piece, round=round, fields=more)

    async def deliver(self, task: int, answer: bytes, *, round: int = 1, length: int = 1_000) -> p.Receipt:
        """Send an answer as an honest device does; return the last receipt."""
        receipt = (await self.announce(task, answer, round=round)).receipt()
        while receipt.settled is None:
            receipt = (await self.part(task, answer, receipt.received, length, round=round)).receipt()
        return receipt


def part_of(task: int, answer: bytes, offset: int, length: int) -> tuple[str, list[tuple[str, str]]]:
    """Return the path of a part and its Content-Range."""
    end = min(len(answer), offset + length)
    path = f"{p.UPDATES}/{task}?digest={sha256(answer)}&offset={offset}&size={len(answer)}"
    return path, [("Content-Range", f"bytes {offset}-{end - 1}/{len(answer)}")]


def head(device: Device, task: int, answer: bytes, offset: int, length: int) -> bytes:
    """The request line and header of a part, signed, as bytes to be sent by hand."""
    path, fields = part_of(task, answer, offset, length)
    body = answer[offset : offset + length]
    signed = device.fields("PUT", path, body, round=1)
    lines = [f"PUT {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}",
             *(f"{name}: {value}" for name, value in [*signed, *fields])]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def joining(token: str, key: DeviceKey, client: str | None = None) -> p.Join:
    return p.Join(token=token, public_key=encode(key.public), client=client)


def waits(here: Place, client: str) -> bool:
    """Whether a poll of the client has found nothing to do, and sleeps."""
    return any(woken._waiters for woken in here.front._polls._waiting.get(client, ()))  # type: ignore[attr-defined]


def within(coroutine: Any, timeout_s: float = 30.0) -> Any:
    """Run what must end by itself."""

    async def bounded() -> Any:
        async with asyncio.timeout(timeout_s):
            return await coroutine

    return asyncio.run(bounded())

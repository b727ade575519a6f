"""The first words on a connection that a coordinator dials to a worker that listens: one line of JSON each way.

    the coordinator                                                       the worker
    {"roundelay": 1, "client": "alice", "run": ..., "authority": PEM}
                                                                          {"ok": true}, or {"error": "..."}

With an authority TLS begins then, in which the coordinator is the server, under the name ``COORDINATOR``. Without one
nothing is encrypted. From there on the worker asks and the coordinator answers, as over any other connection.
"""

import asyncio
import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from roundelay.deployment.protocol import Message, Name, printable
from roundelay.deployment.trust.identity import checked_name
from roundelay.errors import IdentityError

COORDINATOR = "coordinator.roundelay"
"""A name that a coordinator's certificate must bear beside its others: who dials has no address that could be named."""

MAX_GREETING_BYTES, MAX_REPLY_BYTES = 64 * 1024, 4 * 1024

_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class Greeting(Message):
    """``authority`` is a certificate in PEM, "" where nothing is encrypted."""

    roundelay: int
    client: Name
    run: Name
    authority: str


class Reply(Message):
    ok: bool = False
    error: str = Field(default="", max_length=2_000)


@dataclass(frozen=True, slots=True)
class Worker:
    """Where a worker listens, and which client it is."""

    client: str
    host: str
    port: int

    @staticmethod
    def of(text: str) -> "Worker":
        """Read ``alice@host:port``.

        Raises:
            IdentityError: it is something else.
        """
        client, at, where = text.rpartition("@")
        try:
            parts = urlsplit(f"//{where}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not at or not host or not port or parts.path or parts.query or parts.fragment:
            raise IdentityError(f"expected a worker as alice@192.0.2.7:9000, got {text!r}")
        return Worker(checked_name(client), host, port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.client}@{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether what is said to ``host`` stays on this machine, without asking anybody what a name means."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


async def send_line(sock: socket.socket, message: Message) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, message.model_dump_json(exclude_defaults=True).encode() + b"\n")


async def read_greeting(sock: socket.socket) -> Greeting:
    """Read what a coordinator says first, and nothing behind it.

    Raises:
        ValueError: it is none.
    """
    try:
        return Greeting.model_validate_json(await _line(sock, MAX_GREETING_BYTES, MAX_GREETING_BYTES))
    except ValidationError:
        raise ValueError("not the greeting of a coordinator; is it of the same version?") from None


async def read_reply(sock: socket.socket) -> str:
    """Read what a worker answers; return "" where it is fine, else what it says.

    Raises:
        ValueError: it is no answer of a worker.
    """
    try:
        reply = Reply.model_validate_json(await _line(sock, MAX_REPLY_BYTES, 1))  # what follows belongs to TLS
    except ValidationError:
        raise ValueError("what listens there is no worker of roundelay, or one of another version") from None
    return "" if reply.ok else printable(reply.error) or "no reason given"


async def _line(sock: socket.socket, max_bytes: int, at_once: int) -> bytes:
    """Read a line, up to ``at_once`` bytes in one go.

    Raises:
        ValueError: it does not end, or something follows it.
    """
    loop, line = asyncio.get_running_loop(), bytearray()
    while not line.endswith(b"\n"):
        came = await loop.sock_recv(sock, min(at_once, max_bytes - len(line)))
        if not came:
            raise ValueError("hung up before it had said who it is")
        line += came
        if b"\n" in line[:-1]:
            raise ValueError("said more than its greeting")
        if len(line) >= max_bytes:
            raise ValueError(f"said {max_bytes} bytes without coming to an end")
    return bytes(line)


def keep_alive(sock: socket.socket) -> None:
    """Have the system find out when the other side is gone without a word, and send small pieces at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # not every system has all of them
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

"""The thread that serves: its port, connections that were dialled from here, its end, and its certificate."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fronts import Device, Place, head, joining, place, waits, within

from roundelay.deployment import protocol as p
from roundelay.deployment.front import server as servers
from roundelay.deployment.front.server import Server
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, server_certificate, server_context
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.pinning import client_context
from roundelay.errors import ServeError

ANSWER = bytes(range(256)) * 20
PART = 2_000
NAMES = ["127.0.0.1", "coordinator.roundelay"]


def empty() -> web.Application:
    return web.Application()


# ---- the port -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_or_cannot_be_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"127\.0\.0\.1, port {port}: the port is taken; stop the program"):
            Server(empty(), "127.0.0.1", port).start()
    with pytest.raises(ServeError, match="no such address"):
        Server(empty(), "192.0.2.1", 0).start()
    with pytest.raises(ServeError, match="cannot listen"):
        Server(empty(), "127.0.0.1", 70_000).start()

    async def forbidden(self: asyncio.BaseEventLoop, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_server", forbidden)
    with pytest.raises(ServeError, match="not allowed; ports below 1024"):
        Server(empty(), "127.0.0.1", 80).start()


def test_a_server_without_a_port_serves_what_it_adopts() -> None:
    server = Server(empty(), None, 0)
    assert server.start() == 0
    ours, theirs = socket.socketpair()
    with theirs:
        ended = server.adopt(ours, "a")
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert theirs.recv(100).startswith(b"HTTP/1.1 404")
    ended.result(10)
    server.stop(1.0)
    server.stop(1.0)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ConnectionError, match="stopped"):
        server.adopt(ours, "a").result(10)


def test_tls_is_spoken_and_said_goodbye_to_at_once(tmp_path: Path) -> None:
    context = server_context(tmp_path, NAMES, time.time())
    trusting = client_context((tmp_path / AUTHORITY_PUBLIC).read_bytes())
    with (
        place(tls=context) as here,
        socket.create_connection(("127.0.0.1", here.port), 10) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1_000).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        here.server.stop(5.0)  # the connection is idle, and nobody says goodbye to it
        assert time.monotonic() - begun < 5.0


# ---- connections that were dialled ----------------------------------------------------------------------------------


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname(), 10)
        ours, _ = listening.accept()
    return ours, theirs


def said_over(sock: socket.socket, method: str, path: str, body: bytes = b"", fields: Any = ()) -> bytes:
    """Send a request by hand, and return the whole answer."""
    _ask(sock, method, path, body, fields)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(65_536)
    _, _, rest = answer.partition(b"\r\n\r\n")
    length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += sock.recv(65_536)
    return answer.split(b"\r\n", 1)[0] + b" " + rest


def join_over(sock: socket.socket, key: DeviceKey, client: str | None = None) -> bytes:
    return said_over(sock, "POST", p.JOIN, joining("", key, client).model_dump_json().encode())


def adopted(here: Place, client: str, tls: ssl.SSLContext | None = None) -> "tuple[socket.socket, Future[None]]":
    ours, theirs = pair()
    theirs.settimeout(10)
    return theirs, here.server.adopt(ours, client, tls)


def test_who_is_reached_under_its_address_needs_no_token_and_is_known_by_its_first_key() -> None:
    key = DeviceKey.new()
    with place(clients="abcd") as here:
        sock, ended = adopted(here, "d")
        with sock:
            assert b"200 OK" in (first := join_over(sock, key))
            assert b'"client":"d"' in first
            assert b"200 OK" in join_over(sock, key, "d"), "again, on the same connection"
            assert b"made to reach client 'd', not 'a'" in join_over(sock, key, "a")
            device = Device(here.url, "d", key)
            body = p.Poll().model_dump_json().encode()
            assert b"204" in _status(sock, "POST", p.WORK, body, device.fields("POST", p.WORK, body))
        ended.result(10)
        sock, _ = adopted(here, "d")
        with sock:
            assert b"403" in (refused := join_over(sock, DeviceKey.new()))
            assert b"came with another key before" in refused
        sock, _ = adopted(here, "x")
        with sock:
            assert b"none of the 4 clients" in join_over(sock, DeviceKey.new())
        with socket.create_connection(("127.0.0.1", here.port), 10) as sock:
            assert b"a token is needed" in join_over(sock, DeviceKey.new())
        assert not [name for name in here.front.app[servers.DIALLED].values() if name == "a"]


def _status(sock: socket.socket, method: str, path: str, body: bytes, fields: Any) -> bytes:
    _ask(sock, method, path, body, fields)
    return sock.recv(65_536).split(b"\r\n", 1)[0]


def _ask(sock: socket.socket, method: str, path: str, body: bytes, fields: Any) -> None:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}",
             *(f"{name}: {value}" for name, value in fields)]  # fmt: skip
    sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def test_a_dialled_connection_speaks_tls_as_its_server(tmp_path: Path) -> None:
    context = server_context(tmp_path, NAMES, time.time())
    trusting = client_context((tmp_path / AUTHORITY_PUBLIC).read_bytes())
    with place() as here:
        plain, ended = adopted(here, "d", context)
        with plain, trusting.wrap_socket(plain, server_hostname="coordinator.roundelay") as sock:
            assert b"200 OK" in join_over(sock, DeviceKey.new())
        ended.result(10)
        plain, ended = adopted(here, "d", context)
        with plain:
            plain.sendall(b"no TLS at all, but something else\r\n\r\n")
            with pytest.raises(ssl.SSLError):
                ended.result(10)
        assert not here.front.app[servers.DIALLED]


NO_HTTP = (
    b"nonsense with a secret\r\n\r\n",
    b"GET / HTTP/9\r\nX: a secret\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a secret\0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a secret" + b"x" * 10_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: a secret\r\n\r\n",
    b"POST /v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\na secret\r\n",
)


def check_unbranded(port: int, *asked: bytes) -> None:
    """The contract: no answer says what runs here, nor quotes what was no request."""
    for said in asked:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(said)
            came = b"".join(iter(lambda: sock.recv(65_536), b""))
        assert came.startswith(b"HTTP/1."), came
        head = came.partition(b"\r\n\r\n")[0]
        assert [line for line in head.split(b"\r\n") if line.startswith(b"Server:")] == [b"Server: roundelay"], came
        for told in (b"aiohttp", b"ython", b"secret"):
            assert told not in came, came


def requests() -> list[bytes]:
    paths = (p.HELLO, p.HEALTH, p.STATS, p.RUN, "/nowhere")
    return [f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode() for path in paths]


def test_no_answer_tells_what_runs_here() -> None:
    with place() as here:
        check_unbranded(here.port, *requests(), *NO_HTTP)
    other = Server(empty(), "127.0.0.1", 0)  # such as that of the metrics
    try:
        check_unbranded(other.start(), *requests(), *NO_HTTP[:4])
    finally:
        other.stop(grace_s=0.0)


def aiohttps_own_words(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(servers._Speaker, "handle_error")


def no_name(patch: pytest.MonkeyPatch) -> None:
    async def planted(*_: object) -> None: ...

    patch.setattr(servers, "_name", planted)


@pytest.mark.parametrize("plant", [aiohttps_own_words, no_name])
def test_the_check_of_answers_catches(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with place() as here, pytest.raises(AssertionError):
        check_unbranded(here.port, *requests(), *NO_HTTP)


# ---- its end --------------------------------------------------------------------------------------------------------


def test_at_the_end_what_is_under_way_may_finish_and_who_waits_is_sent_away() -> None:
    async def go() -> None:
        async with Device.of(here) as a, Device.of(here, "b") as b:
            await a.announce(1, ANSWER)
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(head(a, 1, ANSWER, 0, PART) + ANSWER[:100])
            await writer.drain()
            polling = asyncio.create_task(b.poll(2, wait_s=30))
            while here.front._desk.intake.in_flight == 0 or not waits(here, "b"):
                await asyncio.sleep(0.001)
            stopping = threading.Thread(target=here.server.stop, args=(20.0,))
            stopping.start()
            assert (await polling).status == 204
            writer.write(ANSWER[100:PART])
            answer = await reader.read()
            assert b"200 OK" in answer
            assert f'"received":{PART}'.encode() in answer
            assert b"Connection: close" in answer
            writer.close()
            await asyncio.to_thread(stopping.join)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", here.port)

    with place() as here:
        here.open_round()
        within(go())


def test_what_does_not_end_within_its_grace_is_cut() -> None:
    async def go() -> None:
        async with Device.of(here) as a:
            await a.announce(1, ANSWER)
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(head(a, 1, ANSWER, 0, PART) + ANSWER[:100])
            await writer.drain()
            while here.front._desk.intake.in_flight == 0:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(here.server.stop, 0.01)
            with contextlib.suppress(ConnectionError):
                assert b"200" not in await reader.read()
            writer.close()

    with place() as here:
        here.open_round()
        within(go(), 15.0)


@pytest.mark.parametrize("dialled", [True, False])
def test_a_worker_that_never_says_goodbye_is_hung_up_on(tmp_path: Path, dialled: bool) -> None:
    """It was answered last, so the application has closed its connection, before all of them are ended."""
    context = server_context(tmp_path, NAMES, time.time())
    trusting = client_context((tmp_path / AUTHORITY_PUBLIC).read_bytes())
    with place(tls=context) as here:
        if dialled:
            plain, ended = adopted(here, "b", context)
        else:
            plain, ended = socket.create_connection(("127.0.0.1", here.port), 10), Future()
        with (
            plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
            socket.socket(fileno=os.dup(sock.fileno())) as below,  # which answers nothing in the name of TLS
        ):
            below.settimeout(5)
            body = p.Poll(wait_s=30.0).model_dump_json().encode()
            _ask(sock, "POST", p.WORK, body, Device.of(here, "b").fields("POST", p.WORK, body))
            while not waits(here, "b"):
                time.sleep(0.001)
            here.server.stop(5.0)
            assert ended.done() is dialled
            while below.recv(65_536):
                pass


def test_who_comes_while_the_server_stops_is_sent_away(tmp_path: Path) -> None:
    context = server_context(tmp_path, NAMES, time.time())
    trusting = client_context((tmp_path / AUTHORITY_PUBLIC).read_bytes())
    draining, drained, late = threading.Event(), threading.Event(), pair()

    async def drain(_: float) -> None:
        draining.set()
        await asyncio.to_thread(drained.wait, 10)

    app = empty()
    app[servers.DRAIN] = drain
    server = Server(app, None, 0)
    server.start()
    ours, theirs = pair()
    half_way = server.adopt(ours, "a", context)
    stopping = threading.Thread(target=server.stop, args=(5.0,))
    with theirs, late[1]:
        try:
            stopping.start()
            assert draining.wait(10)
            with pytest.raises(ConnectionError, match="stopped"):
                server.adopt(late[0], "b").result(10)
            theirs.settimeout(10)
            with contextlib.suppress(OSError), trusting.wrap_socket(theirs, server_hostname="127.0.0.1") as sock:
                assert sock.recv(100) == b""
            half_way.exception(10)
        finally:
            drained.set()
            stopping.join()


# ---- its certificate ------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_once_a_day_in_the_context_that_is_in_use(tmp_path: Path) -> None:
    day_s = servers.RENEW_EVERY_S
    now = [time.time() - 300 * day_s]
    context = server_context(tmp_path, NAMES, now[0])
    trusting = client_context((tmp_path / AUTHORITY_PUBLIC).read_bytes())
    nights: asyncio.Queue[None] = asyncio.Queue()
    slept: list[float] = []
    loops: list[asyncio.AbstractEventLoop] = []
    done = threading.Semaphore(0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        loops.append(asyncio.get_running_loop())
        done.release()
        await nights.get()

    def renew() -> None:
        if len(slept) == 1:
            raise OSError("the disk is away")
        context.load_cert_chain(server_certificate(tmp_path, NAMES, now[0]))

    def serial(port: int) -> object:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
        ):
            return sock.getpeercert()["serialNumber"]  # type: ignore[index]

    server = Server(empty(), "127.0.0.1", 0, context, renew=renew, sleep=sleep)
    port = server.start()
    try:
        assert done.acquire(timeout=10)
        first = serial(port)
        for expected_new in (False, True):
            now[0] += 150 * day_s  # the second time 65 days are left
            loops[0].call_soon_threadsafe(nights.put_nowait, None)
            assert done.acquire(timeout=10)
            assert (serial(port) != first) is expected_new
        assert slept == [day_s] * 3
    finally:
        server.stop(1.0)

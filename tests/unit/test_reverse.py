"""Workers that listen and coordinators that dial: with TLS and without, and whom each of them refuses."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agents import Clock, Doubler, answered, model, over, until
from fronts import RUN, Place, briefing_for, place, within

from roundelay.deployment.device.agent import Agent
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.link import Link
from roundelay.deployment.device.reverse import Listener
from roundelay.deployment.device.worker import worker_loop
from roundelay.deployment.front.dialling import Dialler
from roundelay.deployment.greeting import COORDINATOR, MAX_GREETING_BYTES, Greeting, Worker
from roundelay.deployment.protocol import PROTOCOL
from roundelay.deployment.trust.certificates import Authority, server_context
from roundelay.errors import DeviceError, IdentityError

NOW_S = time.time()  # TLS has no clock but the machine's


@dataclass
class Listening:
    """A worker that listens on loopback, and serves whoever is let in."""

    folder: Path
    pin: str = ""
    client: str = ""
    hands: Doubler = field(default_factory=Doubler)
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)
    port: int = 0

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Listening"]:
        with Device(self.folder) as device:
            async with Listener(device, self.said.append, client=self.client, pin=self.pin) as listener:
                self.port = await listener.start("127.0.0.1", self.port)

                async def serve(link: Link) -> str:
                    agent = Agent(
                        link, device, lambda _: self.hands, self.said.append, sleep=self.clock.sleep, now_s=self.clock
                    )
                    return await agent.run()

                working = asyncio.ensure_future(
                    worker_loop(
                        listener, device, serve, self.said.append, sleep=_soon, now_s=self.clock, draw=lambda: 0.5
                    )
                )
                try:
                    yield self
                finally:
                    working.cancel()
                    (ended,) = await asyncio.gather(working, return_exceptions=True)
                    assert isinstance(ended, asyncio.CancelledError), ended


async def _soon(seconds: float) -> None:
    """A pause that is short in real time: the other side is in another thread."""
    await asyncio.sleep(min(seconds, 0.005))


@asynccontextmanager
async def dialling(
    here: Place, worker: Listening, folder: Path | None, *, client: str = "a", run: str = RUN, secured: bool = True
) -> AsyncIterator[tuple[Dialler, list[str]]]:
    """A coordinator with the authority of ``folder``, None for none, that dials a worker."""
    said: list[str] = []
    tls, pem = _tls(folder) if folder is not None else (None, None)
    dialler = Dialler(
        [Worker(client, "127.0.0.1", worker.port)], run, pem if secured else None,
        lambda sock, name: here.server.adopt(sock, name, tls if secured else None), said.append, sleep=_soon,
    )  # fmt: skip
    task = asyncio.ensure_future(dialler.run())
    try:
        yield dialler, said
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


def _tls(folder: Path) -> tuple[ssl.SSLContext, bytes]:
    return server_context(folder, [COORDINATOR, "127.0.0.1"], NOW_S), Authority.open(folder, NOW_S).pem


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secured", [True, False])
def test_a_worker_that_is_dialled_does_its_tasks(tmp_path: Path, secured: bool) -> None:
    async def play() -> None:
        worker, folder = Listening(tmp_path / "device"), tmp_path / "server" if secured else None
        with place(root=tmp_path, members="") as here:
            async with worker.open(), dialling(here, worker, folder):
                await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                here.open_round(1, "a", 1, model())
                await answered(here, 1)
                over(here)
                await until(lambda: worker.heard("is over: the run has ended: it is done"), "the end")
        assert worker.heard("trusting the coordinator with pin") == secured

    within(play())
    with Device(tmp_path / "device") as device:
        assert (device.authority is not None) == secured
        assert device.joined is not None
        assert (device.joined.client, device.joined.server) == ("a", "")
        assert device.answers.of(RUN) == ()


def test_a_worker_serves_run_after_run_of_its_coordinator(tmp_path: Path) -> None:
    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            for number, run in enumerate(("one", "two", "three")):
                with place(root=tmp_path, members="", run=run, briefing=_briefing(run)) as here:
                    async with dialling(here, worker, tmp_path / "server", run=run):
                        await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                        here.open_round(1, "a", 1, model())
                        await answered(here, 1)
                        over(here)
                        await until(lambda: worker.heard(f"run {run!r} is over"), "the end")  # noqa: B023
                assert len(worker.hands.begun) == number + 1
            assert worker.hands.memories == [{}, {}, {}]

    within(play(), 60)


def _briefing(run: str) -> Any:
    return lambda client: briefing_for(client).model_copy(update={"run": run})


def test_a_coordinator_that_was_killed_comes_back_and_finds_its_worker_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Listener.take
    monkeypatch.setattr(Listener, "take", lambda self, _: take(self, 0.1))  # a heartbeat waits for nobody for long

    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            worker.hands.gate.clear()
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, tmp_path / "server"):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                    here.open_round(1, "a", 1, model())
                    await until(worker.hands.inside.is_set, "training")
            worker.hands.gate.set()
            await until(lambda: list((tmp_path / "device" / "answers" / RUN).glob("*.answer")), "the answer")
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, tmp_path / "server"):
                    await answered(here, 1)
                    over(here)
                    await until(lambda: worker.heard("is over"), "the end")
            assert len(worker.hands.begun) == 1

    within(play(), 60)


def test_the_coordinator_keeps_dialling_says_so_once_and_knows_who_is_connected(tmp_path: Path) -> None:
    async def play() -> None:
        with place(root=tmp_path, members="") as here:
            worker = Listening(tmp_path / "device")
            async with worker.open():
                pass  # a port on which nobody listens now
            async with dialling(here, worker, tmp_path / "server") as (dialler, said):
                await until(lambda: said, "the complaint")
                assert dialler.connected == frozenset()
                async with worker.open():
                    await until(lambda: dialler.connected == {"a"}, "the connection")
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                await until(lambda: not dialler.connected, "the end of it")
            assert "a@127.0.0.1" in said[0]
            assert "refused" in said[0]
            assert len(said) <= 2

    within(play(), 60)


# ---- whom a worker refuses ------------------------------------------------------------------------------------------


def check_tofu(tmp_path: Path) -> None:
    """Another coordinator is refused, before and after it says who it is; the first one is let in again."""

    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, tmp_path / "server"):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                    over(here)
                    await until(lambda: worker.heard("is over"), "the end")
            with place(members="") as other:
                async with dialling(other, worker, tmp_path / "impostor") as (_, said):
                    await until(lambda: said or other.journal.clients.takes_part("a"), "an answer")
                    assert not other.journal.clients.takes_part("a"), "it was let in"
                    assert "trusts the coordinator with pin" in said[0]
                async with dialling(other, worker, None) as (_, said):
                    await until(lambda: said or other.journal.clients.takes_part("a"), "an answer")
                    assert not other.journal.clients.takes_part("a"), "it was let in"
                    assert "takes nothing that is not encrypted" in said[0]

    within(play(), 60)


def test_the_first_coordinator_is_trusted_and_no_other(tmp_path: Path) -> None:
    check_tofu(tmp_path)


def test_a_worker_that_remembers_nobody_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Listener, greeting: Greeting, peer: str) -> tuple[str, str]:
        return "", ""

    monkeypatch.setattr(Listener, "_judged", forgetful)
    with pytest.raises(AssertionError):
        check_tofu(tmp_path)


def test_who_shows_the_certificate_of_another_cannot_use_it(tmp_path: Path) -> None:
    """The certificate of an authority is public; only whom it has signed for can end the handshake."""

    async def play() -> None:
        ours = Authority.open(tmp_path / "server", NOW_S)
        theirs, _ = _tls(tmp_path / "impostor")
        async with Listening(tmp_path / "device").open() as worker:
            with place(members="") as other:
                said: list[str] = []
                dialler = Dialler(
                    [Worker("a", "127.0.0.1", worker.port)], RUN, ours.pem,
                    lambda sock, name: other.server.adopt(sock, name, theirs), said.append, sleep=_soon,
                )  # fmt: skip
                task = asyncio.ensure_future(dialler.run())
                await until(lambda: worker.heard("was not let in"), "the refusal")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert not other.journal.clients.takes_part("a")
        assert not (tmp_path / "device" / "authority.crt").exists(), "it is remembered who proves it only"

    within(play())


def test_a_worker_that_was_told_a_pin_waits_for_that_one(tmp_path: Path) -> None:
    async def play() -> None:
        pin = Authority.open(tmp_path / "server", NOW_S).pin
        async with Listening(tmp_path / "device", pin).open() as worker:
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, tmp_path / "impostor") as (_, said):
                    await until(lambda: said, "the refusal")
                    assert "trusts the coordinator with pin" in said[0]
                async with dialling(here, worker, tmp_path / "server"):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
        with Device(tmp_path / "device") as device, pytest.raises(DeviceError, match="trusts the coordinator"):
            Listener(device, worker.said.append, pin="another")

    within(play())


def test_whoever_is_refused_at_last_is_hung_up_on_without_a_goodbye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Device, pem: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def coordinator(port: int) -> None:
        tls, pem = _tls(tmp_path / "server")
        greeting = Greeting(roundelay=PROTOCOL, client="a", run=RUN, authority=pem.decode())
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(greeting.model_dump_json().encode() + b"\n")
            while plain.recv(1) != b"\n":
                pass
            with (
                contextlib.suppress(ConnectionError, ssl.SSLError),  # it may be cut before the last of the handshake
                tls.wrap_socket(plain, server_side=True) as sock,
                socket.socket(fileno=os.dup(sock.fileno())) as below,  # which answers nothing in the name of TLS
            ):
                below.settimeout(5)
                while below.recv(65_536):
                    pass

    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            await asyncio.to_thread(coordinator, worker.port)
            await until(lambda: worker.heard("its certificate cannot be kept (No space"), "the refusal")

    monkeypatch.setattr(Device, "trust", full)
    within(play())


def test_another_coordinator_hears_that_the_worker_is_busy(tmp_path: Path) -> None:
    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            worker.hands.gate.clear()
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, tmp_path / "server"):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                    here.open_round(1, "a", 1, model())
                    await until(worker.hands.inside.is_set, "training")
                    with place(members="", run="two") as other:
                        async with dialling(other, worker, tmp_path / "server", run="two") as (_, said):
                            await until(lambda: said, "the refusal")
                    assert "busy with run 'one'" in said[0]
                    worker.hands.gate.set()
                    await answered(here, 1)
                    over(here)
                    await until(lambda: worker.heard("is over"), "the end")

    within(play(), 60)


def test_a_worker_has_one_name(tmp_path: Path) -> None:
    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, None):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")
                    over(here)
                    await until(lambda: worker.heard("is over"), "the end")
                async with dialling(here, worker, None, client="b") as (_, said):
                    await until(lambda: said, "the refusal")
                    assert "this worker is client 'a'" in said[0]

    within(play())


def test_a_worker_that_was_told_its_name_is_not_taken_for_another_when_it_is_met_first(tmp_path: Path) -> None:
    async def play() -> None:
        async with Listening(tmp_path / "device", client="b").open() as worker:
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, None) as (_, said):
                    await until(lambda: said, "the refusal")
                    assert "this worker is client 'b', not 'a'" in said[0]
                async with dialling(here, worker, None, client="b"):
                    await until(lambda: here.journal.clients.takes_part("b"), "the joining")

    within(play())


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\n", b"{}\n", b"\xff\n", b'{"roundelay": 1}\n',
        b"x" * (MAX_GREETING_BYTES + 1),
        b'{"roundelay": 99, "client": "a", "run": "one", "authority": ""}\n',
        b'{"roundelay": 1, "client": "a", "run": "one", "authority": "PEM"}\n',
        b'{"roundelay": 1, "client": "a", "run": "one", "authority": ""}\n{"more": 1}\n', b"",
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_the_next_one_is_let_in(tmp_path: Path, line: bytes) -> None:
    async def play() -> None:
        async with Listening(tmp_path / "device").open() as worker:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            writer.write(line)
            writer.write_eof()
            try:
                said = await reader.read()
            except ConnectionResetError:
                said = b""
            assert b'"ok"' not in said
            writer.close()
            await until(lambda: worker.heard("was not let in"), "the refusal")
            with place(root=tmp_path, members="") as here:
                async with dialling(here, worker, None):
                    await until(lambda: here.journal.clients.takes_part("a"), "the joining")

    within(play())


# ---- whom a coordinator refuses -------------------------------------------------------------------------------------


def test_plain_text_goes_to_this_machine_only() -> None:
    def adopt(*_: object) -> Any:
        raise AssertionError

    with pytest.raises(IdentityError, match="nothing would be encrypted"):
        Dialler([Worker.of("a@192.0.2.7:9000")], RUN, None, adopt, print)
    Dialler([Worker.of("a@192.0.2.7:9000")], RUN, None, adopt, print, insecure=True)
    Dialler([Worker.of("a@localhost:9000"), Worker.of("b@[::1]:9000")], RUN, None, adopt, print)
    with pytest.raises(IdentityError, match="each client once"):
        Dialler([Worker.of("a@127.0.0.1:1"), Worker.of("a@127.0.0.1:2")], RUN, None, adopt, print)


def test_what_listens_there_may_be_no_worker(tmp_path: Path) -> None:
    async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def play() -> None:
        server = await asyncio.start_server(web_server, "127.0.0.1", 0)
        worker = Listening(tmp_path, port=server.sockets[0].getsockname()[1])
        with place(root=tmp_path, members="") as here:
            async with dialling(here, worker, None) as (_, said):
                await until(lambda: said, "the complaint")
        assert "no worker of roundelay" in said[0]
        server.close()

    within(play())


@pytest.mark.parametrize("text", ["", "a", "a@", "@b:1", "a@b", "a@b:0", "a@b:99999", "a b@c:1", "a@b:1/x", "a@:1"])
def test_a_worker_is_written_in_one_way(text: str) -> None:
    with pytest.raises(IdentityError):
        Worker.of(text)
    assert str(Worker.of("a@fl.example.org:9")) == "a@fl.example.org:9"
    assert str(Worker.of("a@[::1]:9")) == "a@[::1]:9"

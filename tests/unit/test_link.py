"""One conversation with a server, good and bad: what each answer is taken for; and how a device joins."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Clock
from aiohttp import web
from fronts import DAY_S, RUN, Place, place, within

from roundelay.deployment.device import replies
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.joining import enrolled, server_address
from roundelay.deployment.device.link import Limits, Link
from roundelay.deployment.device.trouble import Again, Refusal, Unreachable
from roundelay.deployment.patience import Backoff, Patience
from roundelay.deployment.protocol import Problem
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, Authority, server_context
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.kits import provision
from roundelay.errors import DeviceError, IdentityError

NOW_S = time.time()  # TLS has no clock but the machine's
FIVE = Limits(5.0, 5.0)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def linked(handler: Handler, folder: Path, limits: Limits = FIVE) -> AsyncIterator[Link]:
    """A link to a server that answers everything with one handler."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    with Device(folder) as device:
        try:
            link = Link(
                Address.plain(f"http://127.0.0.1:{port}"), None, device.key(), device.counter, client="a", run=RUN,
                limits=limits,
            )  # fmt: skip
            async with link:
                yield link
        finally:
            await runner.cleanup()


def asked(handler: Handler, folder: Path, limits: Limits = FIVE) -> Exception:
    """Return what a heartbeat comes to."""

    async def ask() -> Exception:
        async with linked(handler, folder, limits) as link:
            with pytest.raises((Unreachable, Again, Refusal)) as caught:
                await link.beat([1])
            return caught.value

    error: Exception = within(ask())
    return error


def saying(status: int, body: str = "", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


# ---- what answers are taken for -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "after", "expected_s"),
    [(503, "7", 7.0), (429, "1", 1.0), (503, "soon", 0.0), (503, "100000", 60.0), (500, "", 0.0), (502, "", 0.0)],
)
def test_a_server_that_cannot_now_is_asked_again_when_it_says(
    tmp_path: Path, status: int, after: str, expected_s: float
) -> None:
    error = asked(saying(status, "<html>", Retry_After=after), tmp_path)
    assert isinstance(error, Again)
    assert error.after_s == expected_s


def test_a_refusal_says_what_the_server_said_and_cannot_write_into_the_terminal(tmp_path: Path) -> None:
    problem = Problem(error="not_found", message="no such\x1b[2J task")
    error = asked(saying(404, problem.model_dump_json()), tmp_path)
    assert isinstance(error, Refusal)
    assert (error.status, error.problem.error) == (404, "not_found")
    assert "no such?[2J task" in str(error)


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, "<html>nginx</html>"), (200, "<html>hotel</html>"), (200, '{"over": ["1"]}'), (200, '{"over": [], "x": 1}'),
     (200, ""), (302, ""), (204, "")],
)  # fmt: skip
def test_what_no_server_of_ours_would_say_is_not_believed(tmp_path: Path, status: int, body: str) -> None:
    error = asked(saying(status, body, Location="http://127.0.0.1:1/"), tmp_path)
    assert isinstance(error, Unreachable)
    assert "roundelay server" in str(error)


def test_a_message_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65_536)
                sent += 65_536
        except ConnectionError:
            return response

    error = asked(endless, tmp_path)
    assert isinstance(error, Unreachable)
    assert "more than 1048576 bytes" in str(error)
    assert sent < 30 * 2**20


def test_a_server_that_stops_in_mid_answer_is_not_waited_for(tmp_path: Path) -> None:
    async def hanging(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"over"')
        await asyncio.Event().wait()
        return response

    error = asked(hanging, tmp_path, Limits(0.05, 0.1))
    assert isinstance(error, Unreachable)
    assert "no answer in time" in str(error)


def test_a_server_that_takes_no_bytes_is_not_waited_for(tmp_path: Path) -> None:
    """The first megabytes go into buffers, then nothing moves."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(1, 8, 4096)  # SO_RCVBUF
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()

    async def play() -> None:
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        address = Address.plain(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with Device(tmp_path) as device:
            link = Link(address, None, device.key(), device.counter, client="a", run=RUN, limits=Limits(0.1, 0.1))
            async with link:
                with pytest.raises(Unreachable, match="no answer in time"):
                    await link.put_part(1, 1, "0" * 64, 2**25, 0, bytes(2**25))
        over.set()
        server.close()
        await asyncio.sleep(0.01)

    within(play())


def test_requests_go_one_after_another_on_one_connection_with_numbers_that_go_up(tmp_path: Path) -> None:
    numbers: list[int] = []
    peers: set[Any] = set()
    under_way = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        numbers.append(int(request.headers["Roundelay-Sequence"]))
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        await asyncio.sleep(0)
        under_way -= 1
        return web.Response(text='{"over": []}')

    async def play() -> None:
        async with linked(handler, tmp_path) as link:
            await asyncio.gather(*(link.beat([i]) for i in range(20)))

    within(play())
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 20
    assert len(peers) == 1


def test_a_request_that_was_left_leaves_the_link_in_order(tmp_path: Path) -> None:
    came = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/v1/work":
            came.set()
            await asyncio.Event().wait()
        return web.Response(text='{"over": []}')

    async def play() -> None:
        async with linked(handler, tmp_path) as link:
            poll = asyncio.ensure_future(link.poll([], 25.0))
            await came.wait()
            poll.cancel()
            with pytest.raises(asyncio.CancelledError):
                await poll
            await link.beat([])

    within(play())


@pytest.mark.parametrize("wrong", ["another piece", "too much", "nothing", "other bytes"])
def test_a_model_is_believed_only_by_its_digest(tmp_path: Path, wrong: str) -> None:
    data = bytes(range(256)) * 4_000
    digest = replies.digest_of(data).hex()

    async def handler(request: web.Request) -> web.Response:
        assert request.headers["If-Range"] == f'"{digest}"'
        at = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
        if wrong == "another piece":
            return web.Response(status=206, body=data, headers={"Content-Range": f"bytes 5-9/{len(data)}"})
        if wrong == "too much":
            return web.Response(body=data + b"more")
        if wrong == "nothing":
            return web.Response(status=206, headers={"Content-Range": f"bytes {at}-{at}/{len(data)}"})
        return web.Response(body=data[::-1])

    async def play() -> None:
        part = tmp_path / "part"
        part.write_bytes(data[:1_000])

        async def between() -> None: ...

        async with linked(handler, tmp_path / "device") as link:
            with pytest.raises(Unreachable):
                await link.fetch(digest, len(data), part, between)
        assert part.stat().st_size in (0, 1_000), "what is wrong is not kept"

    within(play())


# ---- patience -------------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_half_a_minute_and_are_drawn() -> None:
    backoff = Backoff()
    assert [backoff.pause_s(0.0) for _ in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert Backoff().pause_s(1.0) == 0.5


def test_it_is_said_once_a_minute_whom_we_wait_for_and_when_that_is_over() -> None:
    clock, said = Clock(), list[str]()
    tries = 40

    async def ask() -> int:
        nonlocal tries
        tries -= 1
        if tries:
            raise Unreachable("https://server:1: nothing listens there")
        return 7

    patience = Patience(said.append, clock.sleep, clock, lambda: 0.9999)
    assert within(patience.insist(ask)) == 7
    passed_s = clock.now_s - 1_000
    assert passed_s > 900
    assert passed_s / 90 - 1 <= len(said) - 1 <= passed_s / 60 + 1
    assert said[0] == "waiting: https://server:1: nothing listens there"
    assert said[-1] == "it goes on: the server answers"


# ---- joining --------------------------------------------------------------------------------------------------------


def join(device: Device, url: str, **more: Any) -> Link:
    link: Link = within(enrolled(device, url, **more))
    return link


def test_a_device_joins_with_a_token_and_a_pin_and_needs_neither_again(tmp_path: Path) -> None:
    tls = server_context(tmp_path / "server", ["127.0.0.1"], NOW_S)
    authority = Authority.open(tmp_path / "server", NOW_S)
    with place(root=tmp_path, members="", tls=tls, authority_pem=authority.pem) as here, _device(tmp_path) as device:
        url = here.url.replace("http", "https")
        token = here.roster.invite("a", DAY_S, NOW_S).reveal()
        link = join(device, url, token=token, pin=authority.pin)
        assert link.client == "a"
        assert here.roster.public_key("a") == device.key().public
        again = join(device, url)
        assert again.client == "a"

        async def brief() -> str:
            async with again:
                again.run = RUN
                return (await again.briefing()).client

        assert within(brief()) == "a"
        other = Authority.new(NOW_S)
        with pytest.raises(DeviceError, match=f"trusts the server with pin {authority.pin}"):
            join(device, url, pin=other.pin)
        with pytest.raises(DeviceError, match="over https:// only"):
            join(device, here.url)


def _device(folder: Path) -> Device:
    return Device(folder / "device")


def test_an_answer_to_a_join_that_was_lost_is_asked_for_again_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Link.join

    async def deaf(self: Link, token: str, client: str | None) -> Any:
        await honest(self, token, client)
        raise Unreachable("cut")

    with place(root=tmp_path, members="") as here, _device(tmp_path) as device:
        token = here.roster.invite("a", DAY_S, NOW_S).reveal()
        with monkeypatch.context() as cut:
            cut.setattr(Link, "join", deaf)
            with pytest.raises(Unreachable):
                join(device, here.url, token=token)
        assert device.joined is None
        assert join(device, here.url, token=token).client == "a"


def test_a_wrong_pin_says_nothing_to_the_server(tmp_path: Path) -> None:
    tls = server_context(tmp_path / "server", ["127.0.0.1"], NOW_S)
    authority = Authority.open(tmp_path / "server", NOW_S)
    with place(root=tmp_path, members="", tls=tls, authority_pem=authority.pem) as here, _device(tmp_path) as device:
        token = here.roster.invite("a", DAY_S, NOW_S).reveal()
        with pytest.raises(IdentityError, match="Compare the pin"):
            join(device, here.url.replace("http", "https"), token=token, pin=Authority.new(NOW_S).pin)
        assert device.authority is None
        assert here.roster.enrol(token, DeviceKey.new().public, NOW_S) == "a", "the token was not spent"


def test_plain_http_stays_on_this_machine_unless_it_is_allowed() -> None:
    for url in ("http://192.0.2.7:8080", "http://fl.example.org", "http://127.0.0.1.example.org:1"):
        with pytest.raises(IdentityError, match="--insecure"):
            server_address(url, insecure=False)
        assert not server_address(url, insecure=True).secured
    for url in ("http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"):
        assert str(server_address(url, insecure=False)) == url
    assert str(server_address("https://fl.example.org", insecure=False)) == "https://fl.example.org:443"
    for url in ("ftp://a", "http://", "http://a/path", "https://a@b", "a:1"):
        with pytest.raises(IdentityError, match="expected an address"):
            server_address(url, insecure=True)


@pytest.mark.parametrize(
    ("url", "more", "words"),
    [
        ("https://127.0.0.1:1", {}, "whose server is this"),
        ("http://127.0.0.1:1", {}, "has not joined yet, and needs a token"),
        ("http://127.0.0.1:1", {"pin": "A" * 43}, "over https:// only"),
        ("https://127.0.0.1:1", {"pin": "short"}, "the pin"),
        ("https://127.0.0.1:1", {"kit": Path("/nonexistent")}, "is no kit"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, url: str, more: dict[str, Any], words: str) -> None:
    with _device(tmp_path) as device, pytest.raises((IdentityError, DeviceError), match=words):
        join(device, url, **more)


def test_a_token_that_is_refused_is_an_error_that_says_why(tmp_path: Path) -> None:
    with place(root=tmp_path, members="") as here, _device(tmp_path) as device:
        with pytest.raises(IdentityError, match="not one that the server has given out"):
            join(device, here.url, token="x" * 43)
        here.roster.invite("a", DAY_S, NOW_S)


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_kit_is_all_that_a_device_needs(tmp_path: Path, with_keys: bool) -> None:
    kits = tmp_path / "kits"
    provision(kits, ["127.0.0.1"], ["a", "b"], now_s=NOW_S, with_keys=with_keys)
    tls = server_context(kits / "server", ["127.0.0.1"], NOW_S)
    pem = (kits / "server" / AUTHORITY_PUBLIC).read_bytes()
    with place(root=kits / "server", members="", tls=tls, authority_pem=pem) as here, _device(tmp_path) as device:
        link = join(device, here.url.replace("http", "https"), kit=kits / "sites" / "a")
        assert link.client == "a"
        assert briefed(link)
        assert here.roster.public_key("a") == device.key().public


def briefed(link: Link) -> bool:
    async def brief() -> bool:
        async with link:
            link.run = RUN
            return (await link.briefing()).client == link.client

    return bool(within(brief()))


__all__ = ["Place"]

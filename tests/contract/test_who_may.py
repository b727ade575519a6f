"""Who may do what: eleven identities at every route that the server has, over TLS, and what each of them comes to.

Routes are found by listing the application's own: one that has no rule here fails the test. Who was refused has changed
nothing, and who could not speak TLS as the server does has not even been heard.
"""

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from asked import Asked, Unsigned, a_new_route, asked, listed, no_signatures, plain, ready, state
from figures import Figures
from fronts import DAY_S, Device, Place, Said, joining, place, within
from in_memory import Inline, Office, written
from loopback import only_tls_1_1

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Phase
from roundelay.deployment.front import lobby
from roundelay.deployment.front.front import Front
from roundelay.deployment.front.meters import SYNC_BOUNDS_S, Durations
from roundelay.deployment.front.routes import ROUTES
from roundelay.deployment.trust import signing
from roundelay.deployment.trust.certificates import (
    AUTHORITY_PUBLIC,
    SERVER_SECRET,
    Authority,
    server_certificate,
    server_context,
)
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.pinning import client_context
from roundelay.deployment.trust.roster import Roster, Token
from roundelay.messages import Task

NAMES = ["127.0.0.1", "localhost"]
OPEN, HERE, TOKEN, SIGNED = "open", "here", "token", "signed"
RULES = {
    ("GET", "/authority.crt"): OPEN,
    ("GET", p.HELLO): OPEN,
    ("GET", p.HEALTH): OPEN,
    ("GET", p.READY): OPEN,
    ("GET", p.STATS): HERE,
    ("GET", p.OPENAPI): OPEN,
    ("POST", p.JOIN): TOKEN,
    ("GET", p.RUN): SIGNED,
    ("POST", p.WORK): SIGNED,
    ("GET", p.BLOBS + "/{digest}"): SIGNED,
    ("POST", p.BEAT): SIGNED,
    ("POST", p.UPDATES + "/{task}"): SIGNED,
    ("PUT", p.UPDATES + "/{task}"): SIGNED,
    ("POST", p.FAILURES + "/{task}"): SIGNED,
    ("POST", p.DATA): SIGNED,
    ("POST", p.SCALARS): SIGNED,
}
"""What each route asks for. On the server's own machine, ``HERE``, are all identities; others ask in
test_strangers_learn_nothing_of_clients_and_rounds. Metrics, which are not served here:
test_metrics_are_on_an_address_of_their_own.
"""

NOT_HEARD = 0
STATUS = {OPEN: 200, HERE: 200, TOKEN: 403, SIGNED: 401}
"""What whoever is not welcome is told."""

OWN_TASK = 10
"""A second task of client "a", which it cannot do."""

TLS = ssl.SSLContext
Context = Callable[["Scene"], TLS | None]


@dataclass
class Scene:
    """A server that speaks TLS, what its clients trust, and keys of ``strangers`` to it."""

    here: Place
    folder: Path
    pem: bytes
    strangers: Authority = field(default_factory=lambda: Authority.new(time.time()))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.here.port}"

    def trusting(self) -> TLS:
        return client_context(self.pem)

    def showing(self, certificate: Path) -> TLS:
        """What trusts the server, and proves itself with a certificate."""
        context = self.trusting()
        context.load_cert_chain(certificate)
        return context

    def device(self, client: str = "a", key: DeviceKey | None = None, tls: TLS | None = None, **how: float) -> Device:
        return Device(self.url, client, key or self.here.keys.get(client), tls=tls or self.trusting(), **how)


def anybody(scene: Scene, tls: TLS | None = None) -> Device:
    return Unsigned(scene.url, tls=tls or scene.trusting())


def of_strangers(scene: Scene) -> Path:
    """A certificate of another authority."""
    path = scene.folder / "stranger.key"
    path.write_bytes(scene.strangers.issue(["a"], time.time()))
    return path


IDENTITIES: Mapping[str, Callable[[Scene], Device]] = {
    "none": anybody,
    "wrong authority": lambda scene: anybody(scene, scene.showing(of_strangers(scene))),
    "expired": lambda scene: scene.device(late_s=8 * DAY_S),
    "future": lambda scene: scene.device(late_s=-8 * DAY_S),
    "revoked": lambda scene: scene.device("r"),
    "wrong role": lambda scene: anybody(scene, scene.showing(scene.folder / SERVER_SECRET)),
    "not enrolled": lambda scene: scene.device("x", DeviceKey.new()),
    "another's id": lambda scene: scene.device("a", scene.here.keys["b"]),
    "good": lambda scene: scene.device(),
}
"""Those that are heard. A device's certificate is its key; what is in a TLS certificate gives it no rights."""

UNHEARD: Mapping[str, Context] = {
    "wrong authority": lambda scene: client_context(scene.strangers.pem),
    "plaintext": lambda scene: None,
    "old TLS": lambda scene: only_tls_1_1(scene.trusting()),
}


def token_of(identity: str, scene: Scene) -> tuple[str, str]:
    """Return a token that an identity would come in with, and the name that it would have."""
    roster, now_s = scene.here.roster, time.time()
    if identity == "good":
        return roster.invite("f", DAY_S, now_s).reveal(), "f"
    if identity == "none":
        return "", "f"
    if identity == "expired":
        return roster.invite("h", DAY_S, now_s - 2 * DAY_S).reveal(), "h"
    if identity == "revoked":
        token = roster.invite("i", DAY_S, now_s).reveal()
        roster.revoke("i")
        return token, "i"
    if identity == "another's id":
        return roster.invite("j", DAY_S, now_s).reveal(), "a"
    if identity == "wrong role":
        return Authority.open(scene.folder, now_s).pin, "f"
    return Token.new().reveal(), "f"


def request_of(scene: Scene, identity: str, method: str, path: str) -> Asked:
    """A request that would be good if it came from client "a"; for joining, one with this identity's token."""
    if RULES[method, path] in (OPEN, HERE):
        return method, path, b"", 0, []
    if RULES[method, path] == TOKEN:
        token, name = token_of(identity, scene)
        return method, path, joining(token, DeviceKey.new(), name).model_dump_json().encode(), 0, []
    (name,) = (route.name for route in ROUTES if (route.method, plain(route.path)) == (method, path))
    return asked(name, OWN_TASK if name == "failure" else 1)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    folder.mkdir(exist_ok=True)
    context = server_context(folder, NAMES, time.time())
    with place(members="abcr", tls=context) as here:
        ready(here)
        here.journal.tasks.open([Task(OWN_TASK, "a", 1)], here.journal.tasks.all()[0].sent)
        here.roster.revoke("r")
        yield Scene(here, folder, (folder / AUTHORITY_PUBLIC).read_bytes())


def check(folder: Path) -> int:
    """The contract; return how many requests it made."""
    count = 0

    async def heard(it: Scene, identity: str) -> int:
        num_asked = 0
        async with IDENTITIES[identity](it) as device:
            for (method, path), rule in RULES.items():
                kind, url, body, round_, fields = request_of(it, identity, method, path)
                before = state(it.here)
                said = await device.ask(kind, url, body, round=round_, fields=fields)
                expected = 200 if identity == "good" else STATUS[rule]
                assert said.status == expected, f"{identity} at {method} {path}: {said.status} {said.body[:200]!r}"
                if identity != "good":
                    assert state(it.here) == before, f"{identity} at {method} {path} has changed something"
                num_asked += 1
        return num_asked

    with scene(folder) as it:
        found = listed(it.here.front.app)
        assert found == set(RULES), f"routes without a rule, or rules without a route: {found ^ set(RULES)}"
        for identity in UNHEARD:
            count += unheard(it, identity)
        for identity in IDENTITIES:  # the good one last: what it does changes what is there
            count += within(heard(it, identity))
    return count


def unheard(it: Scene, identity: str) -> int:
    """Have a client with the right key ask for everything, over what is no TLS, not the server's, or too old."""
    device, before, requests = it.device(), state(it.here), it.here.front.meters.requests
    for method, path in RULES:
        kind, url, body, round_, more = request_of(it, "none", method, path)
        fields = [*device.fields(kind, url, body, round=round_), *more]
        lines = [f"{kind} {url} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}",
                 *(f"{name}: {value}" for name, value in fields)]  # fmt: skip
        said = wired(it, UNHEARD[identity](it), "\r\n".join([*lines, "", ""]).encode() + body)
        assert b"HTTP" not in said, f"{identity} at {method} {path} was answered"
    assert it.here.front.meters.requests == requests, f"{identity} was heard"
    assert state(it.here) == before
    return len(RULES)


def wired(it: Scene, context: TLS | None, said: bytes) -> bytes:
    """Return what is answered to these bytes, nothing where no connection comes about."""
    with socket.create_connection(("127.0.0.1", it.here.port), 10) as plain:
        try:
            if context is None:
                plain.sendall(said)
                return plain.recv(65_536)
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
                sock.sendall(said)
                return sock.recv(65_536)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_eleven_identities_at_every_route(tmp_path: Path, figures: Figures) -> None:
    identities = {*IDENTITIES, *UNHEARD}
    assert len(identities) == 11
    figures("identities", len(identities))
    figures("routes", len(RULES))
    figures("requests", check(tmp_path))


def test_what_is_no_route_is_not_found_by_whatever_method(tmp_path: Path) -> None:
    async def go() -> None:
        async with it.device() as device:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                for path in (
                    "/",
                    "/v1",
                    "/v1/admin",
                    "/metrics",
                    "/v1/hello/",
                    "//v1/hello",
                    "/V1/HELLO",
                    "/..%2fv1/run",
                ):
                    assert (await device.ask(method, path)).status in (400, 404), (method, path)
                for path in {path for _, path in RULES if "{" not in path}:
                    if (method, path) not in RULES:
                        assert (await device.ask(method, path)).status == 405, (method, path)

    with scene(tmp_path) as it:
        within(go())


def asked_from(folder: Path, peer: str) -> dict[str, Said]:
    """Return what each route that is not signed says to whoever asks from an address, of a run that waits for "a"."""
    with closing(Inline()) as loop, closing(Office(folder, loop, time.time(), peer)) as office:
        office.board.saw("a")
        office.board.turn(Phase.PAUSED, "client 'a' is missing")
        paths = [path for (method, path), rule in RULES.items() if method == "GET" and rule in (OPEN, HERE)]
        return {path: office.hear(written("GET", path, [("X-Forwarded-For", "127.0.0.1")], b"")) for path in paths}


def check_strangers(folder: Path) -> None:
    """The contract: who takes part, and how far the model is, is told on the server's own machine and nowhere else."""
    for peer in ("192.0.2.7", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.7"):
        told = asked_from(folder, peer)
        assert told[p.STATS].status == 404
        for path, said in told.items():
            assert not re.search(rb"'a'|\"a\":|rounds|silent", said.body) or path == p.OPENAPI, (
                f"{path} to {peer}: {said.body!r}"
            )
        assert told[p.READY].json() == {"ready": True, "phase": "paused", "reason": "", "disk": True}
    for peer in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "192.0.2.1"):
        told = asked_from(folder, peer)
        assert told[p.STATS].json()["silent_s"].keys() == {"a"}
        assert told[p.READY].json()["reason"] == "client 'a' is missing"


def test_strangers_learn_nothing_of_clients_and_rounds(tmp_path: Path) -> None:
    check_strangers(tmp_path)


def everybody_is_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lobby, "_is_here", lambda request: True)


def whoever_says_so_is_here(patch: pytest.MonkeyPatch) -> None:
    here = lobby._is_here
    patch.setattr(lobby, "_is_here", lambda request: here(request) or "X-Forwarded-For" in request.headers)


def reasons_for_everybody(patch: pytest.MonkeyPatch) -> None:
    ready = lobby.Lobby.ready

    async def planted(self: lobby.Lobby, request: web.Request) -> web.Response:
        told = json.loads((await ready(self, request)).body)
        return web.json_response(told | {"reason": self.board.reason})

    patch.setattr(lobby.Lobby, "ready", planted)


@pytest.mark.parametrize("plant", [everybody_is_here, whoever_says_so_is_here, reasons_for_everybody])
def test_the_check_of_strangers_catches(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_strangers(tmp_path)


def test_over_a_connection_that_leads_to_a_worker_nobody_is_here() -> None:
    with place() as here, socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        with theirs:
            here.server.adopt(ours, "a")
            theirs.settimeout(10)
            theirs.sendall(f"GET {p.STATS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert b" 404 " in theirs.recv(1_000).partition(b"\r\n")[0]


def test_metrics_are_on_an_address_of_their_own(tmp_path: Path) -> None:
    """Whoever reaches it may read: so it is this machine's alone unless somebody says otherwise, and takes nothing."""
    metrics = pytest.importorskip("roundelay.deployment.front.metrics")
    with scene(tmp_path) as it:
        told = metrics.Server(it.here.front.meters, it.here.board, it.here.roster, Durations(SYNC_BOUNDS_S),
                              rounds=lambda: (0, 1), num_clients=1, num_connections=lambda: 0)  # fmt: skip
        assert listed(metrics.metrics_app(told)) == {("GET", "/metrics"), ("HEAD", "/metrics")}


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def any_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(signing, "CLOCK_SKEW_S", 1e9)


def keys_that_are_remembered(patch: pytest.MonkeyPatch) -> None:
    known: dict[str, bytes] = {}
    admit = Roster.admit

    def kept(self: Roster, client: str, key: bytes) -> None:
        known[client] = key
        admit(self, client, key)

    patch.setattr(Roster, "admit", kept)
    patch.setattr(Roster, "public_key", lambda self, client: known[client])


def tokens_for_ever(patch: pytest.MonkeyPatch) -> None:
    enrol = Roster.enrol
    patch.setattr(Roster, "enrol", lambda self, token, key, now_s, *rest: enrol(self, token, key, 0.0, *rest))


def tokens_for_anybody(patch: pytest.MonkeyPatch) -> None:
    enrol = Roster.enrol
    patch.setattr(Roster, "enrol", lambda self, token, key, now_s, client, taken: enrol(self, token, key, now_s))


def old_tls(patch: pytest.MonkeyPatch) -> None:
    def loose(folder: Path, names: list[str], now_s: float) -> TLS:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.load_cert_chain(server_certificate(folder, names, now_s))
        return context

    patch.setitem(globals(), "server_context", loose)


def an_open_desk(patch: pytest.MonkeyPatch) -> None:
    """A route that is served without looking who asks, as those of the lobby are."""
    signed = Front._signed

    async def planted(self: Front, route: object, handle: object, request: web.Request) -> web.StreamResponse:
        if request.path == p.RUN:
            return web.json_response(json.loads(self._desk.briefing("a").model_dump_json()))
        return await signed(self, route, handle, request)  # type: ignore[arg-type]

    patch.setattr(Front, "_signed", planted)


NEEDS_TLS_1_1 = pytest.mark.skipif(not ssl.HAS_TLSv1_1, reason="this OpenSSL cannot speak it at all")
PLANTS = [
    pytest.param(a_new_route, "without a rule.*/v1/secrets"),
    pytest.param(no_signatures, "expired at GET /v1/run"),
    pytest.param(any_clock, "(expired|future) at GET /v1/run"),
    pytest.param(keys_that_are_remembered, "revoked at GET /v1/run"),
    pytest.param(tokens_for_ever, "expired at POST /v1/join"),
    pytest.param(tokens_for_anybody, "another's id at POST /v1/join"),
    pytest.param(old_tls, "old TLS at GET .* was answered", marks=NEEDS_TLS_1_1),
    pytest.param(an_open_desk, "none at GET /v1/run"),
]


@pytest.mark.parametrize(("plant", "found"), PLANTS)
def test_the_table_catches(
    plant: Callable[[pytest.MonkeyPatch], None], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        check(tmp_path)

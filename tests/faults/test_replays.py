"""Requests that were captured, or held back and changed, are of no use to whoever has them, also after a restart.

What signatures cover is tested byte by byte in test_forgeries.py. Here they go over the wire, to a server that has a
journal.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from asked import asked, ready, state
from figures import Figures
from fronts import DAY_S, Device, Place, Said, place, within
from journals import quick_folder

from roundelay.deployment import protocol as p
from roundelay.deployment.front import admission, front
from roundelay.deployment.front.routes import ROUTES
from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.records import Verdict
from roundelay.deployment.trust import signing
from roundelay.deployment.trust.identity import DeviceKey

ROUTES_SIGNED = [route.name for route in ROUTES if route.signed]
Fields = list[tuple[str, str]]


@dataclass(frozen=True)
class Sent:
    """A request of client "a" as it lies on the wire."""

    route: str
    method: str
    path: str
    body: bytes
    fields: Fields

    def field(self, name: str) -> str:
        return dict(self.fields)[name]

    def with_field(self, name: str, value: str) -> "Sent":
        return replace(self, fields=[(own, value if own == name else was) for own, was in self.fields])


PATHS = {
    "GET": ("/v1/run", "/v1/blobs/" + "0" * 64),
    "POST": ("/v1/work", "/v1/beat", "/v1/data", "/v1/scalars", "/v1/updates/2", "/v1/failures/1", "/v1/failures/2"),
    "PUT": ("/v1/updates/2", "/v1/updates/3", "/v1/updates/01"),
}
SETTLED = p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=True)

Swap = Callable[[random.Random, Sent, Sent], Sent]
"""Makes of a request that was held back, and of another one, what is sent in its place."""


def other_body(draw: random.Random, held: Sent, other: Sent) -> Sent:
    if held.body and draw.random() < 0.5:
        at = draw.randrange(len(held.body))
        return replace(held, body=held.body[:at] + bytes([held.body[at] ^ 1]) + held.body[at + 1 :])
    return replace(held, body=other.body if other.body != held.body else held.body + b" ")


def other_path(draw: random.Random, held: Sent, other: Sent) -> Sent:
    path, _, query = held.path.partition("?")
    elsewhere = draw.choice([one for one in PATHS[held.method] if one != path])
    return replace(held, path=f"{elsewhere}?{query}" if query else elsewhere)


def other_query(draw: random.Random, held: Sent, other: Sent) -> Sent:
    path, _, query = held.path.partition("?")
    if query:
        return replace(held, path=f"{path}?{re.sub('offset=0', 'offset=1', query)}")
    return replace(held, path=f"{path}?{draw.choice(('x=1', 'round=2', '%00', '&'))}")


def other_signature(draw: random.Random, held: Sent, other: Sent) -> Sent:
    return held.with_field(signing.SIGNATURE, other.field(signing.SIGNATURE))


def other_input(draw: random.Random, held: Sent, other: Sent) -> Sent:
    shifted = int(re.findall(r"created=(\d+)", held.field(signing.INPUT))[0]) + draw.choice((-1, 1, 86_400))
    return held.with_field(signing.INPUT, re.sub(r"created=\d+", f"created={shifted}", held.field(signing.INPUT)))


def other_number(draw: random.Random, held: Sent, other: Sent) -> Sent:
    return held.with_field(signing.SEQUENCE, str(int(held.field(signing.SEQUENCE)) + draw.randrange(1, 10**6)))


def other_round(draw: random.Random, held: Sent, other: Sent) -> Sent:
    return held.with_field(signing.ROUND, str(int(held.field(signing.ROUND)) + 1))


def other_run(draw: random.Random, held: Sent, other: Sent) -> Sent:
    return held.with_field(signing.RUN, "another")


def other_client(draw: random.Random, held: Sent, other: Sent) -> Sent:
    return held.with_field(signing.INPUT, held.field(signing.INPUT).replace('keyid="a"', 'keyid="b"'))


def other_digest(draw: random.Random, held: Sent, other: Sent) -> Sent:
    """Another body, with the digest that fits it."""
    body = other.body if other.body != held.body else b"{}"
    digest = f"sha-256=:{signing.base64.b64encode(signing.hashlib.sha256(body).digest()).decode()}:"
    return replace(held, body=body).with_field(signing.DIGEST, digest)


SWAPS: dict[str, Swap] = {swap.__name__: swap for swap in (
    other_body, other_path, other_query, other_signature, other_input, other_number, other_round, other_run,
    other_client, other_digest,
)}  # fmt: skip
KINDS = ("replayed", "too old", "too new", *SWAPS)


def signed(device: Device, route: str) -> Sent:
    method, path, body, round_, more = asked(route)
    return Sent(route, method, path, body, [*device.fields(method, path, body, round=round_), *more])


def made(draw: random.Random, kind: str, here: Place, device: Device, captured: list[Sent]) -> Sent:
    """Return something that was captured as it was, or something new that is not what its signature says."""
    if kind == "replayed":
        return draw.choice(captured)
    route = draw.choice(ROUTES_SIGNED)
    if kind in ("too old", "too new"):
        off = Device(
            here.url, "a", here.keys["a"], late_s=(1 if kind == "too old" else -1) * draw.uniform(8, 800) * DAY_S
        )
        return signed(off, route)
    return SWAPS[kind](
        draw, signed(device, route), signed(device, draw.choice([r for r in ROUTES_SIGNED if r != route]))
    )


def is_refused(kind: str, sent: Sent, said: Said) -> bool:
    """A part with another body may be of another length, which is seen before its digest is; and of an answer that
    is settled no body is read: what became of it is told again.
    """
    if kind == "other_body" and sent.route == "part":
        return said.error in ("signature", "message") or said.receipt().settled == SETTLED
    return said.error == "signature"


def check(num: int, seed: int) -> Counter[str]:
    """The contract: all of them are refused and change nothing, whatever the server was told before, and the client
    goes on as if nothing had been; return how many there were of each kind.
    """
    draw, counts, captured = random.Random(seed), Counter[str](), list[Sent]()

    async def capture(here: Place) -> None:
        async with Device.of(here) as device:
            for route in [*ROUTES_SIGNED, "work", "beat", "data"]:
                sent = signed(device, route)
                said = await device.send(sent.method, sent.path, sent.body, sent.fields)
                if route != "failure":  # of a task that is answered
                    assert said.status == 200 or (route == "work" and said.status == 204), (route, said.body)
                captured.append(sent)

    async def attack(here: Place, num: int) -> None:
        async with Device.of(here) as device:
            before = state(here)
            for at in range(num):
                kind = KINDS[at % len(KINDS)]
                sent = made(draw, kind, here, device, captured)
                said = await device.send(sent.method, sent.path, sent.body, sent.fields)
                assert is_refused(kind, sent, said), f"{kind} {sent.method} {sent.path}: {said.status} {said.body!r}"
                assert state(here) == before, f"{kind} {sent.method} {sent.path} has changed something"
                counts[kind] += 1
            assert (await device.ask("GET", "/v1/run")).status == 200, "the client itself is shut out"

    keys = {name: DeviceKey.new() for name in "abc"}
    with quick_folder() as folder:
        for life in range(4):
            with place(root=Path(folder), keys=keys) as here:
                if not life:
                    ready(here)
                    within(capture(here))
                within(attack(here, num // 4 + (num % 4 if life == 3 else 0)), 600)
    assert sum(counts.values()) == num
    return counts


def test_what_was_captured_or_changed_is_refused_also_after_restarts(figures: Figures) -> None:
    counts = check(200, seed=0)
    assert set(counts) == set(KINDS)
    figures("replays and swaps refused", sum(counts.values()))
    figures("restarts", 3)


@pytest.mark.chaos
def test_two_thousand_replays_and_swaps_are_refused(figures: Figures, chaos_seed: int) -> None:
    counts = check(2_000, chaos_seed)
    for kind in KINDS:
        figures(kind, counts[kind])
    figures("replays and swaps refused", sum(counts.values()))


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def numbers_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Clients, "advance", lambda _, requests: [True] * len(requests))


def numbers_kept_in_memory(patch: pytest.MonkeyPatch) -> None:
    """They are right until the server starts anew."""

    def planted(self: Clients, requests: list[tuple[str, str, int]]) -> list[bool]:
        known = self.__dict__.setdefault("known", {})
        counted = []
        for client, key, number in requests:
            counted.append(number > known.get((client, key), -1))
            known[client, key] = max(number, known.get((client, key), -1))
        return counted

    patch.setattr(Clients, "advance", planted)


def bodies_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(front, "check_body", lambda claim, digest: None)


def query_not_signed(patch: pytest.MonkeyPatch) -> None:
    base = signing._base
    patch.setattr(signing, "_base", lambda request, *rest: base(replace(request, query=""), *rest))


def path_not_signed(patch: pytest.MonkeyPatch) -> None:
    base = signing._base
    patch.setattr(signing, "_base", lambda request, *rest: base(replace(request, path="/"), *rest))


def rounds_not_compared(patch: pytest.MonkeyPatch) -> None:
    base = signing._base
    patch.setattr(signing, "_base", lambda request, *rest: base(replace(request, round=0), *rest))
    patch.setattr(front, "_check_round", lambda *_: None)


def any_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(signing, "CLOCK_SKEW_S", 1e12)


def any_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(signing, "_check_signature", lambda *_: None)
    assert admission.verify is signing.verify


PLANTS = [
    (numbers_forgotten, "replayed"), (numbers_kept_in_memory, "replayed"), (bodies_not_compared, "other_body"),
    (query_not_signed, "other_query"), (path_not_signed, "other_path"), (rounds_not_compared, "other_round"),
    (any_clock, "too (old|new)"), (any_key, "other_"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "found"), PLANTS, ids=lambda one: getattr(one, "__name__", ""))
def test_the_check_of_replays_catches(
    plant: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        check(200, seed=0)

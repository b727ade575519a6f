"""Every route is signed, or on the short list of those that are open; and a signed one serves its own client only.

Each kind of stranger goes to each route: it gets 401, and nothing has changed.
"""

from collections.abc import Callable

import pytest
from asked import ANSWER, Unsigned, a_new_route, asked, listed, no_signatures, plain, ready, state
from fronts import Device, Place, place, within
from journals import sha256

from roundelay.deployment import protocol as p
from roundelay.deployment.front.routes import ROUTES, openapi
from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.records import TaskState, Verdict
from roundelay.deployment.journal.tasks import Tasks
from roundelay.deployment.trust.identity import DeviceKey

OPEN = {"/authority.crt", p.HELLO, p.JOIN, p.HEALTH, p.READY, p.STATS, p.OPENAPI}
SIGNED = [route.name for route in ROUTES if route.signed]


def test_every_route_is_signed_or_on_the_list_of_open_ones() -> None:
    assert {route.path for route in ROUTES if not route.signed} == OPEN
    with place() as here:
        assert listed(here.front.app) == {(route.method, plain(route.path)) for route in ROUTES}


def unsigned(here: Place) -> Device:
    return Unsigned(here.url, "a", here.keys["a"])


def not_enrolled(here: Place) -> Device:
    return Device(here.url, "x")


def revoked(here: Place) -> Device:
    here.roster.revoke("a")
    return Device.of(here, "a")


def with_anothers_key(here: Place) -> Device:
    return Device(here.url, "a", here.keys["b"])


def with_a_key_of_its_own(here: Place) -> Device:
    return Device(here.url, "a", DeviceKey.new())


def of_another_path(here: Place) -> Device:
    class Elsewhere(Device):
        def fields(self, method: str, path: str, *args: object, **kwargs: object) -> list[tuple[str, str]]:
            return super().fields(method, "/v1/other", *args, **kwargs)  # type: ignore[arg-type]

    return Elsewhere(here.url, "a", here.keys["a"])


def of_another_body(here: Place) -> Device:
    class Other(Device):
        def fields(self, method: str, path: str, body: bytes = b"", **kwargs: object) -> list[tuple[str, str]]:
            return super().fields(method, path, body + b" ", **kwargs)  # type: ignore[arg-type]

    return Other(here.url, "a", here.keys["a"])


STRANGERS = [
    unsigned, not_enrolled, revoked, with_anothers_key, with_a_key_of_its_own, of_another_path, of_another_body,
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("route", SIGNED)
def test_a_stranger_is_turned_away(route: str, stranger: Callable[[Place], Device]) -> None:
    async def go() -> None:
        method, path, body, round_, fields = asked(route)
        async with stranger(here) as device:
            if stranger is revoked:  # whose task is lost at once
                await device.ask(method, path, body, round=round_, fields=fields)
            before = state(here)
            said = await device.ask(method, path, body, round=round_, fields=fields)
            assert (said.status, said.error) == (401, "signature")
            assert state(here) == before
            if stranger is unsigned:
                assert "has this device joined?" in said.json()["message"]

    with place() as here:
        ready(here)
        within(go())


@pytest.mark.parametrize("route", SIGNED)
def test_the_client_itself_is_served_once_and_only_for_the_round_that_is_meant(route: str) -> None:
    async def go() -> None:
        method, path, body, round_, fields = asked(route)
        async with Device.of(here) as device:
            wrong = await device.ask(method, path, body, round=round_ + 1, fields=fields)
            assert (wrong.status, wrong.error) == (401, "signature")
            signed = [*device.fields(method, path, body, round=round_), *fields]
            assert (await device.send(method, path, body, signed)).status == 200
            before = state(here)
            again = await device.send(method, path, body, signed)
            assert (again.status, again.error) == (401, "signature")
            assert "sign it anew" in again.json()["message"]
            assert state(here) == before

    with place() as here:
        ready(here)
        within(go())


@pytest.mark.parametrize("route", SIGNED)
def test_a_signature_for_another_run_says_so(route: str) -> None:
    async def go() -> None:
        method, path, body, round_, fields = asked(route)
        async with Device(here.url, "a", here.keys["a"], run="other") as device:
            said = await device.ask(method, path, body, round=round_, fields=fields)
            assert (said.status, said.error) == (409, "another_run")

    with place() as here:
        ready(here)
        within(go())


def test_what_is_anothers_is_not_there() -> None:
    async def go() -> None:
        secret = here.open_round(2, "b", first=20, model=b"for b alone")
        async with Device.of(here) as device:
            for digest in (secret, sha256(b"nowhere")):
                said = await device.ask("GET", f"{p.BLOBS}/{digest}")
                assert (said.status, said.error) == (404, "not_found")
            for task in (2, 20, 99):  # b's own, b's own, nobody's: the same is said
                receipt = (await device.announce(task, ANSWER)).receipt()
                assert receipt.settled == p.Settled(verdict=Verdict.UNKNOWN, number=0, duplicate=False)
                receipt = (await device.part(task, ANSWER, 0, len(ANSWER))).receipt()
                assert receipt.settled is not None
                assert receipt.settled.verdict is Verdict.UNKNOWN
                said = await device.ask("POST", f"{p.FAILURES}/{task}", p.Failure(reason="no"), round=1)
                assert (said.status, said.error) == (404, "not_found")
                beaten = await device.ask("POST", p.BEAT, p.Beat(doing=[1, task]))
                assert p.Beaten.model_validate_json(beaten.body).over == [task]
            assert all(kept.state is TaskState.OPEN for kept in here.journal.tasks.all())

    with place() as here:
        here.open_round()
        within(go())


def test_what_is_described_is_what_is_served() -> None:
    told = openapi("1")
    operations = {(method, path) for path, methods in told["paths"].items() for method in methods}
    assert len(operations) == len(ROUTES)
    assert ("put", "/v1/updates/{task}") in operations
    schemas = told["components"]["schemas"]
    for route in ROUTES:
        for message in (route.takes, route.gives):
            assert message is None or message.__name__ in schemas
        assert bool(told["paths"][plain(route.path)][route.method.lower()]["security"]) is route.signed
    assert set(p.ERRORS) <= set(told["paths"][p.HELLO]["get"]["responses"]["default"]["description"]
                                .replace(",", "").split())  # fmt: skip


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def test_the_table_catches_a_front_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    no_signatures(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_stranger_is_turned_away("failure", with_a_key_of_its_own)


def test_the_table_catches_a_front_that_forgets_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clients, "advance", lambda _, requests: [True] * len(requests))
    with pytest.raises(AssertionError):
        test_the_client_itself_is_served_once_and_only_for_the_round_that_is_meant("scalars")


def test_the_table_catches_a_route_that_is_on_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    a_new_route(monkeypatch)
    with pytest.raises(AssertionError):
        test_every_route_is_signed_or_on_the_list_of_open_ones()


def test_the_table_catches_a_blob_that_is_given_to_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tasks, "open_of", lambda self, _: self.all(TaskState.OPEN))
    with pytest.raises(AssertionError):
        test_what_is_anothers_is_not_there()

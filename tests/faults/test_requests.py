"""Requests that a generator makes of the server's own description: whatever comes, what is answered is described.

Some are good by the description and some break it, and each goes unsigned or signed, so that the handlers behind the
signature are reached as well. No answer is a 5xx that is not described, and no answer says ``internal``.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import jsonschema_rs
import pytest
import schemathesis
from figures import Figures
from fronts import Device, Place, Said, place, within
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from journals import sha256
from schemathesis.generation import GenerationMode

from roundelay.deployment import protocol as p
from roundelay.deployment.front import problems, routes
from roundelay.deployment.front.desk import Desk
from roundelay.deployment.front.routes import ROUTES

ROUTE_OF = {route.name: route for route in ROUTES}
VARIED = 10
"""So many routes take something that can be varied; of each other there is one request."""

SHORT, LONG = 240, 5_000
SIGNABLE = 4_000
"""A client signs no longer paths, so that they come unsigned only."""

NUM_TASKS = 400
"""Client "a" has task n of round n; client "b" one that stays open, so that no poll waits."""

ANSWER = b"an answer of a client. " * 10
Described = Mapping[str, Any]  # Any: JSON's types nest
Made = tuple[str, str, str, bytes, list[tuple[str, str]]]
"""A request: the route's name, its method, its path with its query, the body, and fields."""


def made(described: Described, count: int, number: int) -> list[Made]:
    """Return about so many requests, half of them good by the description, the others not."""
    schema = schemathesis.openapi.from_dict(dict(described))
    each = -(-count // (2 * VARIED))
    return [
        request
        for at, found in enumerate(schema.get_all_operations())
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for request in _cases(found.ok(), mode, each, number + at)
    ]


def _cases(operation: Any, mode: GenerationMode, count: int, number: int) -> list[Made]:
    cases: list[Made] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(operation.as_strategy(generation_mode=mode))
    def gather(case: Any) -> None:
        cases.append(_made(case))

    try:
        gather()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # what takes nothing cannot be broken
    return cases[:count]


def _made(case: Any) -> Made:
    told = case.as_transport_kwargs(base_url="http://x")
    query = urlencode(told.get("params") or {}, doseq=True)
    path = quote(told["url"].removeprefix("http://x"), safe="/%:._-~") + (f"?{query}" if query else "")
    body = json.dumps(told["json"]) if "json" in told else told.get("data") or b""
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    ranges = str(told["headers"].get("Content-Range", ""))
    fields = [("Content-Range", ranges)] if ranges.isascii() and ranges.isprintable() and ranges else []
    return case.operation.definition.raw["operationId"], told["method"], path, raw, fields


def meant(request: Made, draw: random.Random, digest: str) -> tuple[Made, int]:
    """Return the request about something that the client has, half of the time, and the round that it is about."""
    name, method, path, body, fields = request
    task = 0
    if ROUTE_OF[name].round == "task" and draw.random() < 0.5:
        task = draw.randint(1, NUM_TASKS)
        base, question, query = path.partition("?")
        path = f"{base.rpartition('/')[0]}/{task}{question}{query}"
        if name == "part" and draw.random() < 0.5:
            body = ANSWER
            path = f"{p.UPDATES}/{task}?digest={sha256(ANSWER)}&offset=0&size={len(ANSWER)}"
            fields = [("Content-Range", f"bytes 0-{len(ANSWER) - 1}/{len(ANSWER)}")]
    elif name == "blob" and draw.random() < 0.5:
        path = f"{p.BLOBS}/{digest}"
    elif name == "scalars":
        try:
            task = max(0, min(int(json.loads(body)["round"]), 10**15 - 1))
        except (ValueError, TypeError, KeyError, OverflowError):
            task = 0
    return (name, method, path, body, fields), task


def wrong(name: str, said: Said, described: Described) -> str:
    """Say what an answer has that the description has not; "" where it is as described."""
    route = ROUTE_OF[name]
    if said.status in (200, 204) or (name == "ready" and said.status == 503):
        expected = route.gives
        if said.status == 204:
            return "" if name == "work" and not said.body else "nothing came"
        if expected is None:
            return ""
        head = said.body.split(b"\n", 1)[0] if name == "work" else said.body  # a model may follow
        return _broken(expected.__name__, head, described)
    if broken := _broken("Problem", said.body, described):
        return f"{said.status}: {broken}"
    if said.error not in p.ERRORS or (said.status != problems.STATUS[said.error] and said.status != 405):
        return f"status {said.status} with error {said.error!r}"
    if said.status >= 500:
        return f"status {said.status}: {said.body[:200]!r}"
    return ""


def _broken(kind: str, body: bytes, described: Described) -> str:
    schema = {"$ref": f"#/components/schemas/{kind}", "components": described["components"]}
    try:
        jsonschema_rs.validator_for(schema).validate(json.loads(body))
    except ValueError as error:  # ValidationError is one
        return f"not a {kind}: {str(error)[:200]}; {body[:200]!r}"
    return ""


def asked(count: int, number: int) -> tuple[Counter[str], Counter[int], list[str]]:
    """Make half as many requests as are meant, send each unsigned and signed; return how many went to which route, how
    many came to which status, and what was wrong.
    """
    draw = random.Random(number)
    sent, came, faults = Counter[str](), Counter[int](), list[str]()

    async def go(here: Place) -> None:
        async with Device.of(here) as one, Device.of(here, "b") as other:
            described = (await one.send("GET", p.OPENAPI)).json()
            for request in made(described, -(-count // 2), number):
                (name, method, path, body, fields), round_ = meant(request, draw, digest)
                device = other if name in ("work", "blob") else one
                answers = [await device.send(method, path, body, fields)]
                if len(path) < SIGNABLE:
                    answers.append(await device.ask(method, path, body, round=round_, fields=fields))
                for said in answers:
                    sent[name] += 1
                    came[said.status] += 1
                    if found := wrong(name, said, described):
                        faults.append(f"{method} {path[:80]} {body[:80]!r}: {found}")

    with place() as here:
        for n in range(1, NUM_TASKS + 1):
            here.open_round(n, "a", first=n)
        digest = here.open_round(NUM_TASKS + 1, "b", first=NUM_TASKS + 1)
        within(go(here), timeout_s=280.0)
    return sent, came, faults


def check(count: int, number: int, figures: Figures) -> None:
    sent, came, faults = asked(count, number)
    figures("requests", sent.total())
    figures("answers by status", ", ".join(f"{status}: {came[status]:,}" for status in sorted(came)))
    figures("answers that are not described", len(faults))
    assert not faults, f"{len(faults)}: {faults[:5]}"
    assert set(sent) == set(ROUTE_OF)
    assert sent.total() >= 0.99 * count
    assert came[200] > sent.total() // 20, "hardly any request was good"


def test_every_answer_is_as_described(figures: Figures) -> None:
    check(SHORT, 0, figures)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_every_answer_is_as_described_at_length(figures: Figures, chaos_seed: int) -> None:
    check(LONG, chaos_seed, figures)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def handler_that_raises(patch: pytest.MonkeyPatch) -> None:
    async def planted(self: Desk, call: object, beat: p.Beat) -> p.Beaten:
        return p.Beaten(over=[max(beat.doing)])

    patch.setattr(Desk, "beat", planted)


def description_of_something_else(patch: pytest.MonkeyPatch) -> None:
    told = routes.openapi

    def planted(version: str) -> Mapping[str, Any]:
        described = json.loads(json.dumps(told(version)))
        described["components"]["schemas"]["Noted"]["required"] = ["when"]
        return described  # type: ignore[no-any-return]

    patch.setattr("roundelay.deployment.front.lobby.openapi", planted)


def faults_of_the_parser_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(problems, "_faults", lambda error: error.nothing)


@pytest.mark.parametrize("plant", [handler_that_raises, description_of_something_else, faults_of_the_parser_told])
def test_the_requests_catch(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert asked(120, 0)[2]

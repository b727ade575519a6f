"""The routes of a server in one table, and what OpenAPI says of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from roundelay.deployment import protocol as p
from roundelay.deployment.trust.pinning import AUTHORITY_PATH
from roundelay.deployment.trust.signing import FIELDS


@dataclass(frozen=True, slots=True)
class Route:
    """``takes`` and ``gives`` are messages in JSON; None: no body, or bytes where ``raw`` says so. ``round`` tells
    which round the signature is about.
    """

    name: str
    method: str
    path: str
    meaning: str
    takes: type[p.Message] | None = None
    gives: type[p.Message] | None = None
    raw: Literal["", "takes", "gives"] = ""
    signed: bool = True
    round: Literal["none", "task", "body"] = "none"
    query: tuple[str, ...] = ()


ROUTES = (
    Route("authority", "GET", AUTHORITY_PATH, "The certificate of the server's authority.", raw="gives", signed=False),
    Route("hello", "GET", p.HELLO, "Which run, which protocol.", gives=p.Hello, signed=False),
    Route("join", "POST", p.JOIN, "A token for a key, once.", p.Join, p.Joined, signed=False),
    Route("health", "GET", p.HEALTH, "The process lives.", signed=False),
    Route("ready", "GET", p.READY, "The server takes clients.", signed=False),
    Route("statistics", "GET", p.STATS, "For the server's own machine: how it and its run stand, each round's numbers.",
          gives=p.Stats, signed=False),
    Route("openapi", "GET", p.OPENAPI, "This description.", signed=False),
    Route("run", "GET", p.RUN, "What the run is about, for this client.", gives=p.Briefing),
    Route("work", "POST", p.WORK, "Something to do; waits a while for it.", p.Poll, p.Offer),
    Route("blob", "GET", f"{p.BLOBS}/{{digest:[0-9a-f]{{64}}}}", "The model of an offered task.", raw="gives"),
    Route("beat", "POST", p.BEAT, "I am here; which of these are still wanted?", p.Beat, p.Beaten),
    Route("announce", "POST", f"{p.UPDATES}/{{task:[0-9]{{1,19}}}}", "I have this answer; where do I go on?",
          p.Announce, p.Receipt, round="task"),
    Route("part", "PUT", f"{p.UPDATES}/{{task:[0-9]{{1,19}}}}", "A part of an answer.", gives=p.Receipt, raw="takes",
          round="task", query=("digest", "offset", "size")),
    Route("failure", "POST", f"{p.FAILURES}/{{task:[0-9]{{1,19}}}}", "I cannot do this task.", p.Failure, p.Noted,
          round="task"),
    Route("data", "POST", p.DATA, "So much data is here, as far as I tell.", p.Holding, p.Noted),
    Route("scalars", "POST", p.SCALARS, "Numbers that a script logged.", p.Scalars, p.Noted, round="body"),
)  # fmt: skip

_NUMBER = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_FORMS: Mapping[str, Mapping[str, Any]] = {
    "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "task": {"type": "string", "pattern": "^[0-9]{1,19}$"},
    "offset": _NUMBER,
    "size": _NUMBER,
    "Content-Range": {"type": "string", "pattern": "^bytes [0-9]{1,18}-[0-9]{1,18}/[0-9]{1,18}$"},
}
"""What stands in a path, in a query (in this order) and in the field that says again which part it is."""

_REF = "#/components/schemas/{model}"
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def openapi(version: str) -> Mapping[str, Any]:  # Any: JSON's types nest
    """Return the description of the routes in OpenAPI 3.1."""
    takes = {route.takes for route in ROUTES if route.takes}
    gives = {route.gives for route in ROUTES if route.gives} | {p.Problem}
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in takes),
        *((model, "serialization") for model in gives - takes),
    ]
    _, schemas = models_json_schema(sorted(models, key=lambda one: one[0].__name__), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(_plain(route.path), {})[route.method.lower()] = _operation(route)
    signature = {"type": "http", "scheme": "signature", "description": f"RFC 9421, Ed25519: {', '.join(FIELDS)}"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "roundelay", "version": version, "description": f"Protocol {p.PROTOCOL}"},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"signature": signature}},
    }


def _operation(route: Route) -> dict[str, Any]:
    problem = {"description": "Refused; error is one of " + ", ".join(p.ERRORS), "content": _json(p.Problem)}
    given: dict[str, Any] = {"application/json": {}}
    if route.gives or route.raw == "gives":
        given = _json(route.gives) if route.gives else _BYTES
    told: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.meaning,
        "security": [{"signature": []}] if route.signed else [],
        "parameters": [
            {"name": name, "in": where, "required": True, "schema": _FORMS[name]}
            for where, names in (("path", _names(route)), ("query", route.query), ("header", _fields(route)))
            for name in names
        ],
        "responses": {"200": {"description": route.meaning, "content": given}, "default": problem},
    }
    if route.name == "work":
        told["responses"]["204"] = {"description": "Nothing to do yet."}
    if route.takes or route.raw == "takes":
        told["requestBody"] = {"required": True, "content": _json(route.takes) if route.takes else _BYTES}
    return told


def _json(model: type[p.Message]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _plain(path: str) -> str:
    """A path without the forms of its variables."""
    head, brace, rest = path.partition("{")
    return f"{head}{{{rest.partition(':')[0]}}}" if brace else path


def _fields(route: Route) -> list[str]:
    return ["Content-Range"] if route.raw == "takes" else []


def _names(route: Route) -> list[str]:
    return [name for name in ("digest", "task") if f"{{{name}:" in route.path]

"""Which routes there are, one good request for each signed one, what a request could have changed, and fronts that do
not look.
"""

import pytest
from aiohttp import web
from fronts import MODEL, Device, Place, part_of
from journals import sha256

from roundelay.deployment import protocol as p
from roundelay.deployment.front import admission
from roundelay.deployment.front.front import Front

ANSWER = b"an answer of a client. " * 10
Asked = tuple[str, str, bytes, int, list[tuple[str, str]]]


def listed(app: web.Application) -> set[tuple[str, str]]:
    """Return method and path of what an application serves."""
    return {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}


def plain(path: str) -> str:
    """Return a route's path as an application lists it, without what its last part must look like."""
    return path.split(":")[0] + "}" if "{" in path else path


class Unsigned(Device):
    """A device that signs nothing."""

    def fields(self, *args: object, **kwargs: object) -> list[tuple[str, str]]:  # type: ignore[override]
        return []


def asked(route: str, task: int = 1) -> Asked:
    """A good request of client "a", which has this task of round 1, whose answer is announced: method, path, body,
    round, fields.
    """
    path, fields = part_of(task, ANSWER, 0, len(ANSWER))
    text = {
        "work": p.Poll(),
        "beat": p.Beat(doing=[task]),
        "announce": p.Announce(digest=sha256(ANSWER), size=len(ANSWER)),
        "failure": p.Failure(reason="no data"),
        "data": p.Holding(num_examples=3, label_counts=[1, 2]),
        "scalars": p.Scalars(round=1, scalars=[p.LoggedScalar(name="x", value=1.0, step=1)]),
    }
    body = text[route].model_dump_json().encode() if route in text else b""
    plain: dict[str, Asked] = {
        "run": ("GET", p.RUN, b"", 0, []),
        "work": ("POST", p.WORK, body, 0, []),
        "blob": ("GET", f"{p.BLOBS}/{sha256(MODEL)}", b"", 0, []),
        "beat": ("POST", p.BEAT, body, 0, []),
        "announce": ("POST", f"{p.UPDATES}/{task}", body, 1, []),
        "part": ("PUT", path, ANSWER, 1, fields),
        "failure": ("POST", f"{p.FAILURES}/{task}", body, 1, []),
        "data": ("POST", p.DATA, body, 0, []),
        "scalars": ("POST", p.SCALARS, body, 1, []),
    }
    return plain[route]


def ready(here: Place) -> None:
    here.open_round()
    here.journal.uploads.begin("a", sha256(ANSWER), len(ANSWER))


def state(here: Place) -> tuple[object, ...]:
    journal = here.journal
    return (
        journal.tasks.all(), journal.updates(), journal.uploads.received("a", sha256(ANSWER), len(ANSWER)),
        [one for one in here.news if one is not None], here.scalars.copy(),
        set(journal.blobs.digests()), {one.client for one in journal.clients.all()},
    )  # fmt: skip


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def no_signatures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "verify", lambda *_, **__: 1)


def a_new_route(patch: pytest.MonkeyPatch) -> None:
    application = Front._application

    def planted(self: Front) -> web.Application:
        app = application(self)
        app.router.add_get("/v1/secrets", self._lobby.health)
        return app

    patch.setattr(Front, "_application", planted)

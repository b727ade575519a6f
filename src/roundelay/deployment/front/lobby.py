"""The routes that need no signature: who the server is, how it is, the way in; on its own machine, how the run is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from aiohttp import web

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.admission import Admission, require_open
from roundelay.deployment.front.meters import Meters
from roundelay.deployment.front.problems import Rejected
from roundelay.deployment.front.receiving import read_message
from roundelay.deployment.front.routes import openapi
from roundelay.deployment.front.server import DIALLED
from roundelay.deployment.front.threads import InThread
from roundelay.deployment.greeting import is_loopback
from roundelay.errors import JournalError


@dataclass(frozen=True, slots=True)
class Lobby:
    board: Board
    admission: Admission
    meters: Meters
    run: str
    authority_pem: bytes | None
    curves: Callable[[], p.Curves]
    in_thread: InThread
    patience_s: float

    async def authority(self, _: web.Request) -> web.Response:
        if self.authority_pem is None:
            raise Rejected("not_found", "this server speaks plain HTTP, and has no authority")
        return web.Response(body=self.authority_pem, content_type="application/x-pem-file")

    async def hello(self, _: web.Request) -> web.Response:
        joining = self._takes_clients and await self.in_thread(self.admission.has_room)
        return as_json(p.Hello(protocol=p.PROTOCOL, version=version("roundelay"), run=self.run, joining=joining))

    async def join(self, request: web.Request) -> web.Response:
        require_open(self.board.phase, self.board.reason)
        body = await read_message(request, self.patience_s, p.MAX_JOIN_BYTES)  # of anybody, who may be nobody
        message = p.Join.model_validate_json(body)
        dialled = request.app[DIALLED].get(request.protocol)
        client = await self.in_thread(self.admission.join, message, dialled)
        return as_json(p.Joined(client=client, run=self.run))

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def ready(self, request: web.Request) -> web.Response:
        disk = not self.meters.disk_failed
        try:
            self.board.journal.check()
        except JournalError:
            disk = False
        ready = disk and self._takes_clients
        told = {"ready": ready, "phase": self.board.phase.value, "disk": disk}
        told["reason"] = self.board.reason if _is_here(request) else ""  # which names clients
        return web.json_response(told, status=200 if ready else 503, headers={} if ready else {"Retry-After": "5"})

    async def statistics(self, request: web.Request) -> web.Response:
        if not _is_here(request):
            raise Rejected("not_found", "how the run stands is told on the server's own machine only: ask from there")
        told = p.Stats(
            run=self.run,
            phase=self.board.phase.value,
            reason=self.board.reason,
            uptime_s=time.monotonic() - self.meters.begun,
            silent_s=dict(self.board.presence()),
            gone_after_s=self.board.gone_after_s,
            requests=self.meters.requests,
            in_flight=self.meters.in_flight,
            bytes_in=self.meters.bytes_in,
            bytes_out=self.meters.bytes_out,
            open_tasks=await self.in_thread(self.board.journal.tasks.num_open),
            progress=await self.in_thread(self.curves),
        )
        return as_json(told)

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(openapi(version("roundelay")))

    @property
    def _takes_clients(self) -> bool:
        return self.board.phase not in (Phase.DRAINING, Phase.ENDED)


def _is_here(request: web.Request) -> bool:
    """Whether whoever asks is on the server's machine; over a connection that leads to a worker, nobody is."""
    if request.transport is None or request.remote is None or request.protocol in request.app[DIALLED]:
        return False
    own = request.transport.get_extra_info("sockname")
    return is_loopback(request.remote) or bool(own and own[0] == request.remote)


def as_json(message: p.Message) -> web.Response:
    return web.Response(body=message.model_dump_json().encode(), content_type="application/json")

"""The front of a server of real devices: what it answers to each request.

Nobody is answered before it is known who asks, and nothing is acknowledged that is not on disk. What blocks runs in
threads, so that one client's slow disk keeps nobody else waiting.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from aiohttp import web

from roundelay.deployment.board import Board
from roundelay.deployment.front.admission import Admission
from roundelay.deployment.front.desk import Call, Desk, OnData, OnScalar
from roundelay.deployment.front.lobby import Lobby, as_json
from roundelay.deployment.front.meters import CUT, NO_ROUTE, Meters
from roundelay.deployment.front.polls import Polls
from roundelay.deployment.front.problems import Refusal, Rejected, answer_to, is_of_the_disk
from roundelay.deployment.front.receiving import Intake, read_message
from roundelay.deployment.front.routes import ROUTES, Route
from roundelay.deployment.front.sending import Sender
from roundelay.deployment.front.server import DIALLED, DRAIN
from roundelay.deployment.front.together import Together
from roundelay.deployment.front.turns import Turns
from roundelay.deployment.journal.records import KeptTask
from roundelay.deployment.protocol import Briefing, Curves, Message, Receipt, Scalars
from roundelay.deployment.trust.doors import Doors
from roundelay.deployment.trust.roster import Roster
from roundelay.deployment.trust.signing import Claim, Reason, Refused, Request, check_body

log = logging.getLogger(__name__)

_MAX_TASK = 2**63 - 1
_TOO_MANY_S = 5.0
_Came = tuple[Request, list[tuple[str, str]], int]
"""A request, its fields, and the id of the task that its path names, 0 for none."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """``app`` answers, in a ``Server``. All else may be called from any thread."""

    def __init__(
        self,
        board: Board,
        roster: Roster,
        doors: Doors,
        *,
        run: str,
        briefing: Callable[[str], Briefing],
        max_answer_bytes: int,
        curves: Callable[[], Curves],
        authority_pem: bytes | None,
        on_scalar: OnScalar,
        on_data: OnData = lambda client, holding: None,
        in_flight_bytes: int = 48 * 2**20,
        patience_s: float = 30.0,
        requests_per_client: int = 16,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``briefing(client)``, ``curves``, ``on_scalar(client, round, name, value, step)`` and ``on_data`` are called
        in threads. ``authority_pem`` is None where no TLS is spoken. Whoever sends or takes no byte for ``patience_s``
        seconds is cut. A client's requests beyond ``requests_per_client`` at once wait some seconds, and are refused.
        ``now_s`` is the time of day, by which tokens run out.
        """
        self._journal, self._patience_s = board.journal, patience_s
        self._admission = Admission(board, roster, doors, now_s)
        self.meters, self._polls, self._run = Meters(), Polls(), run
        self._names: dict[web.AbstractRoute, str] = {}
        self._claims: dict[int, Claim] = {}  # whose requests are under way, by the objects that stand for them
        self._requests_per_client, self._under_way = requests_per_client, Counter[str]()
        self._door = ThreadPoolExecutor(1, "front-door")  # who asks is known before anything else is done
        self._readers = ThreadPoolExecutor(4, "front")
        self._writers = ThreadPoolExecutor(8, "front-writes")  # apart: they sync megabytes
        self._lobby = Lobby(
            board, self._admission, self.meters, run, authority_pem, curves, self._in_thread, patience_s
        )
        turns = Turns()
        intake = Intake(in_flight_bytes, patience_s, board.journal.folder, self._writers, turns)
        self._desk = Desk(
            board, self._polls, intake, self.meters, briefing, on_scalar, on_data, max_answer_bytes, self._in_thread,
            self._writers, Sender(self._in_thread, patience_s, turns),
        )  # fmt: skip
        self._quiet = asyncio.Event()
        self._enter = Together(self._entered, self._at_the_door)
        self.app = self._application()
        board.listen_for_posts(self._polls.wake)

    def told_over(self) -> frozenset[str]:
        """Return the clients that have asked for work and heard that the run has ended."""
        return frozenset(self._desk.told_over.copy())

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._answered])
        for route in ROUTES:
            handler: _Handler
            if route.signed:
                handler = partial(self._signed, route, getattr(self._desk, route.name))
            else:
                handler = getattr(self._lobby, route.name)
            self._names[app.router.add_route(route.method, route.path, handler)] = route.name
        app[DRAIN], app[DIALLED] = self._drain, {}
        app.on_startup.append(self._begin)
        app.on_cleanup.append(self._end)
        return app

    async def _begin(self, _: web.Application) -> None:
        self._polls.begin()

    async def _drain(self, grace_s: float) -> None:
        """Have polls end, refuse what comes, and wait for what is under way, for ``grace_s`` seconds at most."""
        self._polls.close()
        if self.meters.in_flight:
            try:
                async with asyncio.timeout(grace_s):
                    await self._quiet.wait()
            except TimeoutError:
                return

    async def _end(self, _: web.Application) -> None:
        if self._desk.keeping:
            await asyncio.wait(self._desk.keeping)
        for pool in (self._door, self._readers, self._writers):
            await asyncio.to_thread(pool.shutdown)

    # ---- around every request ---------------------------------------------------------------------------------------

    @web.middleware
    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Have every error answered as a ``Problem``, and count."""
        meters, begun, status, error = self.meters, time.monotonic(), CUT, ""
        meters.requests += 1
        meters.in_flight += 1
        try:
            response = await self._response(request, handler)
            meters.bytes_out += response.content_length or 0
            status = str(response.status)
            error = response.error if isinstance(response, Refusal) else ""
            if self._polls.closing:
                response.force_close()
            return response
        finally:
            meters.in_flight -= 1
            self._note(request, status, error, time.monotonic() - begun)
            if self._polls.closing and not meters.in_flight:
                self._quiet.set()

    async def _response(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if self._polls.closing:
                raise Rejected("draining", "the server is about to stop; come again")
            if "Content-Encoding" in request.headers:  # it is not signed, and would change what the body means
                raise Rejected("message", "a body must be sent as it is, without Content-Encoding")
            if "Transfer-Encoding" in request.headers:
                if request.transport is not None:  # chunks of a byte each cost much, even where nobody wants them
                    request.transport.pause_reading()
                raise Rejected("message", "a body needs a Content-Length; chunks are not taken")
            return await handler(request)
        except Exception as error:
            self.meters.disk_failed |= is_of_the_disk(error)
            return answer_to(error, request)

    def _note(self, request: web.Request, status: str, error: str, seconds: float) -> None:
        """Count a request that has ended, and have the log say who asked what; nobody's words are quoted there."""
        route = self._names.get(request.match_info.route, NO_ROUTE)
        claim = self._claims.pop(id(request), None)
        self.meters.end(route, status, seconds)
        if error:
            self.meters.refused[error] += 1
        if log.isEnabledFor(logging.INFO):
            facts = {"route": route, "status": status, "seconds": round(seconds, 6)}
            facts |= {"error": error} if error else {}
            facts |= {} if claim is None else {"client": claim.client, "round": claim.round}
            log.info("%s: %s in %.3f s%s", route, status, seconds, f", {error}" if error else "", extra=facts)

    async def _signed(
        self, route: Route, handle: Callable[[Call, Any], Awaitable[Any]], request: web.Request
    ) -> web.StreamResponse:
        """Serve a signed route: who it is first, then what it says, then whether the signature was for this round."""
        path, _, query = request.raw_path.partition("?")
        asked = Request(request.method, path, self._run, query=query)
        task_id = int(request.match_info["task"]) if route.round == "task" else 0
        claim, kept = await self._enter((asked, list(request.headers.items()), task_id))
        self._claims[id(request)] = claim
        self.meters.disk_failed = False  # the number of the request was written
        with self._counted(claim.client) as num_under_way:
            if num_under_way > self._requests_per_client:
                await asyncio.sleep(_TOO_MANY_S)  # whoever asks again at once keeps nobody else waiting
                raise Rejected("busy", f"client {claim.client!r} has {num_under_way} requests under way, and may have "
                               f"{self._requests_per_client}; is it running twice?")  # fmt: skip
            return await self._served(route, handle, request, claim, task_id, kept)

    @contextmanager
    def _counted(self, client: str) -> Iterator[int]:
        """Count a request of this client; give how many of its own are under way."""
        self._under_way[client] += 1
        try:
            yield self._under_way[client]
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]

    async def _served(
        self, route: Route, handle: Callable[[Call, Any], Awaitable[Any]], request: web.Request, claim: Claim,
        task_id: int, kept: KeptTask | None,
    ) -> web.StreamResponse:  # fmt: skip
        """Serve a request of which it is known who made it."""
        message = None
        if route.raw != "takes":
            message = await self._message(request, route, claim)
        if task_id > _MAX_TASK:
            raise Rejected("not_found", f"client {claim.client!r} has no such task")
        _check_round(route, claim, message, kept)
        answer = await handle(Call(request, claim, task_id, kept), message)
        if isinstance(answer, Receipt) and answer.settled is not None:
            self.meters.answers["duplicate" if answer.settled.duplicate else answer.settled.verdict.value] += 1
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(status=204) if answer is None else as_json(answer)

    def _entered(self, came: Sequence[_Came]) -> list[tuple[Claim, KeptTask | None] | Exception]:
        """Return of each request who asks, and the task of that id if it is a task of theirs."""
        entered: list[tuple[Claim, KeptTask | None] | Exception] = []
        claims = self._admission.enter([(asked, fields) for asked, fields, _ in came])
        tasks = self._journal.tasks.several({task_id for _, _, task_id in came if task_id})
        for claim, (_, _, task_id) in zip(claims, came, strict=True):
            if isinstance(claim, Exception):
                entered.append(claim)
                continue
            kept = tasks.get(task_id)
            entered.append((claim, kept if kept is not None and kept.task.client == claim.client else None))
        return entered

    async def _message(self, request: web.Request, route: Route, claim: Claim) -> Message | None:
        body = await read_message(request, self._patience_s)
        self.meters.bytes_in += len(body)
        check_body(claim, hashlib.sha256(body).digest())
        if route.takes is None:
            if body:
                raise Rejected("message", "this route takes no body")
            return None
        return route.takes.model_validate_json(body)

    async def _at_the_door(self, work: Callable[..., Any], *args: Any) -> Any:  # Any: as below
        return await asyncio.get_running_loop().run_in_executor(self._door, work, *args)

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:  # Any: whatever ``work`` takes and gives
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)


def _check_round(route: Route, claim: Claim, message: Message | None, kept: KeptTask | None) -> None:
    """Hold the round that was signed against the one that is meant. Of a task that the client does not have none is
    known; it is not told whose it is.
    """
    expected = 0
    if route.round == "task":
        expected = claim.round if kept is None else kept.task.round
    elif isinstance(message, Scalars):
        expected = message.round
    if claim.round != expected:
        who = f"client {claim.client!r}"
        raise Refused(Reason.OTHER_ROUND, f"{who}: the request is for round {claim.round}, expected {expected}")

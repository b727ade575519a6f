"""The routes of those who signed: what a client is given to do, and what becomes of its answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from aiohttp import web

from roundelay.deployment import protocol as p
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.front.admission import require_open
from roundelay.deployment.front.meters import Meters
from roundelay.deployment.front.polls import Polls
from roundelay.deployment.front.problems import Rejected
from roundelay.deployment.front.receiving import Body, Intake, Part, announced
from roundelay.deployment.front.sending import Sender
from roundelay.deployment.front.threads import InThread, outlasting
from roundelay.deployment.journal.records import Denial, KeptTask, RequestDenied, Verdict
from roundelay.deployment.trust.signing import Claim, check_body
from roundelay.errors import JournalError

OnScalar = Callable[[str, int, str, float, int], None]
"""Client, round, name, value, step."""

OnData = Callable[[str, p.Holding], None]


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose signature was good. ``task`` is the client's own task that the path names, if it has that one."""

    request: web.Request
    claim: Claim
    task_id: int = 0
    task: KeptTask | None = None

    @property
    def client(self) -> str:
        return self.claim.client


@dataclass(frozen=True, slots=True)
class Desk:
    board: Board
    polls: Polls
    intake: Intake
    meters: Meters
    briefing: Callable[[str], p.Briefing]
    on_scalar: OnScalar
    on_data: OnData
    max_answer_bytes: int
    in_thread: InThread
    writers: Executor
    sender: Sender
    told_over: set[str] = field(default_factory=set)
    keeping: set[asyncio.Task[p.Receipt]] = field(default_factory=set)
    """Writes that were begun. They end, whoever hangs up."""

    async def run(self, call: Call, _: None) -> p.Briefing:
        require_open(self.board.phase, self.board.reason)
        briefing: p.Briefing = await self.in_thread(self.briefing, call.client)
        return briefing

    async def work(self, call: Call, poll: p.Poll) -> p.Offer | web.StreamResponse | None:
        """Wait for a task until the client's time is over, or its connection, or the run; but not for so long that it
        would count as lost meanwhile.
        """
        client, loop = call.client, asyncio.get_running_loop()
        end = loop.time() + min(poll.wait_s, p.MAX_WAIT_S, self.board.gone_after_s / 2)
        with self.polls.watching(client) as woken:
            while True:
                woken.clear()
                if self.board.phase is Phase.ENDED:
                    self.told_over.add(client)
                require_open(self.board.phase, self.board.reason)
                offer: p.Offer | None = await self.in_thread(self._next_offer, client, poll)
                if offer is not None:
                    self.board.saw(client)
                    return await self._enclosed(call, offer) if offer.enclosed else offer
                if loop.time() >= end or self.polls.closing:
                    break
                try:
                    async with asyncio.timeout_at(end):
                        await woken.wait()
                except TimeoutError:
                    break
        self.board.saw(client)
        return None

    async def _enclosed(self, call: Call, offer: p.Offer) -> web.StreamResponse:
        """Send an offer with its model."""
        return await self.sender.enclose(
            call.request, offer.model_dump_json().encode() + b"\n", self.board.journal.blobs.path(offer.sent),
            offer.sent, lambda: self.board.saw(call.client),
        )  # fmt: skip

    async def blob(self, call: Call, _: None) -> web.StreamResponse:
        """Send what an open task of this client was sent, and nothing else."""
        digest = call.request.match_info["digest"]
        tasks = await self.in_thread(self.board.journal.tasks.open_of, call.client)
        if digest not in {task.sent for task in tasks}:
            raise Rejected("not_found", f"no open task of client {call.client!r} begins from such a blob; ask for work")
        path = self.board.journal.blobs.path(digest)
        return await self.sender.send(call.request, path, digest, lambda: self.board.saw(call.client))

    async def beat(self, call: Call, beat: p.Beat) -> p.Beaten:
        wanted: set[int] = set()
        if self.board.phase is not Phase.ENDED:
            wanted = {kept.task.id for kept in await self.in_thread(self.board.journal.tasks.open_of, call.client)}
        return p.Beaten(over=[task_id for task_id in beat.doing if task_id not in wanted])

    async def failure(self, call: Call, failure: p.Failure) -> p.Noted:
        if call.task is None:
            raise Rejected("not_found", f"client {call.client!r} has no task {call.task_id}")
        await self.in_thread(self._lose, call.task_id, failure)
        return p.Noted()

    async def data(self, call: Call, holding: p.Holding) -> p.Noted:
        await self.in_thread(self.on_data, call.client, holding)
        return p.Noted()

    async def scalars(self, call: Call, scalars: p.Scalars) -> p.Noted:
        await self.in_thread(self._log, call.client, scalars)
        return p.Noted()

    async def announce(self, call: Call, announce: p.Announce) -> p.Receipt:
        self._require_fitting(announce.size)
        receipt: p.Receipt = await self.in_thread(
            self._announced, call.client, call.task_id, announce.digest, announce.size
        )
        if receipt.settled is None and receipt.received == announce.size:  # all was there but the last word
            return await self._to_the_end(self._finished, call.client, call.task_id, announce.digest, announce.size)
        return receipt

    async def part(self, call: Call, _: None) -> p.Receipt:
        part = announced(call.request)
        receipt: p.Receipt | None = await self.in_thread(
            self._standing, call.client, call.task_id, part.digest, part.size
        )
        if receipt is None and not part.is_whole:
            raise Rejected("upload", f"client {call.client!r} has not announced this answer; announce it first", 0)
        if receipt is None:
            self._require_fitting(part.size)
        elif receipt.settled is not None:
            return receipt
        elif part.offset != receipt.received:
            raise Rejected("upload", f"the part begins at {part.offset}, but the answer goes on at {receipt.received}",
                           receipt.received)  # fmt: skip
        with self.intake.receiving(call.client) as body:
            digest = await body.read(call.request, call.client, part.length, lambda: self.board.saw(call.client))
            self.meters.bytes_in += part.length
            check_body(call.claim, digest)
            return await self._to_the_end(self._written, call.client, call.task_id, part, body)

    async def _to_the_end(self, write: Callable[..., p.Receipt], *args: object) -> p.Receipt:
        """Write in a thread; a client that hangs up meanwhile changes nothing, and its bytes are counted until then."""

        async def kept() -> p.Receipt:
            return await asyncio.get_running_loop().run_in_executor(self.writers, write, *args)

        keeping = asyncio.create_task(kept())
        self.keeping.add(keeping)
        keeping.add_done_callback(self.keeping.discard)
        return await outlasting(keeping)

    def _require_fitting(self, size: int) -> None:
        if size > self.max_answer_bytes:
            raise Rejected("too_large", f"an answer may have {self.max_answer_bytes} bytes, this one has {size}; is "
                           "its model the one that was sent?")  # fmt: skip

    # ---- in threads -------------------------------------------------------------------------------------------------

    def _next_offer(self, client: str, poll: p.Poll) -> p.Offer | None:
        kept = self.board.next_task(client, poll.doing)
        if kept is None:
            return None
        assert kept.sent is not None, "a task of a run has a model"
        try:
            size = self.board.journal.blobs.path(kept.sent).stat().st_size
        except OSError as error:  # closed in this moment, and its blob collected; or removed by hand
            raise JournalError(f"blob {kept.sent} cannot be read ({error})") from error
        task, is_wanted = kept.task, poll.having is not None and kept.sent not in poll.having
        return p.Offer(
            id=task.id, round=task.round, attempt=task.attempt, kind=task.kind, config=dict(task.config),
            sent=kept.sent, size=size, memory=kept.memory, enclosed=is_wanted and size <= p.ENCLOSED_BYTES,
        )  # fmt: skip

    def _standing(self, client: str, task_id: int, digest: str, size: int) -> p.Receipt | None:
        """Return how an answer stands: settled, under way, or None where nothing is known of it."""
        known = self.board.journal.known_answer(task_id, client, digest)
        if known is not None:
            return p.Receipt(received=size, settled=_settled(known.verdict, known.number, known.duplicate))
        _require_not_over(self.board)
        received = self.board.journal.uploads.received(client, digest, size)
        return None if received is None else p.Receipt(received=received)

    def _announced(self, client: str, task_id: int, digest: str, size: int) -> p.Receipt:
        known = self.board.journal.known_answer(task_id, client, digest)
        if known is not None:
            return p.Receipt(received=size, settled=_settled(known.verdict, known.number, known.duplicate))
        _require_not_over(self.board)
        return p.Receipt(received=self.board.journal.uploads.begin(client, digest, size))

    def _written(self, client: str, task_id: int, part: Part, body: Body) -> p.Receipt:
        uploads, pieces = self.board.journal.uploads, body.pieces()
        try:
            if part.is_whole:
                uploads.take_whole(client, part.digest, pieces)
                return self._accepted(client, task_id, part.digest, part.size)
            received = uploads.write(client, part.digest, part.offset, pieces)
        except RequestDenied as denied:
            if denied.denial in (Denial.WRONG_OFFSET, Denial.NO_UPLOAD):  # another request came between
                raise Rejected("upload", str(denied), uploads.received(client, part.digest, part.size) or 0) from None
            raise
        if received < part.size:
            return p.Receipt(received=received)
        return self._finished(client, task_id, part.digest, part.size)

    def _finished(self, client: str, task_id: int, digest: str, size: int) -> p.Receipt:
        self.board.journal.uploads.finish(client, digest)
        return self._accepted(client, task_id, digest, size)

    def _accepted(self, client: str, task_id: int, digest: str, size: int) -> p.Receipt:
        ack = self.board.journal.accept(task_id, client, digest, size, {})
        if ack.verdict is Verdict.ACCEPTED:
            self.board.came(task_id)
        return p.Receipt(received=size, settled=_settled(ack.verdict, ack.number, ack.duplicate))

    def _lose(self, task_id: int, failure: p.Failure) -> None:
        self.board.journal.tasks.lose(task_id, failure.reason, failure.traceback)
        self.board.came(task_id)

    def _log(self, client: str, scalars: p.Scalars) -> None:
        for scalar in scalars.scalars:
            self.on_scalar(client, scalars.round, scalar.name, scalar.value, scalar.step)


def _require_not_over(board: Board) -> None:
    """What was asked for may still be answered while the server is about to stop."""
    if board.phase is Phase.ENDED:
        require_open(board.phase, board.reason)


def _settled(verdict: Verdict, number: int, duplicate: bool) -> p.Settled:
    return p.Settled(verdict=verdict, number=number, duplicate=duplicate)

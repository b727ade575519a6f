"""A run on devices in virtual time, whose wall clock jumps: what each device does is drawn from a seed, and so it is
known at which moment each round must close, and with whom.
"""

import math
import random
from asyncio import AbstractEventLoop, Handle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bad_updates import Scene
from journals import opened, quick_folder, sha256
from networks import Plain, federated, small_job

import roundelay as rd
from roundelay import wire
from roundelay.bookkeeping import Given
from roundelay.client.exchange import Answered
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.journal.records import Opening
from roundelay.deployment.running.calls import LOOKED_OUT_FOR, PATIENCE, Calls
from roundelay.deployment.running.federation import DeployedFederation
from roundelay.federation import Version
from roundelay.run import Run
from roundelay.simulation.loop import NS, Event, VirtualLoop

HEARTBEAT_S, NUM_CLIENTS = 2.0, 5
GONE_S = 20 * HEARTBEAT_S
LOSING_S = (LOOKED_OUT_FOR + 2) * HEARTBEAT_S
"""So long at most it takes to lose somebody who was silent when the round began."""

CLIENTS = tuple(f"c{i}" for i in range(NUM_CLIENTS))
DAY_S = 86_400.0
LIMIT_S = 20_000.0
MAX_EVENTS = 200_000
CALM = 4
"""From this attempt at a round on, everybody answers: else there would be no end."""


class OneThread(VirtualLoop):
    """Virtual time in which the devices live too: their words come from the loop's own thread."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, **_: Any) -> Handle:  # type: ignore[override]
        return self.call_soon(callback, *args)

    def __init__(self) -> None:
        super().__init__()
        self._num_events = 0

    def advance(self) -> None:
        self._num_events += 1
        if self._num_events > MAX_EVENTS:
            raise AssertionError(f"no end after {MAX_EVENTS} events, at {self.time():g} s")
        super().advance()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Event:
        """Each wait takes a nanosecond at least, as it does on a clock whose time goes on by itself."""
        return super().call_later(max(delay, 1 / NS), callback, *args, context=context)


@dataclass(frozen=True)
class Part:
    """What a device makes of a task: ``at_s`` seconds after it was asked, it answers ("answers") or says that it cannot
    ("fails"). "stays" is there and never answers; "vanishes" is away for ``at_s`` seconds, and answers when it is back.
    """

    does: str
    at_s: float = 0.0


@dataclass
class Asked:
    """An attempt at a round: when it was opened, and when and with whom it was closed."""

    opening: Opening
    at_s: float
    seen_s: Mapping[str, float]
    parts: Mapping[str, Part]
    closed_s: float = math.nan
    members: tuple[str, ...] = ()


class Devices:
    """All clients, and the world of the run that asks them."""

    def __init__(self, root: Path, seed: str, scene: Scene, board_now: Callable[[], float] | None) -> None:
        self._draw = random.Random(seed)
        self._loop = OneThread()
        self.jump_s = 0.0
        self.journal = opened(root / "run")
        self.board = Board(self.journal, HEARTBEAT_S, board_now or self._loop.time)
        self.updates = {update.task.client: update for update in scene.updates}
        self.asked: list[Asked] = []
        self.pauses = 0
        self._back_s = dict.fromkeys(CLIENTS, 0.0)
        self._seen_s = dict.fromkeys(CLIENTS, 0.0)
        self._at_work: set[int] = set()
        for client in CLIENTS:
            self.journal.clients.admit(client, sha256(client.encode()))
            self._beat(client)
        self._loop.at(round(LIMIT_S * NS), self._give_up)
        self._jump()
        self.board.listen_for_posts(self._look)
        self._watch()

    def wall_s(self) -> float:
        return 1.7e9 + self._loop.time() + self.jump_s

    # ---- the world of the run ---------------------------------------------------------------------------------------

    def open(self) -> None: ...

    def loop(self) -> AbstractEventLoop:
        return self._loop

    def federation(self, given: Given) -> DeployedFederation:
        calls = Calls(self.board, self._loop)
        return DeployedFederation(given, board=self.board, calls=calls, flights=(), wait_s=9.0, now_s=self._loop.time)

    def now_ns(self) -> int:
        return self._loop.now_ns

    def checkpointed(self, version: Version) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...

    # ---- what happens -----------------------------------------------------------------------------------------------

    def _after(self, seconds: float, what: Callable[..., object], *args: object) -> None:
        self._loop.at(self._loop.now_ns + round(seconds * NS), what, *args)

    def _give_up(self) -> None:
        raise AssertionError(f"the run waits for ever: {self.asked[-1:]}")

    def _jump(self) -> None:
        self.jump_s = self._draw.uniform(-DAY_S, DAY_S)
        self._after(self._draw.uniform(1.0, 30.0), self._jump)

    def _beat(self, client: str) -> None:
        now_s = self._loop.time()
        if now_s >= self._back_s[client]:
            self._seen_s[client] = now_s
            self.board.saw(client)
        self._after(HEARTBEAT_S, self._beat, client)

    def _look(self, clients: Collection[str] | None) -> None:
        """Somebody is told that there is something to do, or that the phase has changed."""
        self.pauses += clients is None and self.board.phase is Phase.PAUSED
        for client in clients or ():
            for kept in self.journal.tasks.open_of(client):
                if kept.task.id not in self._at_work:
                    self._at_work.add(kept.task.id)
                    self._begin(kept.task, self.asked[-1].parts[client])

    def _begin(self, task: rd.Task, part: Part) -> None:
        if part.does == "vanishes":
            self._back_s[task.client] = max(self._back_s[task.client], self._loop.time() + part.at_s)
        if part.does in ("answers", "vanishes"):
            self._after(part.at_s, self._answer, task)
        elif part.does == "fails":
            self._after(part.at_s, self._fail, task)

    def _answer(self, task: rd.Task) -> None:
        away_s = self._back_s[task.client] - self._loop.time()
        if away_s > 1e-6:
            self._after(away_s, self._answer, task)
            return
        update = self.updates[task.client]
        answered = Answered(task.id, update.num_examples, True, {}, update.payload)
        data = wire.to_bytes(answered.frame())
        ack = self.journal.accept(task.id, task.client, self.journal.blobs.put(data), len(data), {})
        self._seen_s[task.client] = self._loop.time()
        self.board.saw(task.client)
        if ack.number:
            self.board.came(task.id)

    def _fail(self, task: rd.Task) -> None:
        self.journal.tasks.lose(task.id, "it cannot")
        self.board.came(task.id)

    # ---- what is noted ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        rounds = self.journal.rounds
        opens, closes = rounds.open, rounds.close

        def opened_now(opening: Opening) -> object:
            parts = {client: self._part(opening, client) for client in opening.cohort}
            self.asked.append(Asked(opening, self._loop.time(), dict(self._seen_s), parts))
            return opens(opening)

        def closed_now(number: int, attempt: int, members: Sequence[int], group: str = "", **more: Any) -> None:
            closes(number, attempt, members, group, **more)
            tasks = [self.journal.tasks.get(member) for member in members]
            self.asked[-1].closed_s = self._loop.time()
            self.asked[-1].members = tuple(kept.task.client for kept in tasks if kept is not None)

        rounds.open, rounds.close = opened_now, closed_now  # type: ignore[assignment, method-assign]

    def _part(self, opening: Opening, client: str) -> Part:
        away_s, draw = self._back_s[client] - self._loop.time(), self._draw
        if away_s > 0:  # it does not hear of it before it is back, and not while the server is about to lose it
            self._back_s[client] += LOSING_S
            return Part("vanishes", away_s + LOSING_S)
        if opening.attempt >= CALM:
            return Part("answers", 1.0)
        does = draw.choices(("answers", "stays", "fails", "vanishes"), (6, 1 if opening.deadline_s else 0, 1, 1))[0]
        if does == "vanishes":
            return Part(does, draw.choice((GONE_S / 2, 3 * GONE_S)) + draw.random())  # no two at one moment
        return Part(does, draw.choice((draw.uniform(0.1, 60.0), 5.0, opening.deadline_s or 5.0)))


# ---- what must come of it -------------------------------------------------------------------------------------------


def check_round(asked: Asked) -> bool:
    """The contract: it closes at its goal, when nobody is left, or at its deadline, whichever comes first, with those
    who have answered by then. Who falls silent is lost within a heartbeat, and who was silent already is looked out for
    first; return whether the moment is known exactly.
    """
    soon_s, late_s = _closes(asked, _lost_at_once), _closes(asked, _lost_at_last)
    assert soon_s - 1e-6 <= asked.closed_s <= late_s + 1e-6, (
        f"closed at {asked.closed_s}, expected {soon_s} to {late_s}"
    )
    if soon_s == late_s:
        came = _arrivals(asked)
        before = {client for client, at_s in came.items() if at_s < asked.closed_s - 1e-6}
        just = {client for client, at_s in came.items() if abs(at_s - asked.closed_s) <= 1e-6}
        members = set(asked.members)
        assert before <= members <= before | just, f"{members} are members, expected {before} and of {just}: {asked}"
        assert len(members) <= (asked.opening.goal or NUM_CLIENTS)
        if just and not any(
            abs(asked.at_s + part.at_s - asked.closed_s) <= 1e-6
            for part in asked.parts.values()
            if part.does == "fails"
        ):
            assert members & just, "what comes at the deadline is in time, at least the first of it"
    return soon_s == late_s


def _arrivals(asked: Asked) -> dict[str, float]:
    """Return when each answer comes, of those that do unless their round is closed, or they are lost, before."""
    return {
        client: asked.at_s + part.at_s for client, part in asked.parts.items()
        if part.does == "answers" or (part.does == "vanishes" and asked.at_s + part.at_s < _lost_at_once(asked, client))
    }  # fmt: skip


def _lost_at_once(asked: Asked, client: str) -> float:
    return max(asked.at_s, asked.seen_s[client] + GONE_S)


def _lost_at_last(asked: Asked, client: str) -> float:
    return max(asked.at_s + LOSING_S, asked.seen_s[client] + GONE_S + HEARTBEAT_S)


def _closes(asked: Asked, lost: Callable[[Asked, str], float]) -> float:
    came = _arrivals(asked)
    ended = dict(came)
    for client, part in asked.parts.items():
        if part.does == "fails":
            ended[client] = asked.at_s + part.at_s
        elif part.does == "stays":
            ended[client] = math.inf
        elif client not in came:
            ended[client] = lost(asked, client)
    goal, moments = asked.opening.goal, sorted(came.values())
    at_goal = moments[goal - 1] if goal is not None and len(moments) >= goal else math.inf
    deadline = math.inf if asked.opening.deadline_s is None else asked.at_s + asked.opening.deadline_s
    return min(at_goal, max(ended.values()), deadline)


@dataclass(frozen=True)
class Seen:
    """What a seed came to."""

    attempts: int
    exact: int
    pauses: int


def run_on_fake_time(seed: str, scene: Scene, board_by_wall: bool = False) -> Seen:
    """One run of two rounds; its terms are drawn too.

    Raises:
        AssertionError: a round closed at another moment or with others than it must, or under its quorum, or never.
    """
    draw = random.Random(f"terms {seed}")
    workflow = rd.Rounds(
        goal=draw.choice((None, None, 3)), deadline_s=draw.choice((None, 10.0, 30.0)), quorum=draw.choice((2, 3)),
        attempts=draw.choice((1, 2)),
    )  # fmt: skip
    job = small_job(
        model=Plain, data=lambda: federated(NUM_CLIENTS), clients_per_round=NUM_CLIENTS, num_rounds=2,
        workflow=workflow,
    )  # fmt: skip
    made: list[Devices] = []

    def wall_s() -> float:
        return made[0].wall_s() if made else 1.7e9

    with quick_folder() as folder, patch("time.time", wall_s), patch("time.time_ns", lambda: int(wall_s() * NS)):
        made.append(Devices(Path(folder), seed, scene, wall_s if board_by_wall else None))
        here = made[0]
        try:
            rows = [finished.row for finished in Run(job.prepared(), world=lambda _: here)]
        finally:
            here.journal.close()
    exact = [check_round(asked) for asked in here.asked]
    assert [row["round"] for row in rows] == [1, 2]
    folded = {asked.opening.number: len(asked.members) for asked in here.asked}  # of the last attempt
    assert all(folded[row["round"]] == row["admitted"] >= workflow.quorum for row in rows), "under its quorum"
    check_attempts(here, workflow)
    return Seen(len(exact), sum(exact), here.pauses)


def check_attempts(here: Devices, workflow: rd.Rounds) -> None:
    """A round that met its quorum is not drawn again; one that did not is, at once or after a pause that ends."""
    for asked, after in zip(here.asked, here.asked[1:], strict=False):
        met = len(asked.members) >= workflow.quorum
        assert met == (after.opening.number == asked.opening.number + 1)
        waited_s = after.at_s - asked.closed_s
        if met or asked.opening.attempt + 1 < workflow.attempts:
            assert waited_s < 1e-6
        else:
            assert waited_s <= 3 * GONE_S + (PATIENCE + 2) * HEARTBEAT_S

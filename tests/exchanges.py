"""Devices, a network that does what it likes with their requests, and a server, held against a model of them."""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from fronts import DAY_S, RUN, part_of
from in_memory import Inline, Office, written
from journals import quick_folder, sha256
from protocol_model import NOW_S, Asked, Model, Outcome, Sent

from roundelay.deployment import protocol as p
from roundelay.deployment.journal.records import Fate, Opening, RoundState, TaskState, Verdict
from roundelay.deployment.trust.identity import DeviceKey, encode
from roundelay.deployment.trust.signing import EMPTY_DIGEST, Request, sign
from roundelay.messages import Task

CLIENTS = "abc"
KEYS = {(client, key): DeviceKey.new() for client in CLIENTS for key in (0, 1)}  # 1: of a stranger who says so
PART = 20
ANSWERS = tuple(bytes([48 + i]) * (3 * PART) for i in range(2))


class Exchange:
    """A server that is told what ``Model`` is told. What is signed flies until it is delivered, in any order, or lost;
    what was delivered may come once more.
    """

    def __init__(self) -> None:
        self._folder = quick_folder()
        self._loop = Inline()
        asyncio.set_event_loop(self._loop)
        self.model, self.flying, self.delivered = Model(), list[Sent](), list[Sent]()
        self.office = Office(Path(self._folder.name), self._loop, NOW_S)
        self._tokens = {client: self.office.roster.invite(client, 30 * DAY_S, NOW_S) for client in CLIENTS}
        self._sequences = dict.fromkeys(KEYS, 0)
        self.num_requests = 0

    def close(self) -> None:
        self.office.close()
        asyncio.set_event_loop(None)
        self._loop.close()
        self._folder.cleanup()

    # ---- devices ----------------------------------------------------------------------------------------------------

    def join(self, client: str, key: int = 0) -> None:
        message = p.Join(token=self._tokens[client].reveal(), public_key=encode(KEYS[client, key].public))
        raw = written("POST", p.JOIN, [], message.model_dump_json().encode())
        self.flying.append(Sent("join", client, key, raw=raw))

    def pull(self, client: str, key: int = 0, skew_s: float = 0.0) -> None:
        self._sign(Sent("work", client, key, skew_s=skew_s), "POST", p.WORK, p.Poll(having=[]))

    def fail(self, client: str, task: int) -> None:
        sent = Sent("fail", client, task=task, round=self.round_of(task))
        self._sign(sent, "POST", f"{p.FAILURES}/{task}", p.Failure(reason="it cannot"))

    def announce(self, client: str, task: int, data: bytes, key: int = 0) -> None:
        sent = Sent("announce", client, key, task=task, round=self.round_of(task), data=data)
        self._sign(sent, "POST", f"{p.UPDATES}/{task}", p.Announce(digest=sha256(data), size=len(data)))

    def push(
        self, client: str, task: int, data: bytes, part: int | None = None, key: int = 0, skew_s: float = 0.0,
        rounds_off: int = 0,
    ) -> None:  # fmt: skip
        """Send an answer whole, or one of its parts; ``rounds_off`` signs it for another round."""
        offset, length = (0, len(data)) if part is None else (part * PART, PART)
        path, fields = part_of(task, data, offset, length)
        round = self.round_of(task) + rounds_off
        sent = Sent("part", client, key, 0, skew_s, task, round, data, offset, length)
        self._sign(sent, "PUT", path, data[offset : offset + length], fields)

    def round_of(self, task: int) -> int:
        return self.model.tasks[task].round if task in self.model.tasks else 1

    def _sign(
        self, sent: Sent, method: str, target: str, body: bytes | p.Message, more: Sequence[tuple[str, str]] = ()
    ) -> None:
        who = (sent.client, sent.key)
        self._sequences[who] += 1
        data = body if isinstance(body, bytes) else body.model_dump_json().encode()
        path, _, query = target.partition("?")
        digest = hashlib.sha256(data).digest() if data else EMPTY_DIGEST
        asked = Request(method, path, RUN, sent.round, query, digest)
        fields = sign(asked, sent.client, KEYS[who], self._sequences[who], NOW_S + sent.skew_s)
        raw = written(method, target, [*fields, *more], data)
        self.flying.append(Sent(**{**vars(sent), "sequence": self._sequences[who], "raw": raw}))

    # ---- the network ------------------------------------------------------------------------------------------------

    def deliver(self, pick: int, twice: bool = False) -> None:
        """Bring one of those that fly; ``twice`` leaves it flying."""
        if self.flying:
            at = pick % len(self.flying)
            self.tell(self.flying[at] if twice else self.flying.pop(at))

    def replay(self, pick: int) -> None:
        if self.delivered:
            self.tell(self.delivered[pick % len(self.delivered)])

    def drop(self, pick: int) -> None:
        if self.flying:
            self.flying.pop(pick % len(self.flying))

    def tell(self, sent: Sent) -> Outcome:
        """The contract: server and model say the same."""
        expected = self.model.answer(sent)
        said = self._heard(sent)
        assert said == expected, f"{sent.kind} of {sent.client!r}: the server says {said}, the model {expected}"
        self.delivered.append(sent)
        self.num_requests += 1
        return said

    def _heard(self, sent: Sent) -> Outcome:
        said = self.office.hear(sent.raw)
        if said.status >= 400:
            problem = p.Problem.model_validate_json(said.body)
            return "refused", problem.error, problem.received
        if sent.kind == "join":
            return "joined", p.Joined.model_validate_json(said.body).client
        if sent.kind == "work":
            if said.status == 204:
                return ("nothing",)
            head, _, model = said.body.partition(b"\n")
            offer = p.Offer.model_validate_json(head)
            assert sha256(model) == offer.sent, "another model"
            return "offer", offer.id, offer.round
        if sent.kind == "fail":
            return ("noted",)
        receipt = p.Receipt.model_validate_json(said.body)
        settled = receipt.settled
        return "receipt", receipt.received, settled and (settled.verdict, settled.number, settled.duplicate)

    # ---- the server -------------------------------------------------------------------------------------------------

    def open_round(self) -> None:
        """Open the next attempt, or the next round where the last one came to something."""
        rounds = self.model.rounds
        if "open" in rounds.values() or not self.model.keys:
            return
        number, attempt = max(rounds, default=(0, 0))
        folded = any((one.round, one.attempt) == (number, attempt) and one.came[0] for one in self.model.tasks.values())
        key = (number + 1, 0) if folded or not rounds else (number, attempt + 1)
        rounds[key] = "open"
        cohort, first = sorted(self.model.keys), len(self.model.tasks) + 1
        tasks = [Task(first + i, client, *key) for i, client in enumerate(cohort)]
        journal = self.office.journal
        journal.rounds.open(Opening(*key, tuple(cohort)))
        journal.tasks.open(tasks, journal.blobs.put(b"model %d" % key[0]))
        self.model.tasks |= {task.id: Asked(task.client, *key) for task in tasks}

    def close_round(self) -> None:
        for key, state in self.model.rounds.items():
            if state == "open":
                self.office.journal.rounds.close(*key, self._members(key))
                self.model.rounds[key] = "closed"
                for task in self.model.tasks.values():
                    if (task.round, task.attempt, task.state) == (*key, "open"):
                        task.state = "closed"

    def restart(self) -> None:
        self.office.close()
        self.office = Office(Path(self._folder.name), self._loop, self.model.wall_s)
        self.agree()

    def set_clock(self, wall_s: float) -> None:
        self.model.wall_s = self.office.wall_s = wall_s

    def agree(self) -> None:
        """What is in the journal is what the model knows: each answer once, in the round that it was asked for."""
        journal, model = self.office.journal, self.model
        assert {one.task_id: (one.client, one.digest, one.number) for one in journal.updates()} == {
            i: (task.client, *task.came) for i, task in model.tasks.items() if task.came[0]
        }
        assert {one.task.id: one.state for one in journal.tasks.all()} == {
            i: TaskState(task.state) for i, task in model.tasks.items()
        }
        for one in journal.rounds.all():
            key = (one.opening.number, one.opening.attempt)
            closed = model.rounds[key] == "closed"
            assert one.state is (RoundState.CLOSED if closed else RoundState.OPEN)
            assert list(one.members) == (self._members(key) if closed else [])
        for update in journal.updates():
            task = model.tasks[update.task_id]
            assert (update.fate is Fate.ADMITTED) == (model.rounds[task.round, task.attempt] == "closed")

    def _members(self, key: tuple[int, int]) -> list[int]:
        return [i for i, task in self.model.tasks.items() if (task.round, task.attempt) == key and task.came[0]]

    def come_to_an_end(self) -> None:
        """Honest devices, once the network is quiet: each does what it is asked, and is asked nothing any more."""
        while self.flying:
            self.deliver(0)
        self.set_clock(NOW_S)
        for client, key in self.model.keys.items():
            for _ in range(len(self.model.tasks) + 1):
                self.pull(client, key)
                offered = self.tell(self.flying.pop())
                if offered == ("nothing",):
                    break
                assert self._answered(client, key, int(str(offered[1]))) == (
                    Verdict.ACCEPTED,
                    self.model.num_accepted,
                    False,
                )
            else:
                raise AssertionError(f"client {client!r} is asked without end")
        self.close_round()
        self.agree()

    def _answered(self, client: str, key: int, task: int) -> object:
        """Send an answer as an honest device does: where the server says, until it is settled."""
        data = ANSWERS[0]
        self.announce(client, task, data, key)
        said = self.tell(self.flying.pop())
        while said[2] is None:
            self.push(client, task, data, int(str(said[1])) // PART, key)
            said = self.tell(self.flying.pop())
        return said[2]


def simulate(seed: str, steps: int) -> int:
    """One conversation drawn from a seed; return how many requests the server has answered."""
    draw, exchange = random.Random(seed), Exchange()
    try:
        for client in CLIENTS:
            exchange.join(client)
            if draw.random() < 0.9:
                exchange.deliver(0)
        exchange.open_round()
        for _ in range(steps):
            step(exchange, draw)
        exchange.agree()
        exchange.come_to_an_end()
    finally:
        exchange.close()
    return exchange.num_requests


def step(exchange: Exchange, draw: random.Random) -> None:
    client, pick = draw.choice(CLIENTS), draw.randrange(10**6)
    own = [i for i, task in exchange.model.tasks.items() if task.client == client] or [999]
    task = draw.choice([*own[-2:], *own[-2:], *own, len(exchange.model.tasks) + draw.randrange(2)])
    key, skew_s = int(draw.random() < 0.05), draw.choice((0.0, 0.0, DAY_S, -DAY_S, 9 * DAY_S))
    data = draw.choice(ANSWERS)
    match draw.choices(STEPS, WEIGHTS)[0]:
        case "join":
            exchange.join(client, key)
        case "pull":
            exchange.pull(client, key, skew_s)
        case "push":
            off = int(draw.random() < 0.1)
            exchange.push(client, task, data, draw.choice((None, None, 0, 1, 2)), key, skew_s, off)
        case "in parts":
            exchange.announce(client, task, data)
            exchange.deliver(-1)
            for part in range(3):
                exchange.push(client, task, data, part)
                if draw.random() < 0.8:
                    exchange.deliver(-1)
        case "fail":
            exchange.fail(client, task)
        case "deliver":
            exchange.deliver(draw.choice((0, -1, pick)))
        case "duplicate":
            exchange.deliver(pick, twice=True)
        case "replay":
            exchange.replay(pick)
        case "drop":
            exchange.drop(pick)
        case "open":
            exchange.open_round()
        case "close":
            exchange.close_round()
        case "clock":
            exchange.set_clock(NOW_S + draw.choice((-DAY_S, 0.0, DAY_S)))
        case "restart":
            exchange.restart()


_WEIGHTS = {
    "join": 3, "pull": 8, "push": 16, "in parts": 4, "fail": 2, "deliver": 34, "duplicate": 5, "replay": 8, "drop": 5,
    "open": 8, "close": 5, "clock": 2, "restart": 2,
}  # fmt: skip
STEPS, WEIGHTS = tuple(_WEIGHTS), tuple(_WEIGHTS.values())

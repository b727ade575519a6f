"""The protocol against a model of sixty lines: each answer counts at most once, in the round that it was asked for,
whatever a network drops, repeats, reorders and delays, with clocks that are a day off, and over restarts.
"""

from dataclasses import replace
from typing import Any

import pytest
from exchanges import ANSWERS, CLIENTS, Exchange, simulate
from figures import Figures
from fronts import DAY_S
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from journal_bugs import (
    Planting,
    forget_whose_task_it_is,
    keep_numbers_in_memory,
    take_a_late_answer,
    told_otherwise,
)
from protocol_model import NOW_S
from stateful import converse

from roundelay.deployment.front import front
from roundelay.deployment.journal.clients import Clients
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, KeptTask, Verdict
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.journal.tasks import Tasks
from roundelay.deployment.journal.uploads import Uploads
from roundelay.deployment.trust import signing
from roundelay.deployment.trust.members import Member
from roundelay.deployment.trust.roster import Roster

CLIENT, PICK, DATA = st.sampled_from(CLIENTS), st.integers(0, 999), st.sampled_from(ANSWERS)
KEY = st.sampled_from([0] * 7 + [1])
SKEW = st.sampled_from([0.0, 0.0, DAY_S, -DAY_S, 9 * DAY_S])
AT_ONCE = st.sampled_from([True, True, False])
"""Whether a request is delivered before anything else happens, or flies for a while."""

SELDOM = st.integers(0, 4).map(lambda n: n == 0)
PART_OR_ALL = st.sampled_from([None, None, None, 0, 1, 2])


class Protocol(RuleBasedStateMachine):
    """What is drawn here, ``Exchange`` does, and compares."""

    num_requests = 0

    def __init__(self) -> None:
        super().__init__()
        self.exchange = Exchange()

    def teardown(self) -> None:
        try:
            self.exchange.agree()
            Protocol.num_requests += self.exchange.num_requests
        finally:
            self.exchange.close()

    @initialize(joined=st.sampled_from(["abc", "ab", "c"]))
    def begin(self, joined: str) -> None:
        for client in joined:
            self.exchange.join(client)
            self.exchange.deliver(0)
        self.exchange.open_round()

    @rule(client=CLIENT, key=KEY, at_once=AT_ONCE)
    def enrol(self, client: str, key: int, at_once: bool) -> None:
        self.exchange.join(client, key)
        self.fly(at_once)

    @rule(client=CLIENT, key=KEY, skew_s=SKEW, at_once=AT_ONCE)
    def pull(self, client: str, key: int, skew_s: float, at_once: bool) -> None:
        self.exchange.pull(client, key, skew_s)
        self.fly(at_once)

    @rule(
        client=CLIENT, pick=PICK, data=DATA, part=PART_OR_ALL, key=KEY, skew_s=SKEW, at_once=AT_ONCE, other_round=SELDOM
    )  # fmt: skip
    def push(
        self, client: str, pick: int, data: bytes, part: int | None, key: int, skew_s: float, at_once: bool,
        other_round: bool,
    ) -> None:  # fmt: skip
        self.exchange.push(client, self.task(client, pick), data, part, key, skew_s, int(other_round))
        self.fly(at_once)

    @rule(client=CLIENT, pick=PICK, data=DATA, at_once=AT_ONCE)
    def announce(self, client: str, pick: int, data: bytes, at_once: bool) -> None:
        self.exchange.announce(client, self.task(client, pick), data)
        self.fly(at_once)

    @rule(client=CLIENT, pick=PICK, data=DATA, num_parts=st.integers(1, 3))
    def push_in_parts(self, client: str, pick: int, data: bytes, num_parts: int) -> None:
        task = self.task(client, pick)
        self.exchange.announce(client, task, data)
        self.exchange.deliver(-1)
        for part in range(num_parts):
            self.exchange.push(client, task, data, part)
            self.exchange.deliver(-1)

    @rule(client=CLIENT, pick=PICK, at_once=AT_ONCE)
    def fail(self, client: str, pick: int, at_once: bool) -> None:
        self.exchange.fail(client, self.task(client, pick))
        self.fly(at_once)

    @rule(pick=PICK, twice=st.sampled_from([False, False, True]))
    def deliver(self, pick: int, twice: bool) -> None:
        self.exchange.deliver(pick, twice)

    @rule()
    def deliver_all(self) -> None:
        while self.exchange.flying:
            self.exchange.deliver(0)

    @rule(pick=PICK)
    def replay(self, pick: int) -> None:
        self.exchange.replay(pick)

    @rule(pick=PICK)
    def drop(self, pick: int) -> None:
        self.exchange.drop(pick)

    @rule()
    def close_a_round_and_open_the_next(self) -> None:
        self.exchange.close_round()
        self.exchange.open_round()

    @rule(off_s=st.sampled_from([-DAY_S, 0.0, DAY_S]))
    def jump(self, off_s: float) -> None:
        self.exchange.set_clock(NOW_S + off_s)

    @rule(does=SELDOM)
    def restart(self, does: bool) -> None:
        if does:
            self.exchange.restart()

    def fly(self, at_once: bool) -> None:
        if at_once:
            self.exchange.deliver(-1)

    def task(self, client: str, pick: int) -> int:
        """Its last task most often, or another one of its own, of somebody else's, or of nobody's."""
        tasks = self.exchange.model.tasks
        own = [i for i, task in tasks.items() if task.client == client]
        return (own[-1:] * 6 + own + [*tasks, 999])[pick % (len(own[-1:]) * 6 + len(own) + len(tasks) + 1)]


def check_conversations(examples: int, figures: Figures) -> None:
    before = Protocol.num_requests
    converse(Protocol, examples)
    num_requests = Protocol.num_requests - before
    figures("conversations of 30 steps", examples)
    figures("requests", num_requests)
    figures("divergences", 0)


def test_the_server_agrees_with_a_model_of_the_protocol(figures: Figures) -> None:
    check_conversations(120, figures)


@pytest.mark.chaos
def test_the_server_agrees_with_the_model_in_five_hundred_conversations(figures: Figures) -> None:
    check_conversations(500, figures)


@pytest.mark.chaos
@pytest.mark.parametrize("part", range(8))
def test_the_server_agrees_with_the_model_in_two_thousand_simulations(
    part: int, figures: Figures, chaos_seed: int
) -> None:
    num_requests = sum(simulate(f"{chaos_seed} {part} {number}", steps=30) for number in range(250))
    figures("simulations of 30 steps and an honest end", 250)
    figures("requests", num_requests)
    figures("divergences", 0)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def take_another_answer_for_the_first(journal: Journal, ack: Ack) -> Ack:
    first = journal.update(ack.task_id)
    if ack.verdict is not Verdict.CONFLICT or first is None:
        return ack
    return Ack(ack.task_id, ack.digest, Verdict.ACCEPTED, first.number, duplicate=True)


def number_a_repetition_anew(journal: Journal, ack: Ack) -> Ack:
    return Ack(ack.task_id, ack.digest, ack.verdict, len(journal.updates()), True) if ack.duplicate else ack


def forget_that_it_was_answered(_: Journal, ack: Ack) -> Ack:
    return Ack(ack.task_id, ack.digest, Verdict.LATE) if ack.duplicate else ack


def take_every_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Clients, "advance", lambda self, requests: [self.get(one, key) is not None for one, key, _ in requests]
    )


def let_a_token_be_used_by_two(patch: pytest.MonkeyPatch) -> None:
    spend = Roster._spend

    def planted(self: Roster, found: Member, shown: str, now_s: float) -> str:
        return spend(self, replace(found, public_key=shown), shown, now_s)

    patch.setattr(Roster, "_spend", planted)


def go_on_with_another_upload(patch: pytest.MonkeyPatch) -> None:
    begin = Uploads.begin

    def planted(self: Uploads, client: str, digest: str, size: int) -> int:
        row = self._db.one("SELECT received FROM uploads WHERE client = ?", client)
        begin(self, client, digest, size)
        with self._db.writing("planted") as db:
            db.execute("UPDATE uploads SET received = ? WHERE client = ?", (row[0] if row else 0, client))
        return row[0] if row else 0

    patch.setattr(Uploads, "begin", planted)


def forget_an_upload_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    init = Uploads.__init__

    def planted(self: Uploads, db: Any, *rest: Any) -> None:
        with db.writing("planted") as connection:
            connection.execute("DELETE FROM uploads")
        init(self, db, *rest)

    patch.setattr(Uploads, "__init__", planted)


def offer_what_was_lost(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Tasks, client: str) -> tuple[KeptTask, ...]:
        return self._select("WHERE client = ? AND state IN ('open', 'lost') ORDER BY id", client)

    patch.setattr(Tasks, "open_of", planted)


PLANTINGS: dict[str, Planting] = {
    "late answers are taken": told_otherwise(take_a_late_answer),
    "a second answer is told as the first": told_otherwise(take_another_answer_for_the_first),
    "a repetition gets another number": told_otherwise(number_a_repetition_anew),
    "a repetition is late": told_otherwise(forget_that_it_was_answered),
    "whose task it is is forgotten": forget_whose_task_it_is,
    "what was drawn again is late": lambda patch: patch.setattr(Rounds, "was_drawn_again", lambda *_: False),
    "any round may be signed": lambda patch: patch.setattr(front, "_check_round", lambda *_: None),
    "numbers are taken again": take_every_number,
    "numbers are forgotten at a restart": keep_numbers_in_memory,
    "a token is used by two": let_a_token_be_used_by_two,
    "an upload goes on with another": go_on_with_another_upload,
    "uploads are forgotten at a restart": forget_an_upload_at_a_restart,
    "what was lost is offered": offer_what_was_lost,
    "a day is too far off": lambda patch: patch.setattr(signing, "CLOCK_SKEW_S", DAY_S / 2),
    "any clock will do": lambda patch: patch.setattr(signing, "CLOCK_SKEW_S", 1e12),
}  # fmt: skip


def simulate_many() -> None:
    for number in range(200):
        simulate(f"planted {number}", steps=40)


@pytest.mark.parametrize("plant", PLANTINGS.values(), ids=PLANTINGS)
def test_the_model_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        simulate_many()  # the first that fails is enough

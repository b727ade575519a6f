"""The journal against a model of a few lines: any order of rounds, answers, repetitions, restarts."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from journals import admit, opened, quick_folder, sha256

from roundelay.deployment.journal import Journal
from roundelay.deployment.records import Ack, Fate, Opening, RoundState, Verdict
from roundelay.errors import JournalError, JournalMismatch
from roundelay.messages import Task

CLIENTS = "abc"
DATA = st.sampled_from([b"update", b"another", b"third" * 50])
CLIENT = st.sampled_from(CLIENTS)
A_ROUND = st.integers(1, 4)


class Conversation(RuleBasedStateMachine):
    """A server's calls in any order. The model: dicts of what has been told; one round has one task a client."""

    def __init__(self) -> None:
        super().__init__()
        self.root: tempfile.TemporaryDirectory[str] = quick_folder()
        self.rounds: dict[int, str] = {}
        self.open_tasks: set[int] = set()
        self.acks: dict[int, Ack] = {}
        self.data: dict[int, bytes] = {}
        self.fates: dict[int, Fate | None] = {}
        self.members: dict[int, tuple[int, ...]] = {}
        self.saved = 0

    @initialize()
    def begin(self) -> None:
        self.journal: Journal = opened(Path(self.root.name) / "run")
        admit(self.journal, CLIENTS)

    def teardown(self) -> None:
        self.journal.close()
        self.root.cleanup()

    def tasks_of(self, number: int) -> list[int]:
        return [number * 10 + i for i in range(len(CLIENTS))]

    @rule(number=A_ROUND)
    def open_round(self, number: int) -> None:
        opening = Opening(number, 0, tuple(CLIENTS))
        if self.rounds.get(number, "open") != "open":
            with pytest.raises(JournalMismatch):
                self.journal.rounds.open(opening)
            return
        self.journal.rounds.open(opening)
        self.journal.tasks.open([Task(i, CLIENTS[i % 10], number) for i in self.tasks_of(number)])
        if number not in self.rounds:
            self.rounds[number] = "open"
            self.open_tasks |= set(self.tasks_of(number))

    @rule(number=A_ROUND, asked=CLIENT, sender=CLIENT, data=DATA, in_parts=st.booleans())
    def answer(self, number: int, asked: str, sender: str, data: bytes, in_parts: bool) -> None:
        task, digest = number * 10 + CLIENTS.index(asked), sha256(data)
        if in_parts:
            at = self.journal.uploads.begin(sender, digest, len(data))
            while at < len(data):
                at = self.journal.uploads.write(sender, digest, at, data[at : at + 5])
            self.journal.uploads.finish(sender, digest)
        else:
            self.journal.blobs.put(data)
        ack = self.journal.accept(task, sender, digest, len(data), {})
        assert ack == self.expected(number, task, asked == sender, digest)
        if ack.verdict is Verdict.ACCEPTED and not ack.duplicate:
            self.acks[task], self.data[task], self.fates[task] = ack, data, None
            self.open_tasks.discard(task)

    def expected(self, number: int, task: int, own: bool, digest: str) -> Ack:
        if number not in self.rounds or not own:
            return Ack(task, digest, Verdict.UNKNOWN)
        if task in self.open_tasks:
            return Ack(task, digest, Verdict.ACCEPTED, len(self.acks) + 1)
        if task in self.acks:
            first = self.acks[task]
            if first.digest == digest:
                return Ack(task, digest, Verdict.ACCEPTED, first.number, duplicate=True)
            return Ack(task, digest, Verdict.CONFLICT)
        return Ack(task, digest, Verdict.STALE if self.rounds[number] == "abandoned" else Verdict.LATE)

    @rule(number=A_ROUND, client=CLIENT)
    def take_a_task_back(self, number: int, client: str) -> None:
        task = number * 10 + CLIENTS.index(client)
        self.journal.tasks.close([task])
        self.open_tasks.discard(task)

    @precondition(lambda self: self.acks)
    @rule(choose=st.randoms(use_true_random=False), fate=st.sampled_from(list(Fate)))
    def settle(self, choose: object, fate: Fate) -> None:
        task = choose.choice(sorted(self.acks))  # type: ignore[attr-defined]
        if self.fates[task] not in (None, fate):
            with pytest.raises(JournalMismatch):
                self.journal.settle(task, fate)
            return
        self.journal.settle(task, fate)
        self.fates[task] = fate

    @rule(number=A_ROUND, backwards=st.booleans())
    def close_round(self, number: int, backwards: bool) -> None:
        able = [i for i in self.tasks_of(number) if i in self.acks and self.fates[i] in (None, Fate.ADMITTED)]
        members = tuple(reversed(able) if backwards else able)
        if self.rounds.get(number) != "open" and self.members.get(number) != members:
            with pytest.raises(JournalMismatch):
                self.journal.rounds.close(number, 0, members)
            return
        self.journal.rounds.close(number, 0, members)
        self.rounds[number], self.members[number] = "closed", members
        self.open_tasks -= set(self.tasks_of(number))
        self.fates |= dict.fromkeys(members, Fate.ADMITTED)

    @rule(number=A_ROUND)
    def abandon_round(self, number: int) -> None:
        if self.rounds.get(number) in (None, "closed"):
            with pytest.raises(JournalMismatch):
                self.journal.rounds.abandon(number, 0)
            return
        self.journal.rounds.abandon(number, 0)
        self.rounds[number] = "abandoned"
        self.open_tasks -= set(self.tasks_of(number))

    @rule(number=A_ROUND)
    def save(self, number: int) -> None:
        digest = self.journal.blobs.put(b"model %d" % number)
        if number < self.saved:
            with pytest.raises(JournalMismatch):
                self.journal.save_checkpoint(number, digest)
            self.journal.blobs.release(digest)
            return
        self.journal.save_checkpoint(number, digest)
        self.saved = number

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = opened(Path(self.root.name) / "run")

    @rule()
    def collect(self) -> None:
        self.journal.collect()

    @invariant()
    def everything_is_there(self) -> None:
        updates = {one.task_id: one for one in self.journal.updates()}
        assert {task: (one.number, one.digest, one.fate) for task, one in updates.items()} == {
            task: (ack.number, ack.digest, self.fates[task]) for task, ack in self.acks.items()
        }
        for one in self.journal.rounds.all():
            number = one.opening.number
            assert (one.state, one.members) == (RoundState(self.rounds[number]), self.members.get(number, ()))
        for task in self.acks:
            folded = task in self.members.get(task // 10, ()) and task // 10 <= self.saved
            let_go = self.fates[task] in (Fate.REFUSED, Fate.LATE) or self.rounds[task // 10] == "abandoned" or folded
            if not let_go:
                assert self.journal.blobs.path(self.acks[task].digest).read_bytes() == self.data[task]


def converse(examples: int, steps: int, shrink: bool = True) -> None:
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        Conversation,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=phases,
            deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_the_journal_agrees_with_a_model_of_a_few_lines() -> None:
    converse(examples=200, steps=30)


@pytest.mark.slow
def test_the_journal_agrees_with_a_model_over_long_conversations() -> None:
    converse(examples=1000, steps=40)


# ---- planted bugs ---------------------------------------------------------------------------------------------------


Planting = Callable[[pytest.MonkeyPatch], None]


def accept_late_answers(patch: pytest.MonkeyPatch) -> None:
    known = Journal._known_answer

    def planted(self: Journal, task_id: int, client: str, digest: str) -> Ack | None:
        ack = known(self, task_id, client, digest)
        return None if ack is not None and ack.verdict is Verdict.LATE else ack

    patch.setattr(Journal, "_known_answer", planted)


def forget_whose_task_it_is(patch: pytest.MonkeyPatch) -> None:
    known = Journal._known_answer

    def planted(self: Journal, task_id: int, client: str, digest: str) -> Ack | None:
        task = self.tasks.get(task_id)
        return known(self, task_id, client if task is None else task.task.client, digest)

    patch.setattr(Journal, "_known_answer", planted)


def collect_what_is_not_folded(patch: pytest.MonkeyPatch) -> None:
    needed = Journal._is_needed

    def planted(self: Journal, digest: str) -> bool:
        return needed(self, digest) and any(digest == one.digest for one in self.updates() if one.fate is not None)

    patch.setattr(Journal, "_is_needed", planted)


@pytest.mark.parametrize("plant", [accept_late_answers, forget_whose_task_it_is, collect_what_is_not_folded])
def test_the_model_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, FileNotFoundError, JournalError)):
        converse(examples=200, steps=30, shrink=False)

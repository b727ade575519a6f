"""A server's calls of its journal in any order, against a model of a few lines."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from journals import admit, opened, quick_folder, sha256

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, Fate, KeptTask, Opening, RoundState, TaskState, Verdict
from roundelay.errors import JournalMismatch
from roundelay.messages import Task, TaskKind

CLIENTS = "abc"
DATA = st.sampled_from([b"update", b"another", b"third" * 50])
CLIENT = st.sampled_from(CLIENTS)
Key = tuple[int, int, str]
ROUND = st.sampled_from([(1, 0, ""), (1, 1, ""), (2, 0, "ab"), (2, 0, "c"), (3, 0, "")])
"""Number, attempt and group, which here is all its clients; "" is everybody."""

VERSION = st.integers(0, 3)
KIND = st.sampled_from(["evaluate", "submit"])
PICK = st.integers(0, 10**6)
UNKNOWN = Task(999, "a", 1)


def apart(number: int, client: str, kind: TaskKind) -> int:
    return number * 100 + (50 if kind == "submit" else 60) + CLIENTS.index(client)


class Conversation(RuleBasedStateMachine):
    """The model: dicts of what has been told. One round has one task a client, sent the bytes of its number; a client
    may be asked other things of each version, once of a kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root: tempfile.TemporaryDirectory[str] = quick_folder()
        self.rounds: dict[Key, RoundState] = {}
        self.tasks: dict[int, KeptTask] = {}
        self.acks: dict[int, Ack] = {}
        self.data: dict[int, bytes] = {}
        self.fates: dict[int, Fate | None] = {}
        self.members: dict[Key, tuple[int, ...]] = {}
        self.committed: dict[str, int] = {}
        self.saved = 0

    @initialize()
    def begin(self) -> None:
        self.journal: Journal = opened(Path(self.root.name) / "run")
        admit(self.journal, CLIENTS)

    def teardown(self) -> None:
        self.journal.close()
        self.root.cleanup()

    # ---- what a server does -----------------------------------------------------------------------------------------

    def ask(self, tasks: list[Task], sent: bytes, group: str = "") -> None:
        self.journal.tasks.open(tasks, self.journal.blobs.put(sent), self.committed, group)
        for task in tasks:
            memory = self.committed.get(task.client)
            self.tasks.setdefault(task.id, KeptTask(task, sha256(sent), TaskState.OPEN, memory, group=group))

    @rule(key=ROUND)
    def open_round(self, key: Key) -> None:
        number, attempt, group = key
        opening = Opening(number, attempt, tuple(group or CLIENTS), group=group)
        if self.rounds.get(key) is RoundState.CLOSED:
            with pytest.raises(JournalMismatch):
                self.journal.rounds.open(opening)
            return
        self.journal.rounds.open(opening)
        self.rounds[key] = RoundState.OPEN
        first = number * 100 + attempt * 10
        tasks = [Task(first + CLIENTS.index(client), client, number, attempt) for client in group or CLIENTS]
        self.ask(tasks, b"model %d" % number, group)

    @rule(number=VERSION, client=CLIENT, kind=KIND)
    def ask_apart(self, number: int, client: str, kind: TaskKind) -> None:
        task, sent = Task(apart(number, client, kind), client, number, kind=kind), b"to measure"
        self.ask([task], sent)
        assert self.journal.tasks.find(number, 0, client, kind, sha256(sent)) == (self.tasks[task.id],)

    @rule(pick=PICK, sender=st.sampled_from([*CLIENTS, None, None, None]), data=DATA, in_parts=st.booleans())
    def answer(self, pick: int, sender: str | None, data: bytes, in_parts: bool) -> None:
        task = self.any_task(pick)
        sender, digest = sender or task.client, sha256(data)
        if in_parts:
            at = self.journal.uploads.begin(sender, digest, len(data))
            while at < len(data):
                at = self.journal.uploads.write(sender, digest, at, data[at : at + 5])
            self.journal.uploads.finish(sender, digest)
        else:
            self.journal.blobs.put(data)
        ack = self.journal.accept(task.id, sender, digest, len(data), {})
        assert ack == self.expected(task, task.client == sender, digest)
        if ack.verdict is Verdict.ACCEPTED and not ack.duplicate:
            self.acks[task.id], self.data[task.id], self.fates[task.id] = ack, data, None
            self.stands(task.id, TaskState.RECEIVED)

    @rule(key=ROUND, data=DATA)
    def go_through_a_round(self, key: Key, data: bytes) -> None:
        """What seldom comes about by chance: a round from its opening to what it leaves behind."""
        self.open_round(key)
        for task in self.of_round(key):
            self.answer(list(self.tasks).index(task), None, data, in_parts=False)
        self.close_round(key, backwards=False, everybody=True)
        self.commit([list(self.tasks).index(task) for task in self.members.get(key, ())])

    @rule(number=VERSION, client=CLIENT, kind=KIND, data=DATA)
    def learn_apart(self, number: int, client: str, kind: TaskKind, data: bytes) -> None:
        self.ask_apart(number, client, kind)
        task_id = apart(number, client, kind)
        self.answer(list(self.tasks).index(task_id), None, data, in_parts=False)
        if self.fates.get(task_id, Fate.LATE) is None:
            self.settle(list(self.tasks).index(task_id), Fate.ADMITTED)

    @rule(pick=PICK)
    def take_a_task_back(self, pick: int) -> None:
        task = self.any_task(pick)
        self.journal.tasks.close([task.id])
        self.end([task.id])

    @rule(pick=PICK, reason=st.sampled_from(["it cannot", "silent"]))
    def lose(self, pick: int, reason: str) -> None:
        task = self.any_task(pick)
        if task.id not in self.tasks:
            with pytest.raises(JournalMismatch):
                self.journal.tasks.lose(task.id, reason)
            return
        if self.tasks[task.id].state is TaskState.OPEN:
            self.stands(task.id, TaskState.LOST, reason)
        assert self.journal.tasks.lose(task.id, reason) == self.tasks[task.id]

    @rule(pick=PICK, fate=st.sampled_from([*Fate, Fate.ADMITTED, Fate.ADMITTED]))
    def settle(self, pick: int, fate: Fate) -> None:
        task = self.any_task(pick).id
        if task not in self.acks or self.fates[task] not in (None, fate):
            with pytest.raises(JournalMismatch):
                self.journal.settle(task, fate)
            return
        self.journal.settle(task, fate)
        self.fates[task] = fate

    @rule(key=ROUND, backwards=st.booleans(), everybody=st.booleans())
    def close_round(self, key: Key, backwards: bool, everybody: bool) -> None:
        fit = (Fate.ADMITTED, None) if everybody else (Fate.ADMITTED,)
        able = [i for i in self.of_round(key) if i in self.acks and self.fates[i] in fit]
        members = tuple(reversed(able) if backwards else able)
        if self.rounds.get(key) is not RoundState.OPEN and self.members.get(key) != members:
            with pytest.raises(JournalMismatch):
                self.journal.rounds.close(*key[:2], members, key[2])
            return
        self.journal.rounds.close(*key[:2], members, key[2])
        self.rounds[key], self.members[key] = RoundState.CLOSED, members
        self.end(self.of_round(key))
        self.fates |= dict.fromkeys(members, Fate.ADMITTED)
        self.fates |= {i: Fate.LATE for i in self.of_round(key) if i in self.acks and self.fates[i] is None}

    @rule(picks=st.lists(PICK, max_size=3))
    def commit(self, picks: list[int]) -> None:
        tasks = [self.any_task(pick) for pick in picks]
        if any(self.fates.get(task.id) is not Fate.ADMITTED for task in tasks):
            with pytest.raises(JournalMismatch):
                self.journal.commit([task.id for task in tasks])
            return
        self.journal.commit([task.id for task in tasks])
        for task in tasks:
            self.committed[task.client] = max(task.id, self.committed.get(task.client, 0))

    @rule(pick=PICK)
    def commit_what_is_not_admitted(self, pick: int) -> None:
        admitted = [task for task, fate in self.fates.items() if fate is Fate.ADMITTED]
        others = [task for task in self.fates if task not in admitted]
        if others:
            with pytest.raises(JournalMismatch):
                self.journal.commit([*admitted[-1:], others[pick % len(others)]])

    @rule(number=st.integers(1, 4))
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
        sent = {one.sent for one in self.tasks.values() if one.state is TaskState.OPEN}
        kept = {self.acks[task].digest for task in self.acks if self.is_needed(task)}
        model = {sha256(b"model %d" % self.saved)} if self.saved else set()
        assert set(self.journal.blobs.digests()) == sent | kept | model

    # ---- what it must find ------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_there(self) -> None:
        updates = {one.task_id: one for one in self.journal.updates()}
        assert {task: (one.number, one.digest, one.fate) for task, one in updates.items()} == {
            task: (ack.number, ack.digest, self.fates[task]) for task, ack in self.acks.items()
        }
        for one in self.journal.rounds.all():
            key = (one.opening.number, one.opening.attempt, one.opening.group)
            assert (one.state, one.members) == (self.rounds[key], self.members.get(key, ()))
        for task in self.acks:
            if self.is_needed(task):
                assert self.journal.blobs.path(self.acks[task].digest).read_bytes() == self.data[task]

    @invariant()
    def everybody_is_asked_the_same_as_before(self) -> None:
        tasks = [self.tasks[task] for task in sorted(self.tasks)]
        assert self.journal.tasks.all() == tuple(tasks)
        for client in CLIENTS:
            mine = [one for one in tasks if one.task.client == client and one.state is TaskState.OPEN]
            assert self.journal.tasks.open_of(client) == tuple(mine)
        assert self.journal.committed() == self.committed
        assert self.journal.tasks.last_id() == max(self.tasks, default=0)

    def expected(self, task: Task, own: bool, digest: str) -> Ack:
        if task.id not in self.tasks or not own:
            return Ack(task.id, digest, Verdict.UNKNOWN)
        if self.tasks[task.id].state is TaskState.OPEN:
            return Ack(task.id, digest, Verdict.ACCEPTED, len(self.acks) + 1)
        if task.id in self.acks:
            first = self.acks[task.id]
            if first.digest == digest:
                return Ack(task.id, digest, Verdict.ACCEPTED, first.number, duplicate=True)
            return Ack(task.id, digest, Verdict.CONFLICT)
        closed = self.rounds.get(self.key_of(task)) is RoundState.CLOSED
        again = task.attempt == 0 and (task.round, 1, "") in self.rounds
        stale = task.kind == "train" and closed and again
        return Ack(task.id, digest, Verdict.STALE if stale else Verdict.LATE)

    def is_needed(self, task_id: int) -> bool:
        task = self.tasks[task_id].task
        if task.kind != "train":
            return task.round >= self.saved
        if self.fates[task_id] is Fate.LATE:
            return False
        folded = self.fates[task_id] is Fate.REFUSED or task_id in self.members.get(self.key_of(task), ())
        return not folded or task.round > self.saved

    def any_task(self, pick: int) -> Task:
        known = [*(one.task for one in self.tasks.values()), UNKNOWN]
        return known[pick % len(known)]

    def of_round(self, key: Key) -> list[int]:
        tasks = [one.task for one in self.tasks.values()]
        return [task.id for task in tasks if task.kind == "train" and self.key_of(task) == key]

    def key_of(self, task: Task) -> Key:
        return task.round, task.attempt, self.tasks[task.id].group

    def end(self, task_ids: list[int]) -> None:
        for task_id in task_ids:
            if task_id in self.tasks and self.tasks[task_id].state is TaskState.OPEN:
                self.stands(task_id, TaskState.CLOSED)

    def stands(self, task_id: int, state: TaskState, reason: str = "") -> None:
        known = self.tasks[task_id]
        self.tasks[task_id] = KeptTask(known.task, known.sent, state, known.memory, reason, group=known.group)

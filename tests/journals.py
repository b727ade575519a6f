"""What the tests of the journal share: first steps, a whole run, and what must hold whatever happened to it."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Ack, Fate, Opening, RoundState, Run, Verdict
from roundelay.messages import Task, TaskKind

JOB = "num_rounds = 3\n[learner]\nlr = 0.1\n"
RUN = Run("one", JOB)


def quick_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder in memory where there is one: what is tested is not this machine's disk."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def opened(folder: Path, disk: Disk | None = None) -> Journal:
    return Journal(folder, RUN, max_upload_bytes=2**20, disk=disk)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key_of(client: str) -> str:
    return sha256(b"key of " + client.encode())


def admit(journal: Journal, clients: str) -> None:
    for client in clients:
        journal.clients.admit(client, key_of(client))


def advance(journal: Journal, client: str, key: str, number: int) -> bool:
    (counts,) = journal.clients.advance([(client, key, number)])
    return counts


def begun(journal: Journal) -> None:
    """Clients "a", "b" and "c", and round 1, in which they have the tasks 1, 2 and 3."""
    admit(journal, "abc")
    journal.rounds.open(Opening(1, 0, ("a", "b", "c"), goal=2, deadline_s=60.0))
    journal.tasks.open([Task(i + 1, client, 1) for i, client in enumerate("abc")])


def first_round(tmp_path: Path) -> Iterator[Journal]:
    """A journal with clients "a", "b" and "c", and round 1, in which they have the tasks 1, 2 and 3."""
    with opened(tmp_path / "run") as journal:
        begun(journal)
        yield journal


def reopened(journal: Journal) -> Journal:
    journal.close()
    return opened(journal.folder)


def accepted(
    journal: Journal, task_id: int, client: str, data: bytes, fields: Mapping[str, object] | None = None
) -> Ack:
    digest = journal.blobs.put(data)
    return journal.accept(task_id, client, digest, len(data), fields or {"num_examples": 10})


# ---- a whole run: a server and its clients, that go on from wherever a journal stands --------------------------------

Tell = Callable[..., None]
CLIENTS = "abcd"
PART = 70


def answer_of(client: str, number: int, attempt: int) -> bytes:
    return f"{client} in round {number}, attempt {attempt}. ".encode() * (2 + ord(client) % 3 * 2)


def task_id(client: str, number: int, attempt: int) -> int:
    return number * 100 + attempt * 10 + CLIENTS.index(client)


def serve(journal: Journal, tell: Tell) -> None:
    """Three rounds, as a server goes through them: "a" evaluates version 2, and submits its model in the end. ``tell``
    hears what somebody was told, at once, and what is about to be asked for.
    """
    admit(journal, CLIENTS)
    tell("admitted", CLIENTS)
    done = journal.checkpoint()
    model = b"start"
    if done is not None:
        with journal.blobs.open(done.digest) as file:
            model = file.read()
    for number in range(1 if done is None else done.round + 1, 4):
        if number == 2:
            _short(journal, tell, model)
        model = _finished(journal, tell, number, 1 if number == 2 else 0, model)
    _asked_apart(journal, tell, "submit", 3, model)
    journal.collect()


def _opened(journal: Journal, tell: Tell, number: int, attempt: int, model: bytes) -> None:
    journal.rounds.open(Opening(number, attempt, tuple(CLIENTS), deadline_s=60.0))
    tasks = [Task(task_id(client, number, attempt), client, number, attempt) for client in CLIENTS]
    journal.tasks.open(tasks, journal.blobs.put(model), journal.committed())
    kept = [journal.tasks.get(task.id) for task in tasks]
    tell("opened", {one.task.id: one.memory for one in kept if one is not None})


def _short(journal: Journal, tell: Tell, model: bytes) -> None:
    """Round 2, drawn for the first time: "b" cannot, and one answer of four is too few."""
    known = journal.rounds.get(2, 0)
    members, lost = [task_id("a", 2, 0)], task_id("b", 2, 0)
    if known is None or known.state is RoundState.OPEN:
        _opened(journal, tell, 2, 0, model)
        assert _answered(journal, tell, "a", 2, 0).verdict is Verdict.ACCEPTED
        tell("lost", journal.tasks.lose(lost, "no memory left", "line 1"))
        journal.rounds.tick(2, 0, 20.0)
        assert journal.tasks.lose(lost, "was silent").reason == "no memory left"
        journal.rounds.close(2, 0, members)
    tell("closed", 2, 0, members)
    late = Verdict.LATE if journal.rounds.get(2, 1) is None else Verdict.STALE
    assert accepted(journal, lost, "b", answer_of("b", 2, 0)).verdict is late


def _finished(journal: Journal, tell: Tell, number: int, attempt: int, model: bytes) -> bytes:
    known = journal.rounds.get(number, attempt)
    members = [task_id(client, number, attempt) for client in CLIENTS if client != "d"]
    if known is None or known.state is RoundState.OPEN:
        _opened(journal, tell, number, attempt, model)
        for client in CLIENTS if number == 3 else CLIENTS[:3]:
            ack = _answered(journal, tell, client, number, attempt)
            assert ack.verdict is Verdict.ACCEPTED
        again = accepted(journal, members[0], "a", answer_of("a", number, attempt))
        assert (again.verdict, again.duplicate) == (Verdict.ACCEPTED, True)
        assert accepted(journal, members[0], "a", b"another answer").verdict is Verdict.CONFLICT
        if number == 3:
            tell("let go", [task_id("d", 3, 0)])
            journal.settle(task_id("d", 3, 0), Fate.REFUSED, "not finite")
        journal.rounds.tick(number, attempt, number * 10.0)
        journal.rounds.close(number, attempt, members)
    tell("closed", number, attempt, members)
    if number < 3:
        assert accepted(journal, task_id("d", number, attempt), "d", b"came too late").verdict is Verdict.LATE
    for member in members:
        model = hashlib.sha256(model + _update_of(journal, member)).digest() * 8
    journal.commit(members)
    tell("committed", members)
    if number == 2:
        _asked_apart(journal, tell, "evaluate", number, model)
        assert accepted(journal, task_id("d", 2, 0), "d", b"came too late").verdict is Verdict.STALE
    if all(one.content != number for one in journal.recorded()):
        tell("recorded", journal.record("round", number), number)
    tell("let go", [one.task_id for one in journal.updates() if one.task_id < task_id("a", number, 9)])
    journal.save_checkpoint(number, journal.blobs.put(model))
    tell("saved", number, model)
    journal.collect()
    return model


def _asked_apart(journal: Journal, tell: Tell, kind: TaskKind, number: int, model: bytes) -> None:
    """Ask "a" something that belongs to no round."""
    task = Task(task_id("a", number, 9), "a", number, kind=kind)
    sent = journal.blobs.put(model)
    if journal.tasks.find(number, 0, "a", kind, sent):
        journal.blobs.release(sent)
    else:
        journal.tasks.open([task], sent, journal.committed())
    if not journal.updates(number, 0, kind):
        assert journal.tasks.open_of("a")[0].task == task
        assert _answered(journal, tell, "a", number, 9).verdict is Verdict.ACCEPTED
    journal.settle(task.id, Fate.ADMITTED)
    assert _update_of(journal, task.id) == answer_of("a", number, 9)


def _update_of(journal: Journal, task: int) -> bytes:
    update = journal.update(task)
    assert update is not None
    with journal.blobs.open(update.digest) as file:
        return file.read()


def _answered(journal: Journal, tell: Tell, client: str, number: int, attempt: int) -> Ack:
    """One client's answer, from its signed request to its ack. "b" sends its own in parts."""
    known = journal.clients.get(client, key_of(client))
    assert known is not None
    assert advance(journal, client, key_of(client), known.sequence + 1)
    tell("sequence", client, known.sequence + 1)
    data, task = answer_of(client, number, attempt), task_id(client, number, attempt)
    digest = sha256(data)
    tell("try", task, data)
    if client == "b":
        at = journal.uploads.begin(client, digest, len(data))
        while at < len(data):
            at = journal.uploads.write(client, digest, at, data[at : at + PART])
            tell("part", task, client, data, at)
        journal.uploads.finish(client, digest)
        ack = journal.accept(task, client, digest, len(data), {"num_examples": 10})
    else:
        ack = accepted(journal, task, client, data)
    tell("ack", task, ack)
    return ack


# ---- what must hold, whatever happened ------------------------------------------------------------------------------


def check(journal: Journal, told: Sequence[tuple[Any, ...]]) -> None:
    """Hold a journal against what was told: nothing of it is lost, and nothing is there that nobody asked for."""

    def heard(kind: str) -> list[tuple[Any, ...]]:
        return [rest for what, *rest in told if what == kind]  # type: ignore[misc]

    tried, gone = dict(heard("try")), {task for (tasks,) in heard("let go") for task in tasks}
    tasks = {one.task.id: one for one in journal.tasks.all()}
    updates = {one.task_id: one for one in journal.updates()}
    assert len(updates) == len(journal.updates())
    for task, update in updates.items():
        assert update.digest == sha256(tried[task]), "what nobody sent"
        if task not in gone:
            with journal.blobs.open(update.digest) as file:
                assert file.read() == tried[task], "other bytes"
    for task, ack in heard("ack"):
        assert (updates[task].number, updates[task].digest) == (ack.number, ack.digest)
    for task, client, data, at in heard("part"):
        begun_later = any(later > task for later, *_ in heard("part"))
        if task not in updates and not begun_later:
            assert journal.uploads.begin(client, sha256(data), len(data)) >= at, "a part is lost"
    sequences = {one.client: one.sequence for one in journal.clients.all()}
    assert all(client in sequences for (clients,) in heard("admitted") for client in clients)
    assert all(sequences[client] >= sequence for client, sequence in heard("sequence"))
    for number, attempt, members in heard("closed"):
        closed = journal.rounds.get(number, attempt)
        assert closed is not None
        assert (closed.state, closed.members, closed.elapsed_s) == (RoundState.CLOSED, tuple(members), number * 10.0)
    for (memories,) in heard("opened"):
        assert {i: one.memory for i, one in tasks.items() if i in memories} == memories, "from another memory"
    for (lost,) in heard("lost"):
        assert tasks[lost.task.id] == lost
    committed = journal.committed()
    assert all(committed[tasks[one].task.client] >= one for (members,) in heard("committed") for one in members)
    answers = {one.number: one.content for one in journal.recorded()}
    assert all(answers[number] == content for number, content in heard("recorded"))
    if heard("saved"):
        saved, kept = heard("saved")[-1], journal.checkpoint()
        assert kept is not None
        assert kept.round >= saved[0]
        if kept.round == saved[0]:
            with journal.blobs.open(kept.digest) as file:
                assert file.read() == saved[1]


def result(journal: Journal) -> tuple[object, ...]:
    """What a run came to: equal for runs that equal each other, however often they were disturbed."""
    updates = sorted((one.task_id, one.client, one.digest, one.fate, one.reason) for one in journal.updates())
    answers = [one.content for one in journal.recorded()]
    blobs = set(journal.blobs.digests())
    tasks = journal.tasks.all(), journal.committed()
    return journal.rounds.all(), tasks, updates, answers, journal.checkpoint(), blobs

"""Devices that fail, fall silent or answer nonsense: each costs its own client the round, by name, and nobody else."""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import devices
import pytest
from deployments import (
    Planting,
    by_status,
    caught,
    job,
    only_in_round,
    require_same,
    run_twice,
    silent,
    simulated,
    told,
)
from devices import Answering, Vanishes, deployed
from torch import nn

import roundelay as rd
from roundelay import wire
from roundelay.client.exchange import Answered, model_frame
from roundelay.deployment.board import Board
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import KeptTask, RoundState, TaskState, Verdict
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.journal.tasks import Tasks
from roundelay.deployment.running import calls
from roundelay.deployment.running.calls import Calls
from roundelay.deployment.running.federation import DeployedFederation
from roundelay.errors import RoundelayError
from roundelay.guard import Guard
from roundelay.messages import Task
from roundelay.wire import Frame

# ---- answers that are none ------------------------------------------------------------------------------------------


def mangled(change: Callable[[Frame], Frame]) -> Answering:
    """An answer of good form with something else in it."""

    def answering(kept: KeptTask, answer: bytes) -> bytes:
        return wire.to_bytes(change(wire.decode(bytearray(answer))))

    return answering


def fields(**changes: object) -> Answering:
    return mangled(lambda frame: Frame(frame.kind, {**frame.fields, **changes}, frame.tensors))


def tensors(change: Callable[[object], object]) -> Answering:
    def changed(frame: Frame) -> Frame:
        return Frame(
            frame.kind, frame.fields, {**frame.tensors, "vector params": change(frame.tensors["vector params"])}
        )

    return mangled(changed)


def a_model(kept: KeptTask, answer: bytes) -> bytes:
    payload = Answered.read(wire.decode(bytearray(answer))).payload
    assert payload is not None
    return wire.to_bytes(model_frame(payload))


NONSENSE: dict[str, Answering] = {
    "no frame": lambda kept, answer: b"once upon a time",
    "one byte": lambda kept, answer: b"r",
    "cut short": lambda kept, answer: answer[: len(answer) // 2],
    "a byte flipped": lambda kept, answer: answer[:40] + bytes([answer[40] ^ 1]) + answer[41:],
    "another kind of frame": a_model,
    "to another task": fields(task_id=10**6),
    "without a model": fields(trained=False),
    "NaN": tensors(lambda vector: vector * float("nan")),  # type: ignore[operator]
    "too short a vector": tensors(lambda vector: vector[:-1]),  # type: ignore[index]
    "a weight of infinity": fields(num_examples=float("inf")),
    "metrics that are none": fields(metrics={"loss": "low"}),
}


def check_nonsense(root: Path, answering: Answering = NONSENSE["NaN"]) -> None:
    """The contract: the round is bit-equal to one without the sender, who is named, and who starts the next one from
    the memory that it had; after a restart from the journal alone as well.
    """
    given = job(root, algorithm=rd.Scaffold())
    history, (first, second) = run_twice(given, {"c1": only_in_round(1, answering)})
    (refused,) = [report for report in first if report.status == "refused"]
    assert refused.client == "c1"
    assert "'c1'" in refused.reason
    assert by_status(second) == {"admitted": {f"c{i}" for i in range(6)}}
    assert history.sha256 == simulated(given, lambda client, task: client == "c1" and task.round == 1).sha256


@pytest.mark.parametrize("answering", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_costs_its_sender_the_round_and_nobody_else(answering: Answering, tmp_path: Path) -> None:
    check_nonsense(tmp_path, answering)


def admit_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "check", lambda *args, **kwargs: None)


def forget_refusals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "settle", lambda *args: None)


def start_from_the_last_task(patch: pytest.MonkeyPatch) -> None:
    """Whatever a client has trained last is its memory, counted or not."""
    opens = Tasks.open

    def planted(self: Tasks, tasks: Sequence[Task], sent: str, memories: Mapping[str, int], group: str = "") -> None:
        last = {kept.task.client: kept.task.id for kept in self.all() if kept.state is TaskState.RECEIVED}
        opens(self, tasks, sent, last, group)

    patch.setattr(Tasks, "open", planted)


test_the_check_of_nonsense_catches = caught(check_nonsense, {
    "whatever comes is admitted": admit_all,
    "refusals are forgotten": forget_refusals,
    "memory goes forward for the refused": start_from_the_last_task,
})  # fmt: skip


def test_an_evaluation_of_an_unlikely_weight_is_left_out(tmp_path: Path) -> None:
    def unlikely(kept: KeptTask, answer: bytes) -> bytes | None:
        return fields(num_examples=-1.0)(kept, answer) if kept.task.kind == "evaluate" else answer

    given = job(tmp_path, num_rounds=1, evaluation=rd.Evaluation(clients_every=1))
    history, (reports,) = run_twice(given, {"c1": unlikely})
    assert by_status(reports)["evaluated"] == {f"c{i}" for i in range(6)} - {"c1"}
    assert 0 <= history.rows[0]["client_accuracy"] <= 1


def test_a_metric_with_the_name_of_a_column_does_not_take_its_place(tmp_path: Path) -> None:
    def posing(kept: KeptTask, answer: bytes) -> bytes | None:
        poses = fields(metrics={"round": 7.0, "num_examples": 0.5, "accuracy": 1.0})
        return poses(kept, answer) if kept.task.kind == "evaluate" else answer

    given = job(tmp_path, num_rounds=1, evaluation=rd.Evaluation(clients_every=1))
    history, _ = run_twice(given, {"c1": posing})
    (row,) = [row for row in history.clients() if row["client"] == "c1" and row["status"] == "evaluated"]
    assert (row["round"], row["num_examples"], row["accuracy"]) == (1, 12.0, 1.0)


# ---- answers that come when nobody waits for them -------------------------------------------------------------------


def test_what_comes_twice_or_too_late_is_told_so_and_changes_nothing(tmp_path: Path) -> None:
    given = job(tmp_path, num_rounds=1, workflow=rd.Rounds(quorum=5, attempts=2, deadline_s=0.4))
    answers: dict[int, bytes] = {}

    def keep(kept: KeptTask, answer: bytes) -> bytes | None:
        answers[kept.task.id] = answer
        return None if kept.task.attempt == 0 else answer

    late = dict.fromkeys(("c0", "c1"), keep)
    with deployed(given.prepared(), answering={**late, "c5": only_in_round(1, silent)}) as deployment:
        deployment.start()
        history, journal = deployment.finished(), deployment.journal

        def answer(client: str, attempt: int, raw: bytes) -> Verdict:
            (task,) = [
                kept for kept in journal.tasks.all() if (kept.task.client, kept.task.attempt) == (client, attempt)
            ]
            return journal.accept(task.task.id, client, journal.blobs.put(raw), len(raw), {}).verdict

        assert history.rows[0]["attempt"] == 1
        assert history.rows[0]["admitted"] == 5
        assert answer("c2", 1, b"a second answer") is Verdict.CONFLICT
        assert answer("c5", 1, b"too late") is Verdict.LATE
        assert answer("c0", 0, next(iter(answers.values()))) is Verdict.STALE
        assert not [one for one in journal.updates() if one.client == "c5"]
    require_same(history, simulated(given, lambda client, task: client in {"c5", *([] if task.attempt else late)}))


# ---- devices that cannot, or are not there --------------------------------------------------------------------------


def cannot(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    if task.client == "c1":
        raise OSError("no such scan")
    return len(data), {}


def check_losses(root: Path) -> None:
    """The contract: a device whose code raises is lost, with its traceback, and so it stays after a restart."""
    given = job(root, learner=cannot)
    history, said = run_twice(given)
    for reports in said:
        (lost,) = [report for report in reports if report.status == "lost"]
        assert lost.client == "c1"
        assert "OSError: no such scan" in lost.traceback
    require_same(history, given.run())


def lose_without_reasons(patch: pytest.MonkeyPatch) -> None:
    lose = Tasks.lose
    patch.setattr(Tasks, "lose", lambda self, task_id, reason, traceback="": lose(self, task_id, reason))


def take_the_lost_for_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeployedFederation, "_take_losses_in", lambda *args: None)


LOSSES: dict[str, Planting] = {
    "tracebacks are dropped": lose_without_reasons,
    "who is lost is late after a restart": take_the_lost_for_late,
}


def test_a_device_whose_code_raises_is_lost_with_its_traceback(tmp_path: Path) -> None:
    check_losses(tmp_path)


test_the_check_of_losses_catches = caught(check_losses, LOSSES)


def lost_while_closing(patch: pytest.MonkeyPatch) -> None:
    """Not a bug, but a moment: the goal is reached, and before the round is closed somebody says that it cannot."""
    close = Rounds.close

    def at_that_moment(self: Rounds, number: int, attempt: int, members: Sequence[int], *rest: object) -> None:
        if self.state(number, attempt, *rest) is RoundState.OPEN:  # type: ignore[arg-type]
            for (task_id,) in self._db.all("SELECT id FROM tasks WHERE client = 'c5' AND state = 'open'"):
                with self._db.writing("at that moment") as db:
                    db.execute("UPDATE tasks SET state = 'lost', reason = 'it cannot' WHERE id = ?", (task_id,))
        close(self, number, attempt, members, *rest)  # type: ignore[arg-type]

    patch.setattr(Rounds, "close", at_that_moment)


def check_lost_while_closing(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lost_while_closing(patch)
        _, said = run_twice(job(root, workflow=rd.Rounds(goal=5)), {"c5": silent})
    assert [by_status(reports)["lost"] for reports in said] == [{"c5"}, {"c5"}]


def test_who_is_lost_while_its_round_is_closed_is_lost_in_every_account(tmp_path: Path) -> None:
    check_lost_while_closing(tmp_path)


test_the_check_of_that_moment_catches = caught(
    check_lost_while_closing, {"who is lost is late": take_the_lost_for_late}
)


def vanish(kept: KeptTask, answer: bytes) -> bytes | None:
    raise Vanishes


def check_silence(root: Path) -> None:
    """The contract: a device that is silent for too long is lost; it comes back and takes part again."""
    given = job(root, algorithm=rd.Scaffold())
    memories: dict[str, dict[int, rd.messages.Memory]] = {}
    with deployed(given.prepared(), None, memories, {"c2": only_in_round(1, vanish)}) as deployment:
        go_on = deployment.run.standing.finish_round

        def then_it_is_back(*args: object) -> bool:
            if deployment.run.num_rounds_done == 0:
                deployment.join("c2")
            return go_on(*args)  # type: ignore[arg-type]

        deployment.run.standing.finish_round = then_it_is_back  # type: ignore[method-assign]
        deployment.start()
        history = deployment.finished()
        first, second = told(deployment)
    (lost,) = [report for report in first if report.status == "lost"]
    assert lost.client == "c2"
    assert "was silent for" in lost.reason
    assert by_status(second) == {"admitted": {f"c{i}" for i in range(6)}}
    assert history.sha256 == simulated(given, lambda client, task: client == "c2" and task.round == 1).sha256


def wait_for_the_silent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "_lose_the_silent", lambda self: None)


def once_lost_for_ever_lost(patch: pytest.MonkeyPatch) -> None:
    next_task = Board.next_task

    def planted(self: Board, client: str, doing: Collection[int]) -> KeptTask | None:
        lost = {kept.task.client for kept in self.journal.tasks.all(TaskState.LOST)}
        return None if client in lost else next_task(self, client, doing)

    patch.setattr(Board, "next_task", planted)


def test_a_device_that_falls_silent_is_lost_and_takes_part_again_when_it_is_back(tmp_path: Path) -> None:
    check_silence(tmp_path)


test_the_check_of_silence_catches = caught(check_silence, {
    "the silent are waited for": wait_for_the_silent,
    "who was lost gets nothing to do any more": once_lost_for_ever_lost,
})  # fmt: skip


def check_standstill(root: Path) -> None:
    """The contract: a server that stood still for an hour, in which it heard nobody, loses nobody for that."""
    given, stood, looked = job(root), threading.Event(), threading.Event()
    look, saw = Calls._lose_the_silent, Board.saw

    def later_s() -> float:
        return time.monotonic() + 3_600.0 * stood.is_set()

    def stand_still(kept: KeptTask, answer: bytes) -> bytes:
        stood.set()
        return answer

    def wait(kept: KeptTask, answer: bytes) -> bytes:
        looked.wait(devices.LIMIT_S)
        return answer

    def looking(self: Calls) -> None:
        look(self)
        if stood.is_set():
            looked.set()

    def seeing(self: Board, client: str) -> None:
        if looked.is_set() or not stood.is_set():
            saw(self, client)

    answering = {f"c{i}": only_in_round(1, wait if i else stand_still) for i in range(6)}
    with pytest.MonkeyPatch.context() as patch, deployed(given.prepared(), answering=answering) as deployment:
        deployment.board._now_s = later_s
        patch.setattr(Calls, "now_s", lambda self: later_s())
        patch.setattr(Calls, "_lose_the_silent", looking)
        patch.setattr(Board, "saw", seeing)
        deployment.start()
        history = deployment.finished()
    assert history.sha256 == given.run().sha256


def test_a_server_that_stood_still_loses_nobody(tmp_path: Path) -> None:
    check_standstill(tmp_path)


test_the_check_of_standing_still_catches = caught(
    check_standstill, {"what was not heard is silence": lambda patch: patch.setattr(calls, "LOOKED_OUT_FOR", 0)}
)


def test_who_has_never_joined_is_lost_by_name_and_one_client_is_enough_where_the_job_says_so(tmp_path: Path) -> None:
    given = job(tmp_path)
    absent = ("c0", "c1", "c2", "c4", "c5")
    with deployed(given.prepared(), absent=absent, wait_s=0.1) as deployment:
        deployment.start()
        history = deployment.finished()
        for reports in told(deployment):
            assert by_status(reports) == {"admitted": {"c3"}, "lost": set(absent)}
            for report in reports:
                assert report.status == "admitted" or report.reason == f"client {report.client!r} has never joined"
    assert history.sha256 == simulated(given, lambda client, task: client != "c3").sha256


def test_a_run_to_which_nobody_comes_says_so_and_can_be_gone_on_with(tmp_path: Path) -> None:
    given = job(tmp_path, num_rounds=1)
    everybody = tuple(f"c{i}" for i in range(6))
    with deployed(given.prepared(), absent=everybody, wait_s=0.1) as deployment:
        deployment.start()
        with pytest.raises(RoundelayError, match=r"none of the 6 clients came within 0.1 s \(c0, c1, .*join line"):
            deployment.finished()
        folder = deployment.run.folder
    with deployed(given.prepared(), folder) as deployment:
        deployment.start()
        assert deployment.finished().sha256 == given.run().sha256


def test_buffered_rounds_ask_somebody_who_never_joined_no_faster_than_they_wait_for_the_silent(tmp_path: Path) -> None:
    given = job(tmp_path, num_rounds=6, workflow=rd.Buffered(buffer_size=3, concurrency=6))
    with deployed(given.prepared(), absent=["c5"], wait_s=0.1, heartbeat_s=1.0) as deployment:
        deployment.start()
        deployment.finished()
        asked = [kept for kept in deployment.journal.tasks.all() if kept.task.client == "c5"]
    assert len(asked) <= 2

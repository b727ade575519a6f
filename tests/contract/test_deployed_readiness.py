"""Readiness on devices: their own loads are asked for, waited for, and told again after a crash."""

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from deployments import caught, require_same, rows
from devices import Answering, Deployment, deployed, eventually
from networks import Plain, small_job

import roundelay as rd
from roundelay import wire
from roundelay.client.exchange import Answered
from roundelay.deployment.board import Phase
from roundelay.deployment.journal.records import KeptTask, TaskState
from roundelay.deployment.running.calls import Calls
from roundelay.deployment.running.federation import NO_MODEL, DeployedFederation
from roundelay.deployment.running.told import Told
from roundelay.load import IDLE
from roundelay.messages import Memory
from roundelay.workflows.readiness import Readiness

LOADED = {"cpu_percent": 97.0}
IDLE_TOLD = IDLE.readings


def job(tmp_path: Path, readiness: Readiness | None = None, **changes: object) -> rd.Job:
    """Nothing is checkpointed: a run that goes on has its journal alone."""
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=1e9)
    settings: dict[str, object] = {
        "model": Plain, "clients_per_round": 1.0, "num_rounds": 3, "tracking": tracking,
        "workflow": rd.Rounds(readiness=readiness or Readiness()),
    }  # fmt: skip
    return small_job(**{**settings, **changes})


@dataclass
class Waiting:
    """Takes the place of real waits: notes them, lets loads fall, and can hold one up."""

    rests: list[float] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    kinds: list[set[str]] = field(default_factory=list)
    asked_at: list[int] = field(default_factory=list)  # how many waits there had been whenever c0 was asked
    held_at: int = 0
    holds: threading.Event = field(default_factory=threading.Event)

    def begin(self, deployment: Deployment, patch: pytest.MonkeyPatch, loaded: Mapping[str, int]) -> None:
        """Clients are loaded until so many waits are over."""

        async def rest(_: Calls, seconds: float) -> None:
            self.rests.append(seconds)
            assert len(self.rests) < 9, "it waits without end"
            board = deployment.board
            assert board.phase is Phase.PAUSED
            self.whys.append(board.reason)
            assert not deployment.journal.tasks.all(TaskState.OPEN), "nobody is asked for anything meanwhile"
            self.kinds.append({kept.task.kind for kept in deployment.journal.tasks.all()})
            if len(self.rests) == self.held_at:
                self.holds.set()
                await asyncio.Event().wait()

        patch.setattr(Calls, "rest", rest)
        for client, device in deployment.devices.items():
            device.load = self._load(client, loaded.get(client, 0))

    def _load(self, client: str, until: int) -> Callable[[], Mapping[str, float]]:
        def load() -> Mapping[str, float]:
            if client == "c0":
                self.asked_at.append(len(self.rests))
            return LOADED if len(self.rests) < until else IDLE_TOLD

        return load


def check_waiting(folder: Path) -> None:
    """Three of six are loaded: not more than half are ready, until the third wait is over."""
    waiting = Waiting()
    with pytest.MonkeyPatch.context() as patch, deployed(job(folder).prepared()) as deployment:
        waiting.begin(deployment, patch, {"c0": 99, "c1": 99, "c4": 3})
        deployment.start()
        history = deployment.finished()
    assert waiting.rests == [5.0, 10.0, 20.0]
    assert waiting.kinds == [{"load"}] * 3, "no round began before"
    assert waiting.asked_at == [0, 1, 2, 3, 3, 3], "before each round anew"
    assert (
        "round 1: 3 of 6 clients are ready, more than 50% are needed; not ready: c0 (cpu_percent 97)"
        in (waiting.whys[0])
    )
    assert [(row["ready"], row["waits"], row["admitted"]) for row in history.rows] == [(4, 3, 4), (4, 0, 4), (4, 0, 4)]
    came = {(row["client"], row["status"]) for row in history.clients()}
    assert came == {(f"c{n}", "busy" if n < 2 else "admitted") for n in range(6)}


def test_a_round_does_not_begin_before_the_load_falls_and_patience_grows(tmp_path: Path) -> None:
    check_waiting(tmp_path)


def test_a_round_of_devices_is_the_round_of_clients_that_are_loaded_alike(tmp_path: Path) -> None:
    """What is waited for real time there is waited for virtual time here: same bits, same rows."""
    given = job(tmp_path)
    waiting = Waiting()
    with pytest.MonkeyPatch.context() as patch, deployed(given.prepared()) as deployment:
        waiting.begin(deployment, patch, {"c0": 99, "c1": 99, "c4": 3})
        deployment.start()
        real = deployment.finished()
    never = {"c0": 1e9, "c1": 1e9, "c4": 20.0}

    def load(client: str, when: object) -> rd.Load:
        return rd.Load(cpu_percent=97.0) if when.at_s < never.get(client, 0.0) else IDLE  # type: ignore[attr-defined]

    simulated = job(tmp_path, simulation=rd.Simulation(executor="serial", load=load)).run()
    require_same(simulated, real)
    again = given.run(replay=real.run_folder)
    assert again.sha256 == real.sha256
    assert rows(again) == rows(real)
    assert again.clients() == real.clients()


# ---- what may be claimed --------------------------------------------------------------------------------------------


def claims(metrics: Mapping[str, float]) -> Answering:
    def answer(kept: KeptTask, raw: bytes) -> bytes:
        if kept.task.kind != "load":
            return raw
        return wire.to_bytes(Answered(kept.task.id, math.nan, True, metrics).frame())

    return answer


def with_a_model(kept: KeptTask, raw: bytes) -> bytes:
    if kept.task.kind != "load":
        return raw
    return wire.to_bytes(Answered(kept.task.id, 1.0, True, IDLE_TOLD, NO_MODEL).frame())


HOSTILE: dict[str, tuple[Answering, bool]] = {
    "beyond all bounds": (claims({"cpu_percent": 1e300, "memory_percent": -1.0}), True),
    "not a number": (claims({"cpu_percent": math.nan, "battery_percent": -math.inf}), True),
    "other names": (claims({f"loss_{i}": 1.0 for i in range(2_000)}), True),
    "garbage": (lambda kept, raw: bytes(100) if kept.task.kind == "load" else raw, False),
    "a model": (with_a_model, False),
}


@pytest.mark.parametrize(("answering", "is_ready"), HOSTILE.values(), ids=HOSTILE)
def test_a_claim_that_cannot_be_concerns_its_own_client_only(
    answering: Answering, is_ready: bool, tmp_path: Path
) -> None:
    """What is no percentage is unknown, and an unknown reading is not held against anybody; no answer is none."""
    with deployed(job(tmp_path, num_rounds=1).prepared(), answering={"c2": answering}) as deployment:
        deployment.start()
        history = deployment.finished()
        told = [answer.content for answer in deployment.journal.recorded() if answer.kind == "loads"]
    assert told == [dict.fromkeys(("c0", "c1", "c3", "c4", "c5"), IDLE_TOLD) | ({"c2": {}} if is_ready else {})]
    assert (history.rows[0]["ready"], history.rows[0]["admitted"]) == ((6, 6) if is_ready else (5, 5))


def test_who_does_not_say_in_time_is_left_out_and_not_waited_for(tmp_path: Path) -> None:
    def mute(kept: KeptTask, raw: bytes) -> bytes | None:
        return None if kept.task.kind == "load" else raw

    given = job(tmp_path, Readiness(answer_s=0.2), num_rounds=2)
    with deployed(given.prepared(), answering={"c3": mute}) as deployment:
        deployment.start()
        history = deployment.finished()
        states = {kept.state for kept in deployment.journal.tasks.all() if kept.task.client == "c3"}
    assert [(row["ready"], row["admitted"]) for row in history.rows] == [(5, 5), (5, 5)]
    assert states == {TaskState.CLOSED}, "it was asked twice for its load, and for nothing else"


# ---- crashes --------------------------------------------------------------------------------------------------------

DROPS = {"c0": 99, "c1": 99, "c4": 3}


def check_crash(folder: Path) -> None:
    """Killed in the second wait, before anything is checkpointed; meanwhile other clients have become busy, which
    changes nothing of what was told before.
    """
    undisturbed = Waiting()
    with pytest.MonkeyPatch.context() as patch, deployed(job(folder / "one").prepared()) as deployment:
        undisturbed.begin(deployment, patch, DROPS)
        deployment.start()
        whole = deployment.finished()
    memories: dict[str, dict[int, Memory]] = {}
    first, second = Waiting(held_at=2), Waiting(rests=[0.0, 0.0])
    given = job(folder / "two").prepared()
    with pytest.MonkeyPatch.context() as patch, deployed(given, memories=memories) as deployment:
        first.begin(deployment, patch, DROPS)
        deployment.start()
        eventually(lambda: first.holds.is_set() or deployment.over)
        run_folder = deployment.run.folder
        deployment.kill()
    with pytest.MonkeyPatch.context() as patch, deployed(given, run_folder, memories) as deployment:
        second.begin(deployment, patch, DROPS)
        second.rests = second.rests[:1]  # of the first life: the wait that was over
        deployment.start()
        resumed = deployment.finished()
    assert first.rests == [5.0, 10.0]
    assert second.rests == [0.0, 10.0, 20.0], "only the wait that was cut short is waited for again"
    assert second.asked_at == [2, 3, 3, 3], "what was told is not asked again"
    require_same(whole, resumed)


def test_a_server_that_is_killed_while_it_waits_goes_on_waiting(tmp_path: Path) -> None:
    check_crash(tmp_path)


def check_told_again(folder: Path) -> None:
    """Killed in the third round. Whoever was loaded before the first two is not any more, and does not take part in
    them for all that: the rounds of before are closed.
    """
    memories: dict[str, dict[int, Memory]] = {}
    given = job(folder).prepared()
    with deployed(given, memories=memories) as deployment:
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        deployment.devices["c0"].load = lambda: LOADED
        begun = iter(deployment.run)
        before = [next(begun), next(begun)]
        run_folder = deployment.run.folder
        begun.close()  # type: ignore[attr-defined]
    with deployed(given, run_folder, memories) as deployment:
        deployment.start()
        history = deployment.finished()
        asked = [kept.task.round for kept in deployment.devices["c0"].tasks if kept.task.kind == "load"]
    assert asked == [3]
    assert [row["ready"] for row in history.rows] == [5, 5, 6]
    for row, finished in zip(history.rows, before, strict=False):
        assert row["train_loss"] == finished.row["train_loss"]


def test_what_was_told_before_a_crash_is_told_again(tmp_path: Path) -> None:
    check_told_again(tmp_path)


def forgets(patch: pytest.MonkeyPatch) -> None:
    """Loads are not in the journal."""
    note = Told.note
    patch.setattr(Told, "note", lambda self, kind, content: None if kind == "loads" else note(self, kind, content))


def waits_again(patch: pytest.MonkeyPatch) -> None:
    async def rest(self: DeployedFederation, seconds: float, why: str) -> None:
        self._board.turn(Phase.PAUSED, why)
        await self._calls.rest(seconds)
        self._board.turn(Phase.RUNNING)

    patch.setattr(DeployedFederation, "rest", rest)


LOADS_OF = DeployedFederation.loads


def asks_once(patch: pytest.MonkeyPatch) -> None:
    """Only the first answers count, for all rounds."""

    async def loads(self: DeployedFederation, *asked: object) -> Mapping[str, rd.Load]:
        if not hasattr(self, "first"):
            self.first = await LOADS_OF(self, *asked)  # type: ignore[attr-defined, arg-type]
        return self.first  # type: ignore[attr-defined, no-any-return]

    patch.setattr(DeployedFederation, "loads", loads)


def believes_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Readiness, "_enough", lambda *_: True)


test_a_course_that_is_not_kept_is_found = caught(check_told_again, {"forgets": forgets})
test_a_crash_that_costs_waits_is_found = caught(check_crash, {"waits again": waits_again})
test_a_server_that_does_not_wait_is_found = caught(
    check_waiting, {"believes everybody": believes_everybody, "asks once": asks_once}
)

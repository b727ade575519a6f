"""Who belongs to a round of devices, when it closes, when a run pauses and how it goes on after a restart."""

import ast
import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from deployments import Memories, by_status, caught, job, require_same, run_on, run_twice, silent, simulated
from devices import Turns, deployed, eventually

import roundelay as rd
from roundelay.deployment.board import Phase
from roundelay.deployment.journal.records import Round
from roundelay.deployment.journal.rounds import Rounds
from roundelay.deployment.running import calls, federation
from roundelay.deployment.running.asking import Asking
from roundelay.deployment.running.calls import Calls
from roundelay.deployment.running.federation import DeployedFederation
from roundelay.deployment.running.world import Deployed
from roundelay.errors import JournalMismatch
from roundelay.intake import Intake
from roundelay.messages import Task

ORDER = ("c4", "c1", "c5", "c0", "c3", "c2")
SOURCE = Path(__file__).parents[2] / "src" / "roundelay" / "deployment"

# ---- the goal -------------------------------------------------------------------------------------------------------


def check_goal(root: Path) -> None:
    """The contract: at the goal a round is closed with those who came first, and stays theirs after a restart."""
    for workflow, per_round in ((rd.Rounds(goal=3), 6), (rd.Rounds(over_selection=1.0), 3)):
        given = job(root, num_rounds=1, workflow=workflow, clients_per_round=per_round)
        history, (reports,) = run_twice(given, turns=Turns(ORDER[:3]))
        assert by_status(reports) == {"admitted": set(ORDER[:3]), "late": set(ORDER[3:])}
        late = replace(given, workflow=rd.Rounds(), clients_per_round=6)
        assert history.sha256 == simulated(late, lambda client, task: client not in ORDER[:3]).sha256


def full_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "closed", property(lambda self: self._num_admitted >= self._goal - 1))


def never_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "closed", property(lambda self: len(self._reports) == len(self._order)))


def forget_a_member(patch: pytest.MonkeyPatch) -> None:
    get = Rounds.get

    def planted(self: Rounds, number: int, attempt: int, group: str = "") -> Round | None:
        known = get(self, number, attempt, group)
        return None if known is None else replace(known, members=known.members[1:])

    patch.setattr(Rounds, "get", planted)


def test_at_the_goal_a_round_is_that_of_those_who_came_first(tmp_path: Path) -> None:
    check_goal(tmp_path)


test_the_check_of_goals_catches = caught(check_goal, {
    "a round that closes too early": full_too_early,
    "a round that never closes": never_full,
    "a member is forgotten": forget_a_member,
})  # fmt: skip


def check_order(root: Path) -> None:
    """The contract: what has come while nobody waited for it is heard of in the order in which it came."""
    given = job(root, num_rounds=1)
    history, _, _ = run_on(given, None, {}, turns=Turns(ORDER))
    heard: list[int] = []
    with deployed(given.prepared(), history.run_folder, absent=ORDER) as deployment:
        tasks = [kept.task for kept in deployment.journal.tasks.all()]

        async def listen() -> None:
            Calls(deployment.board, asyncio.get_running_loop()).expect(tasks, heard.append)

        asyncio.run(listen())
    clients = {task.id: task.client for task in tasks}
    assert [clients[task_id] for task_id in heard] == list(ORDER)


def hear_by_task(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(calls, "sorted", lambda here: sorted(here, key=lambda pair: pair[1]), raising=False)


def test_what_came_while_nobody_waited_is_heard_of_in_the_order_of_arrival(tmp_path: Path) -> None:
    check_order(tmp_path)


test_the_check_of_order_catches = caught(check_order, {"by task": hear_by_task})

# ---- the deadline ---------------------------------------------------------------------------------------------------


def test_at_the_deadline_a_round_is_that_of_those_who_came(tmp_path: Path) -> None:
    given = job(tmp_path, workflow=rd.Rounds(deadline_s=0.5), algorithm=rd.Scaffold())
    history, said = run_twice(given, {"c0": silent, "c5": silent})
    assert [by_status(reports)["late"] for reports in said] == [{"c0", "c5"}] * 2
    require_same(history, simulated(given, lambda client, task: client in ("c0", "c5")))


def check_deadline(root: Path) -> None:
    """The contract: after a restart, no more of the time is left than was left before."""
    given = job(root, num_rounds=1, workflow=rd.Rounds(deadline_s=100.0))
    left: list[float] = []
    answers, passed_s = Calls.answers, 0.0

    def watched(self: Calls, tasks: Sequence[Task], until_s: float | None, tick_s: float | None) -> object:
        nonlocal passed_s
        assert until_s is not None
        left.append(until_s - self.now_s())
        if len(left) > 1:
            passed_s += 100.0
        return answers(self, tasks, until_s, tick_s)

    def noted(rounds: Rounds) -> bool:
        nonlocal passed_s
        passed_s += 0.01
        return any(one.elapsed_s >= 0.2 for one in rounds.all())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation, "TICK_S", 0.02)
        patch.setattr(Calls, "answers", watched)
        patch.setattr(Calls, "now_s", lambda self: passed_s)
        memories: Memories = {}
        with deployed(given.prepared(), None, memories, {"c0": silent}) as deployment:
            folder, rounds = deployment.run.folder, deployment.journal.rounds
            deployment.start()
            eventually(lambda: noted(rounds))
            deployment.kill()
        assert deployment.run.num_rounds_done == 0
        run_on(given, folder, memories, {"c0": silent})
    assert left[0] <= 100.0
    assert left[1] <= 99.8


def begin_the_time_anew(patch: pytest.MonkeyPatch) -> None:
    opens = Rounds.open
    patch.setattr(Rounds, "open", lambda self, opening: replace(opens(self, opening), elapsed_s=0.0))


def note_no_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rounds, "tick", lambda *args: None)


def test_a_deadline_survives_a_restart(tmp_path: Path) -> None:
    check_deadline(tmp_path)


test_the_check_of_deadlines_catches = caught(
    check_deadline, {"time begins anew": begin_the_time_anew, "no time is noted": note_no_time}
)

# ---- the quorum -----------------------------------------------------------------------------------------------------


def check_quorum(root: Path) -> None:
    """The contract: below its quorum nothing is folded. The run pauses and says who is missing, after a restart too,
    until enough are there.
    """
    given = job(root, workflow=rd.Rounds(quorum=5, attempts=2))
    memories: Memories = {}
    absent = ("c4", "c5")
    with deployed(given.prepared(), None, memories, absent=absent, wait_s=0.1) as deployment:
        board, folder = deployment.board, deployment.run.folder
        deployment.start()
        eventually(lambda: board.phase is Phase.PAUSED or deployment.over)
        assert (board.phase, deployment.over) == (Phase.PAUSED, False)
        assert "quorum is 5; missing: c4, c5" in board.reason
        asked = deployment.asked
        deployment.kill()
    with deployed(given.prepared(), folder, memories, absent=absent) as deployment:
        board = deployment.board
        deployment.start()
        eventually(lambda: board.phase is Phase.PAUSED or deployment.over)
        assert deployment.asked == [], "attempts that failed are made once more"
        assert "4 of 6 updates admitted, quorum is 5; missing: c4, c5" in board.reason
        deployment.join("c4")
        history = deployment.finished()
        assert not set(asked) & set(deployment.asked)
    assert [(row["admitted"], row["lost"], row["attempt"]) for row in history.rows] == [(5, 1, 2), (5, 1, 0)]


def never_pause(patch: pytest.MonkeyPatch) -> None:
    async def planted(*args: object) -> bool:
        return False

    patch.setattr(DeployedFederation, "stalled", planted)


def be_content_with_less(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rd.Rounds, "shortfall", lambda self, outcome: None)


def go_on_with_anybody(patch: pytest.MonkeyPatch) -> None:
    async def planted(self: Calls, why: str, clients: Sequence[str], needed: int) -> None:
        self._board.turn(Phase.PAUSED, f"{why}; missing: c4, c5")

    patch.setattr(Calls, "pause", planted)


def ask_again_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Asking, "again", lambda *args: None)


def test_below_its_quorum_a_run_pauses_until_enough_are_back(tmp_path: Path) -> None:
    check_quorum(tmp_path)


test_the_check_of_quorums_catches = caught(check_quorum, {
    "it never pauses": never_pause,
    "less is enough": be_content_with_less,
    "it goes on with anybody": go_on_with_anybody,
    "what was asked is asked again": ask_again_after_a_restart,
})  # fmt: skip


def check_patience(root: Path) -> None:
    """The contract: where enough are there for another draw, a run does not wait for ever for one who never comes."""
    given = job(root, num_rounds=1, clients_per_round=3, workflow=rd.Rounds(quorum=3))
    with deployed(given.prepared(), absent=["c0"], wait_s=0.1, heartbeat_s=0.05) as deployment:
        deployment.start()
        (row,) = deployment.finished().rows
    assert row["admitted"] == 3
    assert row["attempt"] >= 1, "choose another one to be absent: the first draw left this one out"


def test_a_pause_in_which_enough_are_there_ends_by_itself(tmp_path: Path) -> None:
    check_patience(tmp_path)


test_the_check_of_patience_catches = caught(
    check_patience, {"without end": lambda patch: patch.setattr(calls, "PATIENCE", float("inf"))}
)


# ---- the end of a run that waits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for", ["clients", "answers"])
def test_a_run_that_waits_is_interrupted_and_gone_on_with(waits_for: str, tmp_path: Path) -> None:
    given, memories = job(tmp_path), dict(Memories())
    absent = ("c3",) if waits_for == "clients" else ()
    with deployed(given.prepared(), None, memories, {"c3": silent}, absent) as deployment:
        folder, board = deployment.run.folder, deployment.board
        deployment.start()
        phase, num_updates = (Phase.WAITING, 0) if absent else (Phase.RUNNING, 5)
        eventually(lambda: board.phase is phase and len(deployment.journal.updates()) == num_updates)
        deployment.interrupt()
        with pytest.raises(KeyboardInterrupt):
            deployment.finished()
    history, _, _ = run_on(given, folder, memories)
    require_same(history, given.run())


def check_early(root: Path) -> None:
    given = job(root)
    loop = Deployed.loop
    with pytest.MonkeyPatch.context() as patch, deployed(given.prepared(), absent=ORDER) as deployment:

        def at_once(self: Deployed) -> asyncio.AbstractEventLoop:
            self.interrupt()
            return loop(self)

        patch.setattr(Deployed, "loop", at_once)
        deployment.start()
        with pytest.raises(KeyboardInterrupt):
            deployment.finished()


def hear_of_nothing_before_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Calls, "begin", lambda self: setattr(self, "_run", asyncio.current_task()))


def test_an_interruption_that_comes_before_the_run_waits_is_not_lost(tmp_path: Path) -> None:
    check_early(tmp_path)


test_the_check_of_early_interruptions_catches = caught(
    check_early, {"what came before is not heard": hear_of_nothing_before_the_start}
)


def test_a_journal_that_is_further_than_the_checkpoint_is_said_to_be_so(tmp_path: Path) -> None:
    given = job(tmp_path)
    with deployed(given.prepared()) as deployment:
        deployment.start()
        folder = deployment.finished().run_folder
        deployment.checkpointed()
    assert folder is not None
    (folder / "checkpoint.pt").unlink()
    with deployed(given.prepared(), folder) as deployment:
        deployment.start()
        with pytest.raises(
            JournalMismatch, match=r"up to round 2, but the run folder's checkpoint.pt is that of round 0"
        ):
            deployment.finished()


def test_what_time_of_day_it_is_decides_nothing() -> None:
    """A wall clock may jump; whoever waits, or tells who is late, asks a monotonic one."""
    parts = [SOURCE / "board.py", *(SOURCE / "running").glob("*.py"), *(SOURCE / "journal").glob("*.py")]
    for part in parts:
        tree = ast.parse(part.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        taken = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"time", "datetime"} & taken, part
        assert "datetime" not in imported, part
        assert "time" not in imported or attributes & {"monotonic", "monotonic_ns"}, part
        clocks = {
            node.attr for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
        }  # fmt: skip
        assert clocks <= {"monotonic", "monotonic_ns"}, part

"""Jobs on devices, as tests of faults run them: to their end, and once more from the journal alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import devices
import pytest
from devices import Answering, Deployment, Turns, deployed
from networks import Plain, small_job

import roundelay as rd
from roundelay.deployment.journal.records import KeptTask
from roundelay.errors import RoundelayError
from roundelay.intake import ClientReport
from roundelay.messages import Memory
from roundelay.tracking.run_folder import Row

REAL = ("seconds", "virtual_s")
"""What real time decides."""

Memories = dict[str, dict[int, Memory]]
Told = list[tuple[ClientReport, ...]]
Planting = Callable[[pytest.MonkeyPatch], None]


def job(root: Path, **changes: object) -> rd.Job:
    """All six clients in every round, and no checkpoint but those that a test asks for."""
    tracking = rd.Tracking(root=str(root / "runs"), checkpoint_every_s=1e9)
    settings: dict[str, object] = {"model": Plain, "num_rounds": 2, "clients_per_round": 6, "tracking": tracking}
    return small_job(**{**settings, **changes})


def simulated(given: rd.Job, late: Callable[[str, rd.Task], bool]) -> rd.History:
    """The same job in virtual time, in which some are late and everybody else is in time."""
    workflow = replace(given.workflow, deadline_s=1.0)
    simulation = rd.Simulation(executor="serial", duration=lambda client, task: 2.0 if late(client, task) else 0.0)
    return replace(given, workflow=workflow, simulation=simulation).run()


def rows(history: rd.History) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in REAL} for row in history.rows]


def require_same(one: rd.History, other: rd.History) -> None:
    assert one.sha256 == other.sha256
    assert rows(one) == rows(other)
    assert one.clients() == other.clients()


def told(deployment: Deployment) -> Told:
    return [tuple(finished.clients) for finished in deployment.rounds]


def by_status(reports: Sequence[ClientReport]) -> dict[str, set[str]]:
    return {status: {one.client for one in reports if one.status == status} for status in {r.status for r in reports}}


def run_on(
    given: rd.Job, folder: Path | None, memories: Memories, answering: Mapping[str, Answering] = {},
    turns: Turns | None = None,
) -> tuple[rd.History, Told, list[int]]:  # fmt: skip
    """Run a job to its end, with nothing checkpointed; return what it came to, what was told of each client, and the
    tasks that devices were given.
    """
    answers = turns.answering() if turns else answering
    with deployed(given.prepared(), folder, memories, answers) as deployment:
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        if turns:
            turns.watch(deployment)
        deployment.start()
        return deployment.finished(), told(deployment), deployment.asked


def run_twice(given: rd.Job, answering: Mapping[str, Answering] = {}, turns: Turns | None = None) -> tuple[
    rd.History, Told
]:  # fmt: skip
    """Run a job, and once more from its journal alone, which must come to the same and ask nobody anything."""
    memories: Memories = {}
    first, said, _ = run_on(given, None, memories, answering, turns)
    again, said_again, asked = run_on(given, first.run_folder, memories)
    assert not asked, "somebody was asked twice"
    require_same(first, again)
    assert said == said_again
    return first, said


def silent(kept: KeptTask, answer: bytes) -> bytes | None:
    return None


def only_in_round(number: int, then: Answering) -> Answering:
    return lambda kept, answer: then(kept, answer) if kept.task.round == number else answer


def caught(check: Callable[[Path], None], plantings: Mapping[str, Planting]) -> Callable[..., None]:
    """Return a test: on each planted bug, the check fails."""

    @pytest.mark.parametrize("plant", plantings.values(), ids=plantings)
    def test(plant: Planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "LIMIT_S", 1.5)  # what a bug keeps from coming is not waited for long
        plant(monkeypatch)
        with pytest.raises((AssertionError, RoundelayError, KeyError)):
            check(tmp_path)

    return test

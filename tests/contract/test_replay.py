"""A run on devices is reproduced in simulation from its journal: who was in time there is in time here."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from devices import Answering, deployed
from networks import Plain, small_job

import roundelay as rd
from roundelay.course import ADMITTED, Course
from roundelay.deployment.journal.records import KeptTask
from roundelay.errors import ConfigError

REAL = ("seconds", "virtual_s", "bytes_up")
"""What real time decides, and, where an answer was refused, how long it was."""


def job(tmp_path: Path, **changes: object) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=0.0)
    # without dropout: devices that are threads share the process's generator with a run that evaluates beside them
    return small_job(tracking=tracking, simulation=rd.Simulation(executor="serial"), model=Plain, **changes)


def served(given: rd.Job, answering: Mapping[str, Answering] = {}) -> rd.History:
    with deployed(given.prepared(), answering=answering) as deployment:
        for _ in deployment.run:
            pass
    return deployment.run.history()


def rows(history: rd.History) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in REAL} for row in history.rows]


def require_reproduced(real: rd.History, given: rd.Job) -> None:
    assert real.run_folder is not None
    again = given.run(replay=real.run_folder)
    assert again.sha256 == real.sha256
    assert rows(again) == rows(real)
    assert [dict(row) for row in again.clients()] == [dict(row) for row in real.clients()]


def silent(rounds: set[int]) -> Answering:
    def answer(kept: KeptTask, raw: bytes) -> bytes | None:
        return None if kept.task.round in rounds else raw

    return answer


def spoiled(rounds: set[int]) -> Answering:
    def answer(kept: KeptTask, raw: bytes) -> bytes | None:
        return raw[:40] + bytes(40) + raw[80:] if kept.task.round in rounds else raw

    return answer


@pytest.mark.parametrize(
    "changes",
    [
        {"workflow": rd.Rounds(goal=3), "clients_per_round": 1.0, "algorithm": rd.Scaffold()},
        {"workflow": rd.Rounds(over_selection=0.5)},
        {"workflow": rd.Buffered(buffer_size=2), "num_rounds": 6},
        {"workflow": rd.CrossSite()},
    ],
    ids=["goal", "over-selection", "buffered", "cross-site"],
)
def test_who_came_first_comes_first_again(tmp_path: Path, changes: dict[str, object]) -> None:
    given = job(tmp_path, **changes)
    require_reproduced(served(given), given)


def test_who_was_late_lost_or_refused_is_so_again(tmp_path: Path) -> None:
    given = job(tmp_path, clients_per_round=1.0, workflow=rd.Rounds(deadline_s=0.6), num_rounds=3)
    real = served(given, {"c1": silent({1, 3}), "c2": spoiled({2}), "c4": spoiled({1})})
    came = [(row["late"], row["refused"]) for row in real.rows]
    assert came == [(1, 1), (0, 1), (1, 0)]
    require_reproduced(real, given)


def test_a_replay_without_the_course_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sees something: were everybody in time, the bits would be others."""
    given = job(tmp_path, clients_per_round=1.0, workflow=rd.Rounds(deadline_s=0.6), num_rounds=2)
    real = served(given, {"c1": silent({1})})
    monkeypatch.setattr("roundelay.replaying._end", lambda kept, received: ADMITTED)
    with pytest.raises(AssertionError):
        require_reproduced(real, given)


def test_what_cannot_be_replayed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = job(tmp_path, num_rounds=2)
    simulated = given.run()
    with pytest.raises(ConfigError, match="no run on real devices"):
        given.run(replay=simulated.run_folder)
    real = served(given)
    with pytest.raises(ConfigError, match="is a run of another job: its seed"):
        job(tmp_path, num_rounds=2, seed=99).run(replay=real.run_folder)
    monkeypatch.setattr("roundelay.replaying.course_of", lambda folder: Course({}, (), 2))
    with pytest.raises(ConfigError, match="went another way"):
        given.run(replay=real.run_folder)

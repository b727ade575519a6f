"""A run on devices after a loss of power: three rounds are recorded, call by call of the journal, and cut off.

From whatever the disk then holds of the journal, and what the devices remember, the run ends in the same bits, and asks
nobody again for what it has acknowledged.
"""

import shutil
from pathlib import Path

import devices
import pytest
from crashes import AcknowledgedBeforeCommitted, Recorder, crashes
from deployments import Memories, job, require_same
from devices import deployed
from figures import Figures

import roundelay as rd
from roundelay.deployment.journal.records import KeptTask
from roundelay.deployment.running.asking import Asking


def uninterrupted(given: rd.Job, memories: Memories, disk_of: type[Recorder]) -> tuple[rd.History, Recorder]:
    disks: list[Recorder] = []

    def recording(folder: Path) -> Recorder:
        disks.append(disk_of(folder))
        return disks[0]

    def acknowledged(kept: KeptTask) -> None:
        disks[0].tell("ack", kept.task.id)

    with deployed(given.prepared(), None, memories, disk_of=recording) as deployment:
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        for device in deployment.devices.values():
            device.accepted = acknowledged
        deployment.start()
        history = deployment.finished()
        return history, disks[0]


def check(root: Path, every: int, seed: int = 0, disk_of: type[Recorder] = Recorder) -> tuple[int, int]:
    """Go on from every so manyth state; return how many states there are, and from how many it went on."""
    given = job(root, num_rounds=3, algorithm=rd.Scaffold())
    memories: Memories = {}
    whole, disk = uninterrupted(given, memories, disk_of)
    assert whole.run_folder is not None
    count = gone_on = 0
    for count, (number, what, told, left) in enumerate(crashes(disk, seed=seed, run="journal"), start=1):
        if (count + seed) % every:
            continue
        folder = root / "runs" / f"after crash {count}"
        shutil.copytree(whole.run_folder, folder, ignore=shutil.ignore_patterns("journal"))
        if (left / "journal").is_dir():
            shutil.copytree(left / "journal", folder / "journal")
        try:
            go_on(given, folder, memories, whole, {task for _, task in told})
        except Exception as error:
            raise AssertionError(f"cut off after call {number}, {what}") from error
        shutil.rmtree(folder)
        gone_on += 1
    return count, gone_on


def go_on(given: rd.Job, folder: Path, memories: Memories, whole: rd.History, acknowledged: set[object]) -> None:
    with deployed(given.prepared(), folder, memories) as deployment:
        deployment.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        deployment.start()
        require_same(deployment.finished(), whole)
        assert not acknowledged.intersection(deployment.asked), "somebody was asked again"


def note(figures: Figures, states: int, gone_on: int) -> None:
    figures("states", states)
    figures("states gone on from to the same end", gone_on)


def test_a_run_goes_on_from_what_a_loss_of_power_left(tmp_path: Path, figures: Figures) -> None:
    note(figures, *check(tmp_path, every=80))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_run_goes_on_from_what_any_loss_of_power_left(tmp_path: Path, figures: Figures, chaos_seed: int) -> None:
    note(figures, *check(tmp_path, every=5, seed=chaos_seed))


# ---- planted bugs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LIMIT_S", 1.5)  # what a bug keeps from coming


@pytest.mark.slow
@pytest.mark.usefixtures("_no_long_wait")
def test_an_acknowledgement_before_the_commit_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cut off after call"):
        check(tmp_path, every=5, disk_of=AcknowledgedBeforeCommitted)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_long_wait")
def test_a_server_that_asks_again_after_a_crash_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asking, "again", lambda *rest: None)
    with pytest.raises(AssertionError, match="cut off after call"):
        check(tmp_path, every=10)

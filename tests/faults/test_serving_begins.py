"""A crash in the first or the last moments of a served run: the same command finds its way from what is there."""

import socket
from pathlib import Path

import pytest
from networks import small_job

import roundelay as rd
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.trust.place import Place
from roundelay.errors import NoJournal, ServeError
from roundelay.serving import OVER, Serving, unfinished
from roundelay.tracking.run_folder import JOURNAL


def job(tmp_path: Path, **changes: object) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path / "runs"))
    return small_job(tracking=tracking, simulation=rd.Simulation(executor="serial"), **changes)


def opened(job: rd.Job, tmp_path: Path) -> Path:
    """Open the door and let go of all again; return the run folder."""
    serving = Serving(job.prepared(), Place(tmp_path / "server", "127.0.0.1", 0, insecure=True))
    folder = serving.run.folder
    serving._let_go()
    serving.run.standing.close("interrupted", "")
    assert folder is not None
    return folder


def test_a_journal_that_a_crash_kept_from_being_begun_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_same_run", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(job(tmp_path), tmp_path)
    (left,) = (tmp_path / "runs").glob("*/journal/journal.db")
    with pytest.raises(NoJournal, match="never begun"):
        Journal(left.parent, None)
    assert opened(job(tmp_path), tmp_path) == left.parents[1]


def test_a_server_that_cannot_listen_lets_go_of_its_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place(tmp_path / "server", "127.0.0.1", taken.getsockname()[1], insecure=True)
        with pytest.raises(ServeError, match="the port is taken") as failed:
            Serving(job(tmp_path).prepared(), place)
    (left,) = (tmp_path / "runs").iterdir()
    assert opened(job(tmp_path), tmp_path) == left
    assert failed.tb is not None, "what a notebook keeps of an error, and all that hangs on it"


def test_a_run_is_over_when_its_clients_could_hear_so_and_not_before(tmp_path: Path) -> None:
    folder = opened(job(tmp_path), tmp_path)
    (folder / "state.json").write_text('{"state": "finished"}')  # killed in the farewell
    assert unfinished(job(tmp_path).prepared()) == folder
    assert opened(job(tmp_path), tmp_path) == folder
    (folder / JOURNAL / OVER).touch()
    assert unfinished(job(tmp_path).prepared()) is None


def test_a_changed_job_finds_no_run_of_its_own(tmp_path: Path) -> None:
    opened(job(tmp_path), tmp_path)
    changed = job(tmp_path, learner=rd.LocalSGD(lr=0.25, batch_size=4))
    assert unfinished(changed.prepared()) is None
    assert unfinished(job(tmp_path, num_rounds=9).prepared()) is not None

"""Serving: a run is found again by its job, waits for a disk that is full, and is told of in one line."""

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from devices import Device
from networks import small_job

import roundelay as rd
from roundelay import serving as module
from roundelay.deployment.board import Phase
from roundelay.deployment.journal.rounds import Rounds as JournalRounds
from roundelay.deployment.protocol import Holding
from roundelay.errors import ConfigError, DiskError, RoundelayError
from roundelay.messages import Memory
from roundelay.serving import Place, Serving, unfinished
from roundelay.standing import Standing

Memories = dict[str, dict[int, Memory]]


def job(tmp_path: Path, **changes: object) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path / "runs"), checkpoint_every_s=0.0)
    return small_job(
        tracking=tracking, simulation=rd.Simulation(executor="serial"), deployment=rd.Deployment(heartbeat_s=0.2),
        num_rounds=3, **changes,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices without a network never hear that the run is over."""
    monkeypatch.setattr(module, "FAREWELL_S", 0.0)


def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "server", host="127.0.0.1", port=0, insecure=True)


@contextmanager
def attended(serving: Serving, given: rd.Job, memories: Memories | None = None) -> Iterator[None]:
    """Let every client do its tasks, without a network."""
    prepared, memories = given.prepared(), {} if memories is None else memories
    devices = []
    for client in prepared.work.data.clients:
        serving.journal.clients.admit(client, "0" * 64)
        devices.append(Device(serving.board, prepared, serving.run, client, memories.setdefault(client, {})))
    try:
        yield
    finally:
        for device in devices:
            device.leave()


def trained(serving: Serving, given: rd.Job, memories: Memories | None = None) -> rd.History:
    with attended(serving, given, memories):
        return serving.train()


def test_a_served_run_ends_as_the_simulated_one_and_is_not_gone_on_with(tmp_path: Path) -> None:
    given = job(tmp_path)
    serving = Serving(given.prepared(), place(tmp_path))
    assert serving.join_line.startswith("roundelay join http://127.0.0.1:")
    assert serving.missing == list(serving.clients)
    with pytest.raises(ConfigError, match="going on in another process"):
        Serving(given.prepared(), place(tmp_path))
    history = trained(serving, given)
    assert history.sha256 == given.run().sha256
    assert unfinished(given.prepared()) is None, "it came to its end"
    assert threading.active_count() < 20


def test_a_run_that_stopped_is_found_by_its_job_and_by_no_other(tmp_path: Path) -> None:
    given = job(tmp_path)
    memories: Memories = {}
    serving = Serving(given.prepared(), place(tmp_path))
    with attended(serving, given, memories):
        rounds = serving.rounds()
        next(rounds)
        rounds.close()
    assert unfinished(given.prepared()) == serving.run.folder
    assert unfinished(replace(given, num_rounds=9).prepared()) == serving.run.folder, "longer, but the same"
    assert unfinished(replace(given, seed=99).prepared()) is None
    with pytest.raises(ConfigError, match=r"is a run on real devices.* roundelay serve"):
        given.run(resume=serving.run.folder)
    again = Serving(given.prepared(), place(tmp_path))
    assert again.journal.run.id == serving.journal.run.id
    assert again.run.num_rounds_done == 1
    assert again.missing == []
    assert trained(again, given, memories).sha256 == given.run().sha256


@pytest.mark.parametrize("where", ["the journal", "the checkpoint", "the checkpoint, and at closing"])
def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    given = job(tmp_path)
    undisturbed = given.run()
    full = [True, True] if where.endswith("closing") else [True]
    looks = iter([False, True])
    phases: list[Phase] = []

    def close(self: JournalRounds, *args: object, **named: object) -> None:
        if full:
            full.pop()
            raise DiskError("the disk is full: make room")
        closed(self, *args, **named)  # type: ignore[arg-type]

    def checkpoint(self: Standing) -> None:
        if full and self.num_rounds_done == 2:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        checkpointed(self)

    def look(folder: Path) -> bool:
        phases.append(serving.board.phase)
        return next(looks)

    closed, checkpointed = JournalRounds.close, Standing.checkpoint
    if where == "the journal":
        monkeypatch.setattr(JournalRounds, "close", close)
    else:
        monkeypatch.setattr(Standing, "checkpoint", checkpoint)
    monkeypatch.setattr(module, "_has_room", look)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    serving = Serving(given.prepared(), place(tmp_path))
    history = trained(serving, given)
    assert history.sha256 == undisturbed.sha256
    assert [row["round"] for row in history.clients()] == [row["round"] for row in undisturbed.clients()]
    assert phases == [Phase.PAUSED, Phase.PAUSED]


def test_what_does_not_pass_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoint(self: Standing) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    given = job(tmp_path)
    serving = Serving(given.prepared(), place(tmp_path))
    monkeypatch.setattr(Standing, "checkpoint", checkpoint)
    with pytest.raises(OSError, match="Read-only"):
        trained(serving, given)


def test_room_is_found_by_writing(tmp_path: Path) -> None:
    assert module._has_room(tmp_path)
    assert not module._has_room(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_what_clients_tell_of_their_data_is_kept(tmp_path: Path) -> None:
    given = job(tmp_path, clients_per_round=1.0)
    serving = Serving(given.prepared(["a", "b"]), place(tmp_path))
    standing, folder = serving.run.standing, serving.run.folder
    assert folder is not None
    standing.keep_data("a", Holding(num_examples=3, label_counts=[1, 2]))
    assert not (folder / "label_counts.json").exists(), "b has not told"
    standing.keep_data("b", Holding(num_examples=5, label_counts=[2, 0, 3]))
    assert json.loads((folder / "data.json").read_text())["a"] == {"num_examples": 3, "label_counts": [1, 2]}
    assert json.loads((folder / "label_counts.json").read_text())["counts"] == [[1, 2, 0], [2, 0, 3]]
    serving.rounds().close()
    serving._let_go()


def test_nobody_comes(tmp_path: Path) -> None:
    given = replace(job(tmp_path), deployment=rd.Deployment(heartbeat_s=0.2, wait_for_clients_s=0.3))
    lines: list[str] = []
    with pytest.raises(RoundelayError, match="none of the 6 clients came"):
        given.serve(folder=tmp_path / "server", host="127.0.0.1", port=0, say=lines.append)
    assert "roundelay join https://127.0.0.1:" in lines[0]
    assert "--pin" in lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking": None}, "kept in a run folder"),
        ({"attacks": (rd.attacks.SignFlip(fraction=0.5),)}, "attacks are played by simulated clients"),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    given = replace(job(tmp_path), **changes)
    with pytest.raises(ConfigError, match=message):
        Serving(given.prepared(), place(tmp_path))

"""What a client remembers between rounds: pending until its update was folded, and the same in every executor."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from networks import examples, small_job
from torch import Tensor, nn

import roundelay as rd
from roundelay.algorithms.protocol import ClientHalf, Fit, Reply, State
from roundelay.errors import ConfigError
from roundelay.intake import Outcome
from roundelay.messages import Memory
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.memory import ClientMemory, Disk
from roundelay.standing import Standing

SERIAL, POOL = rd.Simulation(executor="serial"), rd.Simulation(num_workers=2)
executors = pytest.mark.parametrize("simulation", [SERIAL, POOL], ids=["serial", "processes"])


@dataclass(frozen=True, slots=True)
class Drifting:
    """Averaging whose clients remember where they went last and lean that way: every bit depends on every memory.

    They may also keep so many ``notes`` of one value each, and a ``diary`` that grows by a vector a turn.
    """

    notes: int = 0
    diary: bool = False
    uplink: ClassVar[Mapping[str, str]] = {"params": "examples"}

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        notes = {f"note {i}": torch.zeros(1) for i in range(self.notes)}
        return {"drift": torch.zeros_like(params), "turns": torch.zeros(1, dtype=torch.int64), **notes}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start = received["params"]
        end = yield Fit(start + 0.1 * memory["drift"])
        kept = {**memory, "drift": end.params - start, "turns": memory["turns"] + 1}
        if self.diary:
            kept[f"turn {int(memory['turns'])}"] = torch.full((2000,), float(memory["turns"]))
        return Reply({"params": end.params}, end.num_examples, kept)

    def apply(self, state: State, totals: Mapping[int, object]) -> State:
        return {"params": totals[0].mean("params")}


def finished(tmp_path: Path, **changes: object) -> rd.History:
    kept = rd.Tracking(root=str(tmp_path), checkpoint_every_s=0)
    return small_job(**{"algorithm": Drifting(), "clients_per_round": 6, "tracking": kept, **changes}).run()


def turns(history: rd.History) -> dict[str, int]:
    """Return how often each client's memory went forward; clients that stand where they began are left out."""
    memories = torch.load(history.run_folder / "checkpoint.pt", weights_only=True)["memory"]
    return {client: int(memory["turns"]) for client, memory in memories.items()}


def admitted(history: rd.History) -> dict[str, int]:
    return dict(Counter(row["client"] for row in history.clients() if row["status"] == "admitted"))


def with_a_diverging_client() -> rd.FederatedData:
    parts = {f"c{i}": examples(10 + 2 * i, seed=i) for i in range(6)}
    parts["c2"].inputs[0, 0] = float("nan")
    return rd.FederatedData.from_datasets(parts)


@executors
def test_memory_goes_forward_once_for_every_admitted_update(simulation: rd.Simulation, tmp_path: Path) -> None:
    history = finished(tmp_path, num_rounds=5, clients_per_round=3, simulation=simulation)
    assert turns(history) == admitted(history)
    assert sum(turns(history).values()) == 15


@executors
def test_a_refused_client_stands_where_it_stood(simulation: rd.Simulation, tmp_path: Path) -> None:
    history = finished(tmp_path, data=with_a_diverging_client, simulation=simulation)
    assert [row["refused"] for row in history.rows] == [1, 1, 1]
    assert turns(history) == dict.fromkeys(("c0", "c1", "c3", "c4", "c5"), 3)


@executors
@pytest.mark.parametrize("closing", [{"deadline_s": 1.0}, {"goal": 5}], ids=["deadline", "goal"])
def test_a_late_client_stands_where_it_stood(
    simulation: rd.Simulation, closing: dict[str, float], tmp_path: Path
) -> None:
    def slow_in_the_second_round(client: str, task: rd.Task) -> float:
        return 2.0 if (client, task.round) == ("c2", 2) else 0.5

    pace = rd.Simulation(simulation.executor, simulation.num_workers, duration=slow_in_the_second_round)
    history = finished(tmp_path, workflow=rd.Rounds(**closing), simulation=pace)
    late = [(row["round"], row["client"]) for row in history.clients() if row["status"] == "late"]
    # at the goal of 5, one of six who answer together is late too: drawn, not always the same
    assert late == ([(2, "c2")] if "deadline_s" in closing else [(1, "c5"), (2, "c2"), (3, "c1")])
    assert turns(history) == admitted(history)


@executors
def test_a_lost_client_stands_where_it_stood(simulation: rd.Simulation, tmp_path: Path) -> None:
    def train(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
        if task.client == "c1" and task.round == 2:
            raise OSError("the disk is full")
        return len(data), {}

    history = finished(tmp_path, learner=train, simulation=simulation)
    assert history.rows[1]["lost"] == 1
    assert turns(history) == {**{f"c{i}": 3 for i in range(6)}, "c1": 2}


@executors
def test_a_round_below_its_quorum_moves_nobodys_memory(simulation: rd.Simulation, tmp_path: Path) -> None:
    history = finished(tmp_path, data=with_a_diverging_client, workflow=rd.Rounds(quorum=6), simulation=simulation)
    assert [row["admitted"] for row in history.rows] == [5, 5, 5]
    assert turns(history) == {}


@executors
def test_an_attempt_that_is_drawn_again_leaves_no_trace_in_memory(simulation: rd.Simulation, tmp_path: Path) -> None:
    def slow_at_first(client: str, task: rd.Task) -> float:
        return 0.0 if task.attempt or client < "c3" else 9.0

    pace = rd.Simulation(simulation.executor, simulation.num_workers, duration=slow_at_first)
    again = finished(tmp_path, workflow=rd.Rounds(deadline_s=1.0, quorum=6, attempts=2), simulation=pace)
    assert [row["attempt"] for row in again.rows] == [1, 1, 1]
    assert turns(again) == {f"c{i}": 3 for i in range(6)}


@pytest.mark.parametrize(
    "algorithm", [Drifting(), Drifting(notes=80), Drifting(diary=True)], ids=["vectors", "many small ones", "growing"]
)
def test_memory_gives_the_same_bits_in_every_executor_and_after_a_resume(algorithm: Drifting, tmp_path: Path) -> None:
    settings = {"algorithm": algorithm, "num_rounds": 6, "clients_per_round": 3}
    alone = small_job(**settings).run().sha256
    assert small_job(**settings, simulation=POOL).run().sha256 == alone
    tracked = small_job(**settings, tracking=rd.Tracking(root=str(tmp_path), name="run"))
    for round in tracked.rounds():
        if round.number == 3:
            break
    assert tracked.run(resume=tmp_path / "run").sha256 == alone
    assert small_job(num_rounds=6, clients_per_round=3).run().sha256 != alone


def commit_whatever_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: a round below its quorum is committed all the same."""
    closed = SimulatedFederation.account

    def committed(self: SimulatedFederation, outcome: Outcome) -> Outcome:
        self.commit(outcome)
        return closed(self, outcome)

    monkeypatch.setattr(SimulatedFederation, "account", committed)


def forget_at_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: nothing is ever remembered."""
    monkeypatch.setattr(ClientMemory, "commit", lambda self, memories: None)


def forget_at_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: a checkpoint's memories are not put back."""
    monkeypatch.setattr(ClientMemory, "restore", lambda self, state: None)


def test_the_tests_catch_memory_that_is_committed_too_early_never_or_lost_at_a_resume(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plantings = (
        (commit_whatever_was_answered, test_a_round_below_its_quorum_moves_nobodys_memory, SERIAL),
        (commit_whatever_was_answered, test_an_attempt_that_is_drawn_again_leaves_no_trace_in_memory, SERIAL),
        (forget_at_commit, test_memory_goes_forward_once_for_every_admitted_update, SERIAL),
        (forget_at_resume, test_memory_gives_the_same_bits_in_every_executor_and_after_a_resume, Drifting()),
    )
    for number, (plant, check, setting) in enumerate(plantings):
        with monkeypatch.context() as patch:
            plant(patch)
            with pytest.raises(AssertionError):
                check(setting, tmp_path / str(number))


# ---- on disk --------------------------------------------------------------------------------------------------------


def on_disk(simulation: rd.Simulation) -> rd.Simulation:
    return rd.Simulation(simulation.executor, simulation.num_workers, memory="disk")


@executors
def test_memory_on_disk_gives_the_same_bits_with_tracking_and_without(
    simulation: rd.Simulation, tmp_path: Path
) -> None:
    settings = {"algorithm": Drifting(notes=3), "num_rounds": 5, "clients_per_round": 3}
    in_process = small_job(**settings).run().sha256
    assert small_job(**settings, simulation=on_disk(simulation)).run().sha256 == in_process
    kept = rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0)
    tracked = small_job(**settings, simulation=on_disk(simulation), tracking=kept)
    for done in tracked.rounds():
        if done.number == 3:
            break
    assert tracked.run(resume=tmp_path / "run").sha256 == in_process
    kept = tmp_path / "run" / "memory"
    assert [path.name for path in kept.iterdir()] == ["kept"]
    took_part = {row["client"] for row in tracked_rows(tmp_path / "run")}
    assert len(list(kept.glob("kept/???/*.pt"))) == len(took_part) < 8


def tracked_rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]


def test_a_checkpoint_with_memory_on_disk_holds_a_number_however_many_took_part(tmp_path: Path) -> None:
    history = finished(tmp_path, simulation=on_disk(SERIAL), num_rounds=3)
    kept = torch.load(history.run_folder / "checkpoint.pt", weights_only=True)["memory"]
    assert kept == 4  # one after every round, and one at the end


def test_files_of_the_last_checkpoint_outlive_the_rounds_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after kill -9: rounds went on after the checkpoint, and are run again."""
    settings = {"algorithm": Drifting(), "num_rounds": 6, "clients_per_round": 4, "simulation": on_disk(SERIAL)}
    whole = small_job(**settings).run().sha256
    job = small_job(**settings, tracking=rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0))
    checkpoint = Standing.checkpoint
    monkeypatch.setattr(Standing, "checkpoint", lambda self: checkpoint(self) if self.num_rounds_done <= 2 else None)
    for done in job.rounds():
        if done.number == 5:
            break
    monkeypatch.undo()
    assert job.run(resume=tmp_path / "run").sha256 == whole


def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: what a checkpoint knows is superseded before the next one is there."""
    write = Disk.write

    def at_once(self: Disk, client: str, memory: Memory) -> None:
        write(self, client, memory)
        self._settle(self._since(self._number))
        self._unsynced.clear()

    monkeypatch.setattr(Disk, "write", at_once)


def keep_whatever_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: what rounds after the checkpoint wrote is taken for the checkpoint's."""
    restore = Disk.restore
    monkeypatch.setattr(Disk, "restore", lambda self, number: restore(self, 2**62))


@pytest.mark.parametrize("plant", [hasty, keep_whatever_lies_there])
def test_the_test_would_see_files_superseded_too_early_or_taken_from_later_rounds(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        test_files_of_the_last_checkpoint_outlive_the_rounds_after_it(patch, tmp_path)


def test_a_run_that_ended_between_its_checkpoint_and_settling_goes_on_with_that_checkpoints_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"algorithm": Drifting(), "num_rounds": 6, "clients_per_round": 4, "simulation": on_disk(SERIAL)}
    whole = small_job(**settings).run().sha256
    job = small_job(**settings, tracking=rd.Tracking(str(tmp_path), "run", checkpoint_every_s=0))
    checkpoint, settle = Standing.checkpoint, Disk._settle
    monkeypatch.setattr(Standing, "checkpoint", lambda self: checkpoint(self) if self.num_rounds_done <= 3 else None)
    monkeypatch.setattr(Disk, "_settle", lambda self, since: None if since.name == "since-3" else settle(self, since))
    for done in job.rounds():
        if done.number == 3:
            break
    monkeypatch.undo()
    assert (tmp_path / "run" / "memory" / "since-3").is_dir()
    assert job.run(resume=tmp_path / "run").sha256 == whole


def test_what_a_run_without_a_checkpoint_wrote_is_nobodys_memory(tmp_path: Path) -> None:
    dead, anew = Disk(tmp_path / "memory"), ClientMemory({"turns": torch.zeros(1)}, Disk(tmp_path / "memory"))
    dead.write("c1", {"turns": torch.ones(1)})
    anew.restore(None)
    assert int(anew.of("c1")["turns"]) == 0
    with pytest.raises(ConfigError, match="written by an earlier version"):
        anew.restore({"c1": {}})


def test_a_clients_file_is_found_by_its_id_alone_in_folders_of_which_none_holds_them_all(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "memory")
    ids = [f"../client {number}" for number in range(300)]  # which is no file name
    for number, client in enumerate(ids):
        disk.write(client, {"turns": torch.tensor(number)})
    assert [int(disk.read(client)["turns"]) for client in ids] == list(range(300))
    assert disk.read("../client 300") is None
    folders = [folder for folder in (tmp_path / "memory").glob("since-1/*") if folder.is_dir()]
    assert len(folders) > 200
    assert max(len(list(folder.iterdir())) for folder in folders) < 5


def test_where_memory_is_kept_stays_in_a_resumed_run(tmp_path: Path) -> None:
    finished(tmp_path, simulation=on_disk(SERIAL), tracking=rd.Tracking(str(tmp_path), "run"))
    with pytest.raises(ConfigError, match=r"its simulation\.memory is 'disk', this job's is 'process'"):
        small_job(algorithm=Drifting(), clients_per_round=6).run(resume=tmp_path / "run")
    with pytest.raises(ConfigError, match="simulation memory 'tape' is unknown; known are process, disk"):
        rd.Simulation(memory="tape")

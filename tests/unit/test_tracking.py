"""What a run leaves behind: tables, TensorBoard's curves, weights that another job can start from."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Awkward, Plain, Tied, examples, small_job

import roundelay as rd
from roundelay import cli, config, seeds
from roundelay.errors import ConfigError, LayoutError, RoundelayError
from roundelay.tracking.tensorboard import TensorBoard


def tracked(tmp_path: Path, **changes: object) -> rd.Job:
    kept = rd.Tracking(root=str(tmp_path), name="run", tensorboard=bool(changes.pop("tensorboard", False)))
    return small_job(tracking=kept, **changes)


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no curves: tensorboard is not installed"
    )
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_every_number_of_every_round(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no curves: tensorboard is not installed")
    history = tracked(tmp_path, tensorboard=True, evaluation=rd.Evaluation(every=2, clients_every=3)).run()
    shown = curves(tmp_path / "run" / "tensorboard")
    for name in ("accuracy", "loss", "train_loss", "client_accuracy", "admitted", "bytes_up"):
        wanted = [(row["round"], row[name]) for row in history.rows if name in row]
        assert [step for step, _ in shown[name]] == [number for number, _ in wanted]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in wanted]), name
    assert [[step for step, _ in shown[name]] for name in ("accuracy", "client_accuracy")] == [[2, 3], [3]]
    assert "round" not in shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_curves_stay_in_the_run_folder_when_a_script_in_a_thread_has_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="no curves: tensorboard is not installed")
    monkeypatch.chdir(tmp_path)
    board = TensorBoard(Path("board"), first_round=1)
    board.append({"round": 1, "loss": 2.0})
    (tmp_path / "site-1").mkdir()
    monkeypatch.chdir(tmp_path / "site-1")
    board.append_scalar("site-1", "loss", 3.0, step=0)
    board.close("finished")
    assert curves(tmp_path / "board") == {"loss": [(1, 2.0)]}
    assert curves(tmp_path / "board" / "site-1") == {"loss": [(0, 3.0)]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_round_once_after_a_crash_and_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no curves: tensorboard is not installed")
    job = tracked(tmp_path, tensorboard=True, num_rounds=5)
    for stop in (2, 4):
        for finished in job.rounds(resume=tmp_path / "run" if stop == 4 else None):
            if finished.number == stop:
                break
        if stop == 2:
            checkpoint = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(checkpoint)  # as if rounds 3 and 4 had ended in a crash
    job.run(resume=tmp_path / "run")
    assert [step for step, _ in curves(tmp_path / "run" / "tensorboard")["loss"]] == [1, 2, 3, 4, 5]


def test_without_tensorboard_no_event_file_is_written(tmp_path: Path) -> None:
    tracked(tmp_path).run()
    assert not (tmp_path / "run" / "tensorboard").exists()


# ---- the run folder -------------------------------------------------------------------------------------------------


def test_the_tables_hold_what_the_history_holds(tmp_path: Path) -> None:
    history = tracked(tmp_path).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [dict(row) for row in history.rows]
    clients = history.clients()
    assert len(clients) == 3 * 4
    assert {row["status"] for row in clients} == {"admitted"}
    assert all(row["num_examples"] == 10 + 2 * int(row["client"][1:]) for row in clients)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state == {
        "state": "finished", "reason": "all 3 rounds are done", "rounds_done": 3, "sha256": history.sha256,
    }  # fmt: skip


def test_the_last_and_the_best_weights_load_into_the_model(tmp_path: Path) -> None:
    job = tracked(tmp_path, num_rounds=6, stopping=rd.Stopping(metric="loss"))
    states = {finished.metrics["loss"]: finished.state_dict() for finished in job.rounds()}
    last, best = (torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True) for name in ("last", "best"))
    for loaded, wanted in ((last, list(states.values())[-1]), (best, states[min(states)])):
        Awkward().load_state_dict(loaded)
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)


def test_the_best_model_goes_by_what_is_measured_in_a_few_rounds_only(tmp_path: Path) -> None:
    job = tracked(tmp_path, num_rounds=6, evaluation=rd.Evaluation(every=2), stopping=rd.Stopping(metric="loss"))
    states = {round.metrics["loss"]: round.state_dict() for round in job.rounds() if "loss" in round.metrics}
    assert len(states) == 3
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert all(torch.equal(best[name], wanted) for name, wanted in states[min(states)].items())


def planted_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    left = iter(losses)
    monkeypatch.setattr("roundelay.metrics.Sums.means", lambda self: {"loss": next(left)})


def test_a_loss_that_is_not_finite_is_kept_as_null_and_does_not_stop_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_losses(monkeypatch, [3.0, math.nan, 2.0, 1.0])
    job = tracked(tmp_path, num_rounds=4, stopping=rd.Stopping(metric="loss", patience=3))
    for finished in job.rounds():
        if finished.number == 2:
            break
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])["loss"] is None
    history = job.run(resume=tmp_path / "run")
    assert [row["loss"] for row in history.rows] == [3.0, None, 2.0, 1.0]
    assert history.best("loss") == 1.0


def test_an_existing_folder_is_never_written_into(tmp_path: Path) -> None:
    tracked(tmp_path).run()
    with pytest.raises(ConfigError, match="is there already; resume it, or choose another tracking name"):
        tracked(tmp_path).run()


def test_resuming_what_is_no_run_or_another_models_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        small_job().run(resume=tmp_path)
    tracked(tmp_path).run()
    with pytest.raises(ConfigError, match=r"a run of another job: its model is .*Awkward.*, this job's is .*Plain"):
        small_job(model=Plain).run(resume=tmp_path / "run")
    (tmp_path / "run" / "job.toml").write_text(small_job(model=Plain).to_toml())
    with pytest.raises(LayoutError, match=r"was written for another model.*norm"):
        small_job(model=Plain).run(resume=tmp_path / "run")


def test_a_run_that_goes_on_is_not_resumed_beside_itself(tmp_path: Path) -> None:
    rounds = tracked(tmp_path).rounds()
    next(rounds)
    with pytest.raises(ConfigError, match="is going on in another process"):
        tracked(tmp_path).run(resume=tmp_path / "run")
    rounds.close()
    tracked(tmp_path).run(resume=tmp_path / "run")


def test_a_resumed_run_may_be_longer_but_not_another(tmp_path: Path) -> None:
    tracked(tmp_path, num_rounds=2).run()
    with pytest.raises(ConfigError, match="its seed is 7, this job's is 8"):
        tracked(tmp_path, seed=8).run(resume=tmp_path / "run")
    resumed = tracked(tmp_path, num_rounds=4).run(resume=tmp_path / "run")
    assert resumed.sha256 == small_job(num_rounds=4).run().sha256


def test_what_decides_who_is_in_time_or_who_trains_on_what_stays_in_a_resumed_run(tmp_path: Path) -> None:
    tracked(tmp_path).run()
    for changes in ({"simulation": rd.Simulation("serial", duration=slow)},
                    {"evaluation": rd.Evaluation(client_test_fraction=0.5)}):  # fmt: skip
        with pytest.raises(ConfigError, match="a run of another job"):
            tracked(tmp_path, num_rounds=4, **changes).run(resume=tmp_path / "run")


def slow(client: str, task: rd.Task) -> float:
    return 1.0


def test_a_run_that_is_never_started_gives_its_folder_back(tmp_path: Path) -> None:
    tracked(tmp_path).run()
    run = tracked(tmp_path, num_rounds=4).start(resume=tmp_path / "run")
    del run
    gc.collect()
    tracked(tmp_path, num_rounds=4).run(resume=tmp_path / "run")


def test_a_run_is_started_once() -> None:
    run = small_job().start()
    list(run)
    with pytest.raises(RoundelayError, match="started before"):
        list(run)


# ---- weights to start from ------------------------------------------------------------------------------------------


def initial(job: rd.Job) -> dict[str, torch.Tensor]:
    with seeds.preserved_globals():
        return job.prepared().work.initial_module().state_dict()


@pytest.mark.parametrize("model", [Plain, Awkward, Tied])
def test_a_job_can_start_from_a_state_dict_a_file_or_a_finished_run(model: type, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = model().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    for init in (state, tmp_path / "weights.pt", str(tmp_path / "weights.pt")):
        begun = initial(small_job(model=model, init=init))
        assert all(torch.equal(begun[name], value) for name, value in state.items())
    history = tracked(tmp_path, model=model).run()
    begun = initial(small_job(model=model, init=history.run_folder / "last.pt"))
    assert all(torch.equal(begun[name], value) for name, value in history.model.state_dict().items())


def test_what_a_job_starts_from_is_not_changed_by_it_and_changes_what_it_comes_to() -> None:
    torch.manual_seed(1)
    state = Plain().state_dict()
    before = {name: value.clone() for name, value in state.items()}
    begun, again, other = (small_job(model=Plain, init=init).run().sha256 for init in (state, state, None))
    assert begun == again
    assert begun != other
    assert all(torch.equal(state[name], before[name]) for name in before)


def without(name: str) -> dict[str, torch.Tensor]:
    return {n: value for n, value in Plain().state_dict().items() if n != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**Plain().state_dict(), "second.bias": torch.zeros(4)},
         r"init: tensor 'second.bias' has shape \(4,\), the model has \(3,\)"),
        (without("first.bias"), r"init: tensor 'first.bias' of shape \(13,\) is missing"),
        ({**Plain().state_dict(), "third": torch.zeros(1)}, "init: tensor 'third' is not part of this model; it has"),
    ],
    ids=["shape", "missing", "unknown"],
)  # fmt: skip
@pytest.mark.parametrize("through_a_file", [False, True])
def test_weights_of_another_layout_are_refused_by_the_tensors_name(
    state: dict[str, torch.Tensor], message: str, through_a_file: bool, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(LayoutError, match=message):
        small_job(model=Plain, init=tmp_path / "weights.pt" if through_a_file else state).start()


def test_tied_weights_can_come_under_one_of_their_names() -> None:
    state = {name: value for name, value in Tied().state_dict().items() if name != "decode.weight"}
    begun = initial(small_job(model=Tied, init=state))
    assert torch.equal(begun["decode.weight"], state["encode.weight"])


@pytest.mark.parametrize("content", ["absent", "text", [1, 2]])
def test_a_file_without_weights_is_refused_by_name(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    if content == "text":
        file.write_text("not weights")
    elif content != "absent":
        torch.save(content, file)
    with pytest.raises(ConfigError, match=r"weights\.pt"):
        small_job(model=Plain, init=file).start()


# ---- the resolved job file ------------------------------------------------------------------------------------------

ONLY_HERE = {
    "a state dict": {"init": Plain().state_dict(), "model": Plain},
    "a module": {"model": Plain()},
    "data at hand": {"data": rd.FederatedData.from_datasets({"a": examples(4)})},
    "examples at hand": {"data": rd.Data(examples(8)), "partition": rd.IID(num_clients=2)},
    "a lambda": {"client_config": lambda round, client: {}},
    "an object": {"partition": object()},
}


@pytest.mark.parametrize("changes", ONLY_HERE.values(), ids=ONLY_HERE)
def test_what_only_lives_in_this_process_is_named_and_refused_when_the_file_is_read(
    changes: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(small_job(**changes).to_toml())
    with pytest.raises(ConfigError, match=r"job\.run\(resume=FOLDER\)"):
        config.load(tmp_path / "job.toml")


def test_the_command_line_names_what_is_no_job_no_run_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["roundelay", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        shown = capsys.readouterr()
        return " ".join((shown.out + shown.err).split())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.basicConfig", lambda **settings: None)
    assert "client.py is no job file; a training script is run by: roundelay run --script" in told("run", "client.py")
    assert "nope is not a run folder: it has no job.toml" in told("resume", "nope")
    assert "give the model that its clients train: --model" in told("run", "--script", "client.py")
    assert "not both" in told("run", "job.toml", "--script", "client.py", "--model", "model:Net")

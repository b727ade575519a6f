"""Weights & Biases and MLflow, by their own packages and without a network: every round once, whatever is resumed; and
neither of them ever ends a training.
"""

import json
import logging
import struct
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from devices import Device
from networks import small_job

import roundelay as rd
from roundelay.errors import ConfigError, MissingExtra
from roundelay.serving import Place, Serving
from roundelay.tracking.trackers import Trackers

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")


@pytest.fixture(autouse=True)
def _without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes seconds to begin: a slow test has one
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def tracked(tmp_path: Path, num_rounds: int = 3, **trackers: str) -> rd.Job:
    tracking = rd.Tracking(root=str(tmp_path), name="run", **trackers)  # type: ignore[arg-type]
    return small_job(name="trackers", num_rounds=num_rounds, tracking=tracking)


def store(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'mlruns'}"


def interrupted(job: rd.Job, at: int, resume: Path | None = None) -> None:
    for finished in job.rounds(resume=resume):
        if finished.number == at:
            break


def crashed(job: rd.Job, folder: Path) -> None:
    """Leave a run that told of four rounds, and whose checkpoint is of the second."""
    interrupted(job, at=2)
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    interrupted(job, at=4, resume=folder)
    (folder / "checkpoint.pt").write_bytes(checkpoint)


# ---- Weights & Biases -----------------------------------------------------------------------------------------------


def records(folder: Path) -> list[list[Any]]:
    """Return what each offline run of a run folder wrote, oldest first: LevelDB's log format, of protocol buffers."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its own process writes the files
    found = []
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        content, at, whole, of_file = file.read_bytes(), 7, b"", []
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:  # no header fits into what is left of a block
                at += 32768 - at % 32768
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            whole += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record, whole = wandb_internal_pb2.Record.FromString(whole), b""
                of_file.append(record)
        found.append(of_file)
    return found


def history(of_file: list[Any]) -> list[dict[str, Any]]:
    lines = [record.history for record in of_file if record.HasField("history")]
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.item} for line in lines
    ]


@needs_wandb
def test_weights_and_biases_is_told_every_number_of_every_round_and_the_job(tmp_path: Path) -> None:
    rows = tracked(tmp_path, wandb="project").run().rows
    (of_file,) = records(tmp_path / "run")
    told = history(of_file)
    assert [line["round"] for line in told] == [1, 2, 3]
    for line, row in zip(told, rows, strict=True):
        assert {name: line[name] for name in row} == dict(row)
    (run,) = [record.run for record in of_file if record.HasField("run") and record.run.config.update][:1]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.display_name) == ("project", "run")
    assert (config["seed"], config["learner"]["lr"]) == (7, 0.1)
    assert "tracking" not in config
    assert [record.exit.exit_code for record in of_file if record.HasField("exit")] == [0]


@needs_wandb
def test_a_resumed_run_is_the_same_one_there_and_its_last_folder_has_every_round_once(tmp_path: Path) -> None:
    job = tracked(tmp_path, num_rounds=5, wandb="entity/project")
    crashed(job, tmp_path / "run")
    job.run(resume=tmp_path / "run")
    files = records(tmp_path / "run")
    assert [[line["round"] for line in history(of_file)] for of_file in files] == [
        [1, 2],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
    ]
    runs = [record.run for of_file in files for record in of_file if record.HasField("run")]
    assert {(run.run_id, run.entity) for run in runs} == {(runs[0].run_id, "entity")}
    assert [r.exit.exit_code for of_file in files for r in of_file if r.HasField("exit")] == [0, 0, 0]


@needs_wandb
def test_what_its_server_knows_already_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    begin = wandb.init

    def found(**settings: Any) -> Any:
        run = begin(**settings)
        run.summary["round"] = 2  # as a server would say of a run that is gone on with
        return run

    interrupted(tracked(tmp_path), at=2)
    monkeypatch.setattr(wandb, "init", found)
    tracked(tmp_path, wandb="project").run(resume=tmp_path / "run")
    (of_file,) = records(tmp_path / "run")
    assert [line["round"] for line in history(of_file)] == [3]


# ---- MLflow ---------------------------------------------------------------------------------------------------------


def mlflow_run(uri: str, folder: Path) -> tuple[Any, dict[str, list[tuple[int, float]]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
    curves = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run, curves


def check_curves(curves: dict[str, list[tuple[int, float]]], rows: list[Any]) -> None:
    for name in ("loss", "accuracy", "train_loss", "admitted", "bytes_up"):
        assert curves[name] == [(row["round"], row[name]) for row in rows], name
    assert "round" not in curves


@needs_mlflow
def test_mlflow_is_told_every_number_of_every_round_and_the_job(tmp_path: Path) -> None:
    rows = tracked(tmp_path, mlflow=store(tmp_path)).run().rows
    run, curves = mlflow_run(store(tmp_path), tmp_path / "run")
    check_curves(curves, list(rows))
    assert (run.data.params["seed"], run.data.params["learner.lr"]) == ("7", "0.1")
    assert not [name for name in run.data.params if name.startswith("tracking")]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")


@needs_mlflow
def test_a_resumed_run_is_the_same_one_in_mlflow_and_has_every_round_once(tmp_path: Path) -> None:
    job = tracked(tmp_path, num_rounds=5, mlflow=store(tmp_path))
    crashed(job, tmp_path / "run")
    begun, _ = mlflow_run(store(tmp_path), tmp_path / "run")
    assert begun.info.status == "KILLED"
    rows = job.run(resume=tmp_path / "run").rows
    run, curves = mlflow_run(store(tmp_path), tmp_path / "run")
    assert run.info.run_id == begun.info.run_id
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4, 5]
    check_curves({name: curve for name, curve in curves.items() if name != "seconds"}, list(rows))


@needs_mlflow
def test_a_run_that_was_not_tracked_there_from_the_beginning_tells_what_came_before(tmp_path: Path) -> None:
    interrupted(tracked(tmp_path), at=2)
    rows = tracked(tmp_path, mlflow=store(tmp_path)).run(resume=tmp_path / "run").rows
    check_curves(mlflow_run(store(tmp_path), tmp_path / "run")[1], list(rows))


@needs_mlflow
@pytest.mark.slow
def test_mlflow_keeps_a_run_in_a_database_of_this_machine(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    rows = tracked(tmp_path, mlflow=uri).run().rows
    check_curves(mlflow_run(uri, tmp_path / "run")[1], list(rows))


@needs_mlflow
def test_what_clients_log_lies_below_their_names_whatever_these_are(tmp_path: Path) -> None:
    tracking = rd.Tracking(root=str(tmp_path), mlflow=store(tmp_path))
    trackers = Trackers(tracking)
    trackers.open(tmp_path, 'name = "scalars"', [])
    for client in ("site 1", "..", "a/../b", "(weird)", "/", "ü"):
        trackers.append_scalar(client, "loss", 1.5, step=3)
    trackers.close("finished")
    curves = mlflow_run(store(tmp_path), tmp_path)[1]
    assert sorted(curves) == sorted(["site 1/loss", "__/loss", "a/__/b/loss", "_weird_/loss", "_/_/loss", "ü/loss"])
    assert curves["site 1/loss"] == [(3, 1.5)]


@needs_mlflow
def test_a_database_and_ids_stay_where_they_are_when_a_script_in_a_thread_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, Path]] = []
    monkeypatch.setattr("roundelay.tracking.mlflow.MLflow.__init__", lambda self, *given: begun.append(given[:2]))
    monkeypatch.chdir(tmp_path)
    trackers = Trackers(rd.Tracking(mlflow="sqlite:///runs/mlflow.db"))
    trackers.open(Path("run"), 'name = "here"', [])
    trackers.close("finished")
    assert begun == [(f"sqlite:///{tmp_path}/runs/mlflow.db", tmp_path / "run")]


@needs_mlflow
def test_a_server_of_devices_tells_its_trackers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = rd.Tracking(root=str(tmp_path), name="run", mlflow=store(tmp_path))
    given = small_job(tracking=tracking, deployment=rd.Deployment(heartbeat_s=0.2))
    prepared = given.prepared()
    monkeypatch.setattr("roundelay.serving.FAREWELL_S", 0.0)
    serving = Serving(prepared, Place(tmp_path / "server", host="127.0.0.1", port=0, insecure=True))
    for client in prepared.work.data.clients:
        serving.journal.clients.admit(client, "0" * 64)
    devices = [Device(serving.board, prepared, serving.run, client, {}) for client in prepared.work.data.clients]
    try:
        rows = serving.train().rows
    finally:
        for device in devices:
            device.leave()
    check_curves(mlflow_run(store(tmp_path), tmp_path / "run")[1], list(rows))


# ---- trackers that fail ---------------------------------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "told nothing more" in record.getMessage()]


@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://runs"], ids=["nobody listens", "no such store"])
def test_a_tracker_that_cannot_begin_is_said_once_and_the_run_is_as_without_it(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = small_job(name="trackers").run().sha256
    with caplog.at_level(logging.WARNING):
        history = tracked(tmp_path, mlflow=uri).run()
    assert history.sha256 == wanted
    assert len(said(caplog)) == 1
    assert said(caplog)[0].startswith("MLflow is told nothing more of this run")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "finished"


@needs_wandb
@needs_mlflow
@pytest.mark.parametrize("step", ["append", "close"])
def test_a_tracker_that_fails_on_the_way_is_said_once_and_the_other_one_goes_on(
    step: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *given: object) -> None:
        raise OSError("the line is cut")

    monkeypatch.setattr(f"roundelay.tracking.wandb.WandB.{step}", fails)
    with caplog.at_level(logging.WARNING):
        rows = tracked(tmp_path, wandb="project", mlflow=store(tmp_path)).run().rows
    assert len(rows) == 3
    (message,) = said(caplog)
    assert message.startswith("Weights & Biases is told nothing more of this run: OSError: the line is cut;")
    check_curves(mlflow_run(store(tmp_path), tmp_path / "run")[1], list(rows))


@needs_mlflow
def test_the_training_does_not_wait_for_a_tracker_that_hangs_and_its_end_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_done, let_go = threading.Event(), threading.Event()

    def hangs(self: object, row: object) -> None:
        assert rounds_done.wait(60), "a round waits for its tracker"
        let_go.wait(60)

    monkeypatch.setattr("roundelay.tracking.mlflow.MLflow.append", hangs)
    monkeypatch.setattr("roundelay.tracking.trackers.PATIENCE_S", 0.01)
    job = tracked(tmp_path, mlflow=store(tmp_path))
    try:
        with caplog.at_level(logging.WARNING):
            for finished in job.rounds():
                if finished.number == 3:
                    rounds_done.set()
        (message,) = [r.getMessage() for r in caplog.records if "has not taken everything" in r.getMessage()]
        assert message.startswith("MLflow has not taken everything within 0.01 s; all numbers are in metrics.jsonl")
    finally:
        let_go.set()
        rounds_done.set()
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "finished"
    for thread in threading.enumerate():
        if thread.name == "roundelay-MLflow":
            thread.join(60)


@needs_mlflow
def test_a_run_whose_last_checkpoint_fails_is_over_for_its_trackers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *given: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("roundelay.standing.save_checkpoint", full)
    with pytest.raises(OSError, match="the disk is full"):
        tracked(tmp_path, mlflow=store(tmp_path)).run()
    assert mlflow_run(store(tmp_path), tmp_path / "run")[0].info.status == "FINISHED"
    assert not [thread for thread in threading.enumerate() if thread.name == "roundelay-MLflow"]


@pytest.mark.parametrize(("tracker", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_package_that_is_not_there_is_named_before_anything_is_begun(
    tracker: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tracker, f"{tracker}.entities", f"{tracker}.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"'{package}' is not installed.*roundelay\[{tracker}\]"):
        tracked(tmp_path, **{tracker: "project"}).run()
    assert not (tmp_path / "run").exists()


def test_settings_that_name_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match='tracking wandb: expected "project" or "entity/project", got \'entity/\''):
        rd.Tracking(wandb="entity/")
    with pytest.raises(ConfigError, match="tracking mlflow: expected a tracking URI"):
        rd.Tracking(mlflow="")

"""What the server makes of scripts as clients: best models, curves, measurements, and what it refuses at start."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from networks import Awkward, examples, small_job
from scripts import BODY, processes, script_job, threads, write

import roundelay as rd

# ---- what the server makes of it ------------------------------------------------------------------------------------


def partition_of(tmp_path: Path, **changes: object) -> dict[str, dict[str, object]]:
    text = "import json\n" + BODY + "    note('part.json', json.dumps(dict(fl.get_config()['partition'])))\n"
    simulation = changes.pop("simulation", rd.Simulation(executor="threads"))
    folder = script_job(tmp_path, text, simulation, num_rounds=1, **changes).run().run_folder
    return {site.name: json.loads((site / "part.json").read_text()) for site in (folder / "sites").iterdir()}


def test_a_script_is_told_its_part_of_the_data(tmp_path: Path) -> None:
    assert partition_of(tmp_path, simulation=threads(2)) == {
        name: {"client": name, "number": i, "num_clients": 2} for i, name in enumerate(["site-1", "site-2"])
    }
    data = rd.data.Data(examples(60), examples(12))
    told = partition_of(tmp_path, data=data, partition=rd.data.Dirichlet(num_clients=3, alpha=1.0))
    assert len(told) == 3
    split = rd.Split.load(next(iter(told.values()))["file"])
    assert sorted(i for name in told for i in split[told[name]["client"]]) == list(range(60))
    kept = tmp_path / "kept.json"
    split.save(kept)
    again = partition_of(tmp_path, partition=rd.data.FromFile(str(kept)))
    assert {part["file"] for part in again.values()} == {str(kept)}
    assert set(again) == set(told)


def scalars_of(history: rd.History) -> list[dict[str, object]]:
    return [json.loads(line) for line in (history.run_folder / "scalars.jsonl").read_text().splitlines()]


SCORES = [0.2, 0.9, 0.5]
SCORED = BODY.replace('{"loss": loss}', f'{{"accuracy": {SCORES}[model.current_round]}}')


def test_the_best_model_is_the_one_that_the_clients_measured(tmp_path: Path) -> None:
    """What a client reports with its parameters speaks of the model that it received, or the next one is taken."""
    received: list[dict[str, torch.Tensor]] = [
        script_job(tmp_path, SCORED, threads(2)).prepared().work.initial_module().state_dict()
    ]
    job = script_job(tmp_path, SCORED, threads(2), num_rounds=3, stopping=rd.Stopping(metric="accuracy"))
    for finished in job.rounds():
        received.append(finished.state_dict())
        assert finished.metrics["train_accuracy"] == pytest.approx(SCORES[finished.number - 1])
    best = torch.load(Path(job.tracking.root) / "run" / "best.pt", weights_only=True)
    assert all(torch.equal(best[name], received[1][name]) for name in best)
    assert not all(torch.equal(best[name], received[2][name]) for name in best)


def test_a_run_stops_by_what_the_clients_measured(tmp_path: Path) -> None:
    stopping = rd.Stopping(metric="accuracy", target=0.8)
    history = script_job(tmp_path, SCORED, threads(2), num_rounds=3, stopping=stopping).run()
    assert len(history.rows) == 2
    assert history.stopped.startswith("train_accuracy reached 0.9")


def test_the_best_model_of_a_resumed_run_is_the_one_that_was_received_before(tmp_path: Path) -> None:
    job = script_job(tmp_path, SCORED, threads(2), num_rounds=3)
    for finished in job.rounds():
        received = finished.state_dict()
        break  # the second round is the best one; the model that it begins from is from before the interruption
    folder = Path(job.tracking.root) / "run"
    job.run(resume=folder)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert all(torch.equal(best[name], received[name]) for name in best)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_clients_log_is_in_a_table_and_in_curves_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="no curves: tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = BODY + "    fl.log('my loss', loss, global_step=10 * model.current_round)\n    fl.log('lr', float('nan'))\n"
    tracking = rd.Tracking(str(tmp_path), "shown", tensorboard=True)
    history = script_job(tmp_path, text, threads(2), tracking=tracking).run()
    losses = {(row["round"], row["client"]): row["train_loss"] for row in history.clients()}
    rows = scalars_of(history)
    assert len(rows) == 8
    for row in rows:
        if row["name"] == "lr":
            assert (row["value"], row["step"]) == (None, row["round"] - 1)
        else:
            assert (row["value"], row["step"]) == (losses[row["round"], row["client"]], 10 * (row["round"] - 1))
    for client in ("site-1", "site-2"):
        events = EventAccumulator(str(history.run_folder / "tensorboard" / client))
        events.Reload()
        shown = [(event.step, event.value) for event in events.Scalars("my loss")]
        assert shown == [(10 * n, pytest.approx(losses[n + 1, client])) for n in (0, 1)]


# ---- measuring on the clients ---------------------------------------------------------------------------------------

MEASURES = BODY.replace(
    "    net.load_state_dict(model.params)\n",
    """    net.load_state_dict(model.params)
    if fl.is_evaluate():
        net.eval()
        with torch.no_grad():
            right = (net(data.inputs).argmax(1) == data.targets).float().mean()
        fl.send(fl.FLModel(metrics={"f1": right}, num_examples=len(data)))
        continue
    if fl.is_submit_model():
        assert model.meta["submit_model_name"] == "best_model"
        fl.send(fl.FLModel(params={name: value + number for name, value in net.state_dict().items()}))
        continue
    assert fl.is_train()
""",
)


def accuracy_of(state: dict[str, torch.Tensor], number: int) -> float:
    net, data = Awkward(), examples(10 + 2 * number, seed=number)
    net.load_state_dict(state)
    with torch.no_grad():
        return (net.eval()(data.inputs).argmax(1) == data.targets).float().mean().item()


def test_clients_measure_the_global_model_on_their_own_data(tmp_path: Path) -> None:
    evaluation = rd.Evaluation(clients_every=1)
    job = script_job(tmp_path, MEASURES, threads(2), evaluation=evaluation, stopping=rd.Stopping(metric="client_f1"))
    for finished in job.rounds():
        each = [accuracy_of(finished.state_dict(), number) for number in (0, 1)]
        assert finished.metrics["client_f1"] == pytest.approx((10 * each[0] + 12 * each[1]) / 22)
        assert finished.metrics["client_f1_worst_decile"] == pytest.approx(min(each))
    assert (Path(job.tracking.root) / "run" / "best.pt").exists()
    reached = rd.Stopping(metric="client_f1", target=0.0)
    stopped = script_job(tmp_path, MEASURES, threads(2), evaluation=evaluation, stopping=reached).run()
    assert stopped.stopped.startswith("client_f1 reached")


@pytest.mark.parametrize("number", ["float('nan')", "float('inf')", "-1"])
def test_a_measurement_on_an_impossible_number_of_examples_does_not_count(number: str, tmp_path: Path) -> None:
    text = MEASURES.replace("len(data)", f"len(data) if number or fl.is_train() else {number}")
    history = script_job(tmp_path, text, threads(2), evaluation=rd.Evaluation(clients_every=1)).run()
    assert [row["admitted"] for row in history.rows] == [2, 2]
    assert {row["client"] for row in history.clients() if row["status"] == "evaluated"} == {"site-2"}


def test_the_servers_own_data_says_which_model_is_best(tmp_path: Path) -> None:
    data = rd.data.Data(examples(4), examples(30))
    job = script_job(tmp_path, SCORED, threads(2), data=data, stopping=rd.Stopping(metric="accuracy"), num_rounds=3)
    states = {finished.metrics["accuracy"]: finished.state_dict() for finished in reversed(list(job.rounds()))}
    best = torch.load(Path(job.tracking.root) / "run" / "best.pt", weights_only=True)
    assert all(torch.equal(best[name], states[max(states)][name]) for name in best)


def test_measuring_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    often, never = (
        script_job(tmp_path, MEASURES, threads(2), evaluation=rd.Evaluation(clients_every=every)).run()
        for every in (1, 0)
    )
    assert often.sha256 == never.sha256


@pytest.mark.parametrize("mode", [threads, processes])
def test_every_clients_model_is_measured_on_every_clients_data(mode: object, tmp_path: Path) -> None:
    history = script_job(tmp_path, MEASURES, mode(2), workflow=rd.CrossSite()).run()
    matrix = history.records["cross_site"]
    assert (matrix["models"], matrix["clients"]) == (["global model", "site-1", "site-2"], ["site-1", "site-2"])
    end = history.model.state_dict()
    shown = [{name: value + shift for name, value in end.items()} for shift in (0, 0, 1)]
    assert matrix["f1"] == [[pytest.approx(accuracy_of(state, number)) for number in (0, 1)] for state in shown]
    assert json.loads((history.run_folder / "cross_site.json").read_text()) == matrix


def test_a_script_that_only_trains_submits_what_it_trained(tmp_path: Path) -> None:
    """It answers the evaluations with what it reports of its training: that is its own affair."""
    matrix = script_job(tmp_path, BODY, threads(2), workflow=rd.CrossSite()).run().records["cross_site"]
    assert matrix["models"] == ["global model", "site-1", "site-2"]
    assert all(isinstance(value, float) for row in matrix["loss"] for value in row)
    silent = BODY.replace('metrics={"loss": loss}, ', "")
    matrix = script_job(tmp_path, silent, threads(2), workflow=rd.CrossSite()).run().records["cross_site"]
    assert matrix == {"models": ["global model", "site-1", "site-2"], "clients": ["site-1", "site-2"]}


# ---- what does not fit ----------------------------------------------------------------------------------------------

UNFIT = {
    "workers": ({"simulation": rd.Simulation(num_clients=2, num_workers=2)}, "max_concurrent says how many train"),
    "devices": ({"simulation": rd.Simulation(num_clients=2, devices={"cuda:0": 1})}, "chooses its own device"),
    "serial": ({"simulation": rd.Simulation(executor="serial", num_clients=2)}, "do not run in the executor 'serial'"),
    "ray": ({"simulation": rd.Simulation(executor="ray", num_clients=2)}, "do not run in the executor 'ray'"),
    "IFCA": ({"algorithm": rd.IFCA(num_clusters=2)}, "IFCA asks clients for the losses of models, which a script"),
    "label flips": (
        {"attacks": [rd.attacks.LabelFlip(fraction=0.5, num_classes=3)]},
        "LabelFlip.*scripts have their own",
    ),
    "crashes": ({"attacks": [rd.attacks.Crash(fraction=0.5)]}, "Crash.*scripts have their own"),
    "a partition of nothing": ({"partition": rd.data.IID(num_clients=2)}, "partition splits data, and this job has"),
    "nobody": ({"simulation": rd.Simulation()}, "nothing says how many clients there are"),
    "no such file": ({"script": "absent.py"}, "script: there is no file .*absent.py"),
    "a learner too": ({"learner": rd.LocalSGD(lr=0.1)}, "either a learner, such as .* or a script"),
    "too many a round": ({"clients_per_round": 3}, "clients_per_round = 3 but there are only 2 clients"),
}


@pytest.mark.parametrize(("changes", "words"), UNFIT.values(), ids=UNFIT)
def test_what_a_script_cannot_do_is_refused_at_start(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(rd.errors.ConfigError, match=words):
        script_job(tmp_path, BODY, **{"simulation": processes(2), **changes}).start()


def test_settings_for_scripts_are_refused_where_there_is_none() -> None:
    with pytest.raises(rd.errors.ConfigError, match='"threads" is for scripts'):
        small_job(simulation=rd.Simulation(executor="threads")).start()
    for name in ("num_clients", "max_concurrent", "task_timeout_s"):
        with pytest.raises(rd.errors.ConfigError, match=f"simulation.{name} is for jobs whose clients are scripts"):
            small_job(simulation=rd.Simulation(executor="serial", **{name: 2})).start()
        with pytest.raises(rd.errors.ConfigError, match=f"simulation {name} must be positive, got 0"):
            rd.Simulation(**{name: 0})


def test_attacks_on_what_is_sent_work(tmp_path: Path) -> None:
    attacked = script_job(tmp_path, BODY, threads(4), attacks=[rd.attacks.SignFlip(fraction=0.25)]).run()
    assert attacked.sha256 != script_job(tmp_path, BODY, threads(4)).run().sha256
    assert attacked.sha256 == script_job(
        tmp_path, BODY, processes(4), attacks=[rd.attacks.SignFlip(fraction=0.25)]
    ).run().sha256  # fmt: skip


# ---- an algorithm of one's own --------------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass
from roundelay.algorithms.protocol import Fit, Reply

class Half:
    "No dataclass: nothing tells how to make it again."

    uplink = {"params": "examples"}
    def init(self, params, num_clients): return {"params": params}
    def broadcast(self, state): return {"params": state["params"]}
    def first_memory(self, params): return {}
    def client(self, received, memory):
        end = yield Fit(received["params"])
        return Reply({"params": received["params"].lerp(end.params, 0.5)}, end.num_examples)
    def apply(self, state, totals): return {"params": totals[0].mean("params")}

@dataclass(frozen=True)
class Partly(Half):
    share: float = 0.5

    def client(self, received, memory):
        end = yield Fit(received["params"])
        return Reply({"params": received["params"].lerp(end.params, self.share)}, end.num_examples)
"""


@pytest.mark.parametrize("mode", [threads, processes])
def test_an_algorithm_in_a_module_beside_the_script_works(
    mode: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{mode.__name__}"
    write(tmp_path / "script-1", OWN, f"{name}.py", head="")
    monkeypatch.syspath_prepend(str(tmp_path / "script-1"))
    half = importlib.import_module(name).Partly(share=0.25)
    history = script_job(tmp_path, BODY, mode(2), algorithm=half).run()
    assert [row["admitted"] for row in history.rows] == [2, 2]
    assert history.sha256 != script_job(tmp_path, BODY, threads(2)).run().sha256


def test_an_algorithm_that_a_script_cannot_import_is_refused(tmp_path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(OWN, namespace)
    for name, why in (("Half", "it is no dataclass"), ("Partly", "it is defined in __main__")):
        own = namespace[name]()  # type: ignore[operator]
        with pytest.raises(rd.errors.ConfigError, match=f"{name} is made anew .*{why}.*in a module that the scripts"):
            script_job(tmp_path, BODY, processes(2), algorithm=own).start()

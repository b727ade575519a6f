"""Clients that are scripts: the same bits wherever they run, in surroundings that are a script's own."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from networks import Awkward, examples, small_job
from scripts import BEGIN, BODY, TURN, outcome, processes, script_job, threads, write
from torch import nn
from torch.utils.data import DataLoader

import roundelay as rd

MOMENTUM = BODY.replace("lr=0.1", "lr=0.1, momentum=0.9")
"""Its optimizer's buffers live in a variable from round to round."""


# ---- the same bits --------------------------------------------------------------------------------------------------


def test_processes_and_threads_come_to_the_same_bits_rows_and_tables(tmp_path: Path) -> None:
    modes = [threads(3), *(processes(3, max_concurrent=number) for number in (1, 2, 5))]
    came = [outcome(script_job(tmp_path, MOMENTUM, mode).run()) for mode in modes]
    assert all(one == came[0] for one in came[1:])
    assert len({row["train_loss"] for row in came[0][2]}) == 6  # nobody's draws are another's


def test_which_scripts_live_on_does_not_depend_on_how_many_train_at_once(tmp_path: Path) -> None:
    modes = [threads(3, keep_alive=1), *(processes(3, max_concurrent=number, keep_alive=1) for number in (1, 3))]
    came = [outcome(script_job(tmp_path, MOMENTUM, mode).run()) for mode in modes]
    assert all(one == came[0] for one in came[1:])
    assert came[0][0] != script_job(tmp_path, MOMENTUM, threads(3)).run().sha256  # the momentum was forgotten


def train(net: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """What the script does, as a function."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for inputs, targets in DataLoader(data, batch_size=4, shuffle=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return len(data), {"loss": sum(losses) / len(losses)}


def check_function(root: Path) -> None:
    """The contract: a script's draws between ``receive`` and ``send`` are those of a learner."""
    parts = {f"site-{i + 1}": examples(10 + 2 * i, seed=i) for i in range(3)}
    learnt = small_job(
        data=rd.FederatedData.from_datasets(parts), learner=train, num_rounds=2, clients_per_round=3,
        tracking=rd.Tracking(str(root), "learnt"),
    ).run()  # fmt: skip
    assert outcome(script_job(root, BODY, threads(3)).run()) == outcome(learnt)


def test_a_script_comes_to_the_bits_of_a_function_that_trains(tmp_path: Path) -> None:
    check_function(tmp_path)


def test_the_check_of_functions_catches_a_session_that_does_not_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseeding = types.SimpleNamespace(seed_globals=lambda value: None)
    monkeypatch.setattr("roundelay.client.session.seeds", unseeding)
    with pytest.raises(AssertionError):
        check_function(tmp_path)


def test_a_script_in_a_thread_leaves_the_callers_draws_and_surroundings_as_they_were(tmp_path: Path) -> None:
    def surroundings() -> list[object]:
        return [sys.argv, list(sys.path), sys.modules["__main__"], os.getcwd(), torch.get_num_threads()]

    before, state = surroundings(), torch.get_rng_state()
    script_job(tmp_path, BODY, threads(2)).run()
    assert surroundings() == before
    assert torch.equal(torch.get_rng_state(), state)


# ---- a script's surroundings ----------------------------------------------------------------------------------------

STARTS = "note('starts', 'x')\n"


def starts(history: rd.History) -> list[int]:
    sites = sorted((history.run_folder / "sites").iterdir())
    return [len((site / "starts").read_text().split()) for site in sites]


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_without_the_loop_is_started_for_each_task_and_comes_to_the_same_bits(
    mode: object, tmp_path: Path
) -> None:
    looped = script_job(tmp_path, STARTS + BODY, threads(2)).run()
    straight = script_job(tmp_path, STARTS + BEGIN + TURN, mode(2)).run()
    assert outcome(straight) == outcome(looped)
    assert starts(looped) == [1, 1]
    assert starts(straight) == [2, 2]


LOOKS = """
import json
import beside_{name}
if __name__ == "__main__":
    seen = {{"argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "beside": beside_{name}.VALUE,
            "main": sys.modules["__main__"].__file__}}
    note("seen.json", json.dumps(seen))
"""


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_finds_what_a_script_finds(mode: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a user's folder"
    write(folder, "VALUE = 17", f"beside_{mode.__name__}.py", head="")
    script = write(folder, LOOKS.format(name=mode.__name__) + BODY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    history = rd.Job(
        model=Awkward, script="../a user's folder/client.py", script_args="--lr 0.5 --name 'two words'", num_rounds=1,
        simulation=mode(2), tracking=rd.Tracking(str(tmp_path), "run"),
    ).run()  # fmt: skip
    assert history.rows[0]["admitted"] == 2
    for site in ("site-1", "site-2"):
        seen = json.loads((tmp_path / "run" / "sites" / site / "seen.json").read_text())
        assert seen["argv"] == [str(script), "--lr", "0.5", "--name", "two words"]
        assert (seen["path"], seen["main"], seen["beside"]) == (str(folder), str(script), 17)
        assert seen["cwd"] == str(tmp_path / "run" / "sites" / site)


def test_what_a_script_prints_is_in_its_folder(tmp_path: Path) -> None:
    text = BODY + "    print('trained', fl.get_site_name(), model.current_round, model.total_rounds)\n"
    history = script_job(tmp_path, text, processes(2)).run()
    for site in ("site-1", "site-2"):
        printed = (history.run_folder / "sites" / site / "output.log").read_text()
        assert printed == f"trained {site} 0 2\ntrained {site} 1 2\n"


@pytest.mark.parametrize("mode", [threads, processes])
def test_a_script_may_go_on_after_the_last_round(mode: object, tmp_path: Path) -> None:
    after = "torch.save(net.state_dict(), 'mine.pt')\nnote('end', fl.receive() is None)\n"
    history = script_job(tmp_path, BODY + after, mode(2), num_rounds=1).run()
    for site in ("site-1", "site-2"):
        folder = history.run_folder / "sites" / site
        assert (folder / "mine.pt").exists()
        assert (folder / "end").read_text() == "True\n"


@pytest.mark.parametrize("mode", [threads, processes])
def test_what_a_script_logs_after_its_last_answer_is_kept(mode: object, tmp_path: Path) -> None:
    text = BODY + "    fl.log('after', 1.0)\nfl.log('at the end', 2.0)\n"
    history = script_job(tmp_path, text, mode(2)).run()
    rows = [json.loads(line) for line in (history.run_folder / "scalars.jsonl").read_text().splitlines()]
    of_one = [(row["round"], row["name"]) for row in rows if row["client"] == "site-1"]
    assert of_one == [(1, "after"), (2, "after"), (2, "at the end")]


def test_a_data_loader_may_have_workers(tmp_path: Path) -> None:
    helped = BODY.replace("train(net, optimizer, data)", "train(net, optimizer, data, num_workers=1)")
    alone = script_job(tmp_path, BODY, threads(2), num_rounds=1).run()
    assert outcome(script_job(tmp_path, helped, processes(2), num_rounds=1).run()) == outcome(alone)


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

SERIAL = rd.Simulation(executor="serial")
UNFIT = {
    "workers": ({"simulation": rd.Simulation(num_clients=2, num_workers=2)}, "max_concurrent says how many train"),
    "devices": ({"simulation": rd.Simulation(num_clients=2, devices={"cuda:0": 1})}, "chooses its own device"),
    "serial": ({"simulation": rd.Simulation(executor="serial", num_clients=2)}, "not in the serial executor"),
    "IFCA": ({"algorithm": rd.IFCA(num_clusters=2)}, "IFCA asks clients for the losses of models, which a script"),
    "label flips": ({"attacks": [rd.attacks.LabelFlip(fraction=0.5)]}, "LabelFlip.*scripts have their own"),
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
from roundelay.algorithms import FedAvg
from roundelay.algorithms.protocol import Fit, Reply

@dataclass(frozen=True, slots=True)
class Halfway(FedAvg):
    pass

class Half:
    uplink = {"params": "examples"}
    def init(self, params, num_clients): return {"params": params}
    def broadcast(self, state): return {"params": state["params"]}
    def first_memory(self, params): return {}
    def client(self, received, memory):
        end = yield Fit(received["params"])
        return Reply({"params": received["params"].lerp(end.params, 0.5)}, end.num_examples)
    def apply(self, state, totals): return {"params": totals[0].mean("params")}
"""


@pytest.mark.parametrize("mode", [threads, processes])
def test_an_algorithm_in_a_module_beside_the_script_works(
    mode: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"own_{mode.__name__}"
    write(tmp_path / "script-1", OWN, f"{name}.py", head="")
    monkeypatch.syspath_prepend(str(tmp_path / "script-1"))
    half = __import__(name).Half()
    history = script_job(tmp_path, BODY, mode(2), algorithm=half).run()
    assert [row["admitted"] for row in history.rows] == [2, 2]
    assert history.sha256 != script_job(tmp_path, BODY, threads(2)).run().sha256


def test_an_algorithm_that_a_script_cannot_import_is_refused(tmp_path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(OWN, namespace)
    for own in (namespace["Half"](), namespace["Halfway"]()):  # type: ignore[operator]
        with pytest.raises(rd.errors.ConfigError, match="put it into a module of its own"):
            script_job(tmp_path, BODY, processes(2), algorithm=own).start()

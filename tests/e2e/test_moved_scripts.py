"""Training scripts written as NVFlare's users write them take part as they are, but for the line that imports."""

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import roundelay as rd

MOVED = Path(__file__).with_name("moved")
EXECUTORS = ["processes", "threads"]


def network() -> Any:  # Any: a module that was loaded from a file
    spec = importlib.util.spec_from_file_location("moved_network", MOVED / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def job(name: str, root: Path, **changes: Any) -> rd.Job:
    settings = {"num_rounds": 3, "seed": 5, "tracking": rd.Tracking(root=str(root), name=name)} | changes
    return rd.Job(model=network().Net, script=MOVED / f"{name}.py", **settings)


def simulation(executor: str, **changes: Any) -> rd.Simulation:
    return rd.Simulation(executor=executor, num_clients=2, **changes)


@pytest.mark.parametrize("name", ["loop", "once", "difference"])
def test_only_the_import_names_roundelay(name: str) -> None:
    lines = (MOVED / f"{name}.py").read_text().splitlines()
    assert [line for line in lines if "roundelay" in line] == ["import roundelay.client as flare"]


@pytest.fixture(scope="module")
def looped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rd.History]:
    """What loop.py came to, in processes and in threads."""
    runs = {}
    for executor in EXECUTORS:
        root = tmp_path_factory.mktemp(executor)
        moved = job("loop", root, workflow=rd.CrossSite(), script_args="--batch_size 32")
        runs[executor] = moved.run(simulation(executor))
    return runs


def test_a_script_with_a_loop_ends_in_the_same_bits_in_processes_and_in_threads(
    looped: dict[str, rd.History],
) -> None:
    beside, inside = (looped[executor] for executor in EXECUTORS)
    assert beside.sha256 == inside.sha256
    assert beside.records == inside.records
    assert [row["admitted"] for row in beside.rows] == [2, 2, 2]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_each_site_keeps_the_model_that_it_saved_in_the_last_round_under_a_relative_name(
    looped: dict[str, rd.History], executor: str
) -> None:
    folder = looped[executor].run_folder
    assert folder is not None
    saved = [torch.load(folder / "sites" / site / "local_model.pt") for site in ("site-1", "site-2")]
    last = torch.load(folder / "last.pt")
    for name, value in last.items():
        if value.is_floating_point():  # no num_examples: the plain mean of what the sites sent last
            torch.testing.assert_close(value, (saved[0][name] + saved[1][name]) / 2)
    assert not torch.equal(saved[0]["layers.0.weight"], saved[1]["layers.0.weight"])
    assert last["layers.1.num_batches_tracked"] == 3 * 4  # 128 points in batches of 32


def test_what_it_prints_is_in_its_site_s_file_and_says_what_it_was_asked_for(looped: dict[str, rd.History]) -> None:
    folder = looped["processes"].run_folder
    assert folder is not None
    for site in ("site-1", "site-2"):
        printed = (folder / "sites" / site / "output.log").read_text().splitlines()
        assert printed[:4] == [*(f"site={site} round={i}" for i in range(3)), "last round, local model saved"]
        assert len(printed) == 4 + 1 + 3  # its model is asked for, then it measures three


def test_what_it_logs_is_in_the_table_of_scalars(looped: dict[str, rd.History]) -> None:
    folder = looped["threads"].run_folder
    assert folder is not None
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    logged = sorted((row["client"], row["round"], row["name"], row["step"]) for row in rows)
    assert logged == [(f"site-{site}", i, "train_loss", i * 4) for site in (1, 2) for i in (1, 2, 3)]


def test_the_matrix_holds_what_each_site_s_model_is_worth_on_each_site_s_points(
    looped: dict[str, rd.History],
) -> None:
    history, moved = looped["processes"], network()
    folder = history.run_folder
    assert folder is not None
    files = [folder / "last.pt", *(folder / "sites" / f"site-{number}" / "local_model.pt" for number in (1, 2))]
    for file, row in zip(files, history.records["cross_site"]["accuracy"], strict=True):  # type: ignore[arg-type]
        net = moved.Net()
        net.load_state_dict(torch.load(file))
        for number, measured in enumerate(row, start=1):
            points, labels = moved.points_of(f"site-{number}")
            assert (net.eval()(points).argmax(1) == labels).float().mean().item() == pytest.approx(measured)


def test_a_script_without_a_loop_is_started_for_every_task_and_ends_in_the_bits_of_one_with_a_loop(
    tmp_path: Path,
) -> None:
    """Nothing that once.py needs lasts over rounds, and loop.py keeps nothing either."""
    shas = {}
    for executor in EXECUTORS:
        history = job("once", tmp_path / executor).run(simulation(executor))
        shas[executor] = history.sha256
    assert history.run_folder is not None
    printed = (tmp_path / "processes" / "once" / "sites" / "site-2" / "output.log").read_text()
    assert re.findall(r"round (\d) is done", printed) == ["0", "1", "2"]
    shas["loop"] = job("loop", tmp_path / "loop").run(simulation("threads")).sha256
    assert len(set(shas.values())) == 1, shas


def test_numpy_differences_come_to_the_model_that_whole_models_come_to(tmp_path: Path) -> None:
    shas = [job("difference", tmp_path / executor).run(simulation(executor)).sha256 for executor in EXECUTORS]
    assert shas[0] == shas[1]
    whole = job("loop", tmp_path / "whole").run(simulation("threads")).model.state_dict()
    for name, value in torch.load(tmp_path / "threads" / "difference" / "last.pt").items():
        torch.testing.assert_close(value, whole[name], msg=lambda text, name=name: f"{name}: {text}")


def test_without_num_examples_all_sites_weigh_the_same_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        history = job("once", tmp_path, num_rounds=1).run(simulation("threads"))
    assert [record.message for record in caplog.records if "num_examples" in record.message] == [
        "the scripts send no num_examples: all clients weigh the same in the average"
    ]
    assert [row["num_examples"] for row in history.clients()] == [1.0, 1.0]

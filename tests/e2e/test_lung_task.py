"""The task on the lung data: as its page shows it, from the package and from a file; and the pages beside it."""

import re
import runpy
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import roundelay as rd
from roundelay import config
from roundelay.data import csv_by_site
from roundelay.data.ncctg import lung
from roundelay.tracking.run_folder import Tracking

ROOT = Path(__file__).parents[2]

needs_lifelines = pytest.mark.skipif(find_spec("lifelines") is None, reason="no lung data: lifelines is not installed")


def table() -> Path:
    spec = find_spec("lifelines")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "lung.csv"


@needs_lifelines
def test_it_learns_and_a_csv_file_as_r_writes_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    given = ["num_rounds=10", f"tracking.root={tmp_path}"]
    history = config.load("task:lung", given).run()
    assert history.metrics["auc"] > 0.6
    assert (history.run_folder / "label_counts.json").exists()  # of which the picture of the split is drawn
    header, *lines = table().read_text().splitlines()
    rows = [line.split(",") for line in lines]
    r = [[str(n), *(cell or "NA" for cell in row)] for n, row in enumerate(rows, start=1)]
    for row in r:
        row[3] = str(int(row[3]) + 1)  # R says 2 for a death, 1 for a patient who was seen alive
    text = "\n".join(",".join(row) for row in [['""', *header.split(",")], *r])
    (tmp_path / "lung.csv").write_text(text + "\n")
    again = config.load("task:lung", [*given, f"data.folder={tmp_path}"]).run()
    assert again.sha256 == history.sha256


@needs_lifelines
def test_the_comparison_runs_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--seeds", "1", "--rounds", "2"])
    runpy.run_path(str(ROOT / "examples" / "lung" / "compare.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert re.findall(r"\| (one place|FedAvg|each alone) \|", shown) == ["one place", "FedAvg", "each alone"] * 2


@needs_lifelines
@pytest.mark.slow
def test_over_several_splits_training_together_beats_training_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--seeds", "8"])
    runpy.run_path(str(ROOT / "examples" / "lung" / "compare.py"), run_name="__main__")
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "±" in line]
    areas = {(cells[1].strip(), cells[2].strip()): float(cells[4].split()[0]) for cells in lines[1:]}
    for model in ("logistic regression", "MLP, 16 hidden units"):
        assert areas[model, "FedAvg"] > areas[model, "each alone"] + 0.02
        assert areas[model, "FedAvg"] > areas[model, "one place"] - 0.02


def test_the_tables_that_the_pages_show_are_read_as_written(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "tasks" / "lung.md").read_text(), flags=re.S)
    made = config.parts_of(tomllib.loads(shown))["data"]
    assert made.func is csv_by_site
    rows = [f"{50 + n},{n},red,{'ab'[n % 2]},{n % 3}" for n in range(12)]
    (tmp_path / "table.csv").write_text("\n".join(["age,dose,colour,hospital,outcome", *rows]) + "\n")
    assert made(folder=tmp_path).clients == ("a", "b")
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "tracking.md").read_text(), flags=re.S)
    tracking = config.parts_of(tomllib.loads(shown))["tracking"]
    assert tracking == Tracking(tensorboard=True, wandb="project", mlflow="sqlite:///runs/mlflow.db")


@needs_lifelines
def test_the_page_says_how_to_train_the_other_model(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tasks" / "lung.md").read_text()
    (setting,) = re.findall(r"--set '(model=.*?)'", page)
    job = config.load("task:lung", [setting, "num_rounds=1", f"tracking.root={tmp_path}"])
    job.run()
    assert isinstance(job.model(), rd.models.MLP)  # type: ignore[operator]
    assert lung().clients == job.data().clients  # type: ignore[operator, misc]

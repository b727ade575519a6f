"""The reference task of detection: on photographs that were drawn, from the command line, and on the real ones."""

import re
import tomllib
from pathlib import Path

import pytest
from photographs import some, voc_folder
from support import data_folder
from typer.testing import CliRunner

from roundelay import config
from roundelay.cli import app
from roundelay.data import partition_boxes
from roundelay.data.partition_boxes import ByScene
from roundelay.errors import DataError
from roundelay.models import torchvision_detector
from roundelay.tracking.run_folder import read_rows

SMALL = ("num_rounds=2", "learner.local_epochs=1", "model.num_classes=2", "model.width=8", "data.image_size=64",
         "evaluation.every=1", "evaluation.clients_every=1")  # fmt: skip


def ran(folder: Path, into: Path, *settings: str) -> tuple[str, Path]:
    options = [option for setting in (*settings, f"tracking.root={into}", "tracking.name=run")
               for option in ("--set", setting)]  # fmt: skip
    result = CliRunner().invoke(app, ["run", "task:detection", "--data", str(folder), *options])
    assert result.exit_code == 0, result.output
    return result.output, into / "run"


def test_it_runs_on_any_devices_photographs(tmp_path: Path) -> None:
    parts = {"north": (some(7, 1), some(3, 2)), "south": (some(5, 3), some(3, 4))}
    output, folder = ran(voc_folder(tmp_path / "data", parts), tmp_path / "runs", *SMALL)
    rows = read_rows(folder / "metrics.jsonl")
    assert {"map", "map_50", "voc_map", "client_map_50", "pooled_map_50", "recall_100"} <= set(rows[-1])
    assert rows[-1]["pooled_map_50"] == pytest.approx(rows[-1]["map_50"])  # the server's set is all of theirs
    assert (folder / "detections.png").stat().st_size > 5000
    assert (folder / "client_map_50.png").is_file()
    assert (folder / "best.pt").is_file()
    assert "docs/tasks/detection.md" in output
    assert config.load(folder / "job.toml").to_toml() == (folder / "job.toml").read_text()


def test_the_tables_that_its_page_shows_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks" / "detection.md").read_text()
    by_scene, other = re.findall(r"```toml\n(.*?)```", page, flags=re.S)
    assert config.parts_of(tomllib.loads(by_scene))["partition"] == ByScene(num_clients=8)
    assert config.parts_of(tomllib.loads(other))["model"].func is torchvision_detector
    named = {name for cell in re.findall(r"`(\w+)`", page) for name in (cell.replace("_", ""),)}
    assert {name.lower() for name in partition_boxes.__all__} <= named


def test_without_its_data_it_says_what_to_put_where(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "task:detection", "--data", str(tmp_path / "none")])
    assert isinstance(result.exception, DataError)
    told = str(result.exception)
    assert "no such folder; make it and put a folder for each device" in told
    assert "ImageSets/Main/train.txt" in told


@pytest.mark.slow
def test_on_the_real_photographs_it_learns(tmp_path: Path) -> None:
    _, folder = ran(data_folder("trees"), tmp_path, "num_rounds=12", "learner.schedule.num_rounds=12")
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row.get("map_50") is not None]
    assert rows[-1]["map_50"] > 0.08
    assert rows[-1]["map_50"] > rows[0]["map_50"]
    assert rows[-1]["pooled_map_50"] == pytest.approx(rows[-1]["map_50"])

"""The tasks of images as commands: on files of the same form, and on the real ones."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from image_sets import idx, random_pixels, write_leaf, write_table
from support import data_folder

import roundelay as rd
from roundelay import config
from roundelay.cli import app
from roundelay.data import images
from roundelay.errors import DataError
from roundelay.tracking.run_folder import read_rows

RNG = np.random.default_rng(6)
SMALL = ["--set", "num_rounds=2", "--set", "clients_per_round=2", "--set", "evaluation.every=1"]
SERIAL = ["--set", 'simulation.executor="serial"']


def commanded(task: str, folder: Path, root: Path, *settings: str) -> Path:
    where = ["--set", f'tracking.root="{root}"', "--set", 'tracking.name="run"']
    app(["run", f"task:{task}", "--data", str(folder), *where, *settings], standalone_mode=False)
    return root / "run"


def cifar10_form(folder: Path) -> None:
    for name in ("data_batch_1", "test_batch"):
        write_table(folder / name, random_pixels(24), labels=[at % 10 for at in range(24)])


def mnist_form(folder: Path) -> None:
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(RNG.integers(0, 256, (24, 28, 28), dtype=np.uint8)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(24, dtype=np.uint8) % 10))


def femnist_form(folder: Path) -> None:
    for part in ("train", "test"):
        writers = {f"f000{n}_14": (RNG.integers(0, 256, (3, 784)), [n, 61, 40]) for n in range(4)}
        write_leaf(folder / part / f"all_data_0_{part}.json", writers)


@pytest.mark.parametrize(
    ("task", "write", "settings"),
    [
        ("cifar10", cifar10_form, ["--set", "partition.num_clients=4"]),
        ("cifar10", cifar10_form, ["--set", 'partition={use="class_mixture", num_clients=4, alpha=0.1}']),
        ("mnist", mnist_form, ["--set", "partition.num_clients=4"]),
        ("femnist", femnist_form, []),
    ],
)
def test_a_task_runs_on_files_of_its_form_and_shows_the_reference(tmp_path, capsys, task, write, settings):
    write(tmp_path)
    run = commanded(task, tmp_path, tmp_path, *SMALL, *SERIAL, *settings)
    rows = read_rows(run / "metrics.jsonl")
    assert [row["round"] for row in rows] == [1, 2]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert "reference" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["cifar10", "mnist", "femnist"])
def test_where_data_is_absent_the_command_says_what_to_put_where(tmp_path, task):
    with pytest.raises(DataError, match=r"no such folder; make it and put .* into it"):
        commanded(task, tmp_path / "absent", tmp_path, *SERIAL)


def test_a_damaged_image_costs_its_client_the_round_and_is_named(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="no images: Pillow is not installed")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for at in range(12):
            image.new("L", (8, 8), at).save(tmp_path / "set" / name / f"{at:02d}.png")
    (tmp_path / "set" / "dog" / "05.png").write_bytes(b"spoilt")
    job = rd.Job(
        model=lambda: rd.models.Logistic(64, 2),
        data=lambda: rd.data.image_folder(tmp_path / "set", size=8, mean=(0.5,), std=(0.5,)),
        partition=rd.IID(4), num_rounds=1, learner=rd.LocalSGD(lr=0.1),
        simulation=rd.Simulation(executor="serial"), tracking=rd.Tracking(str(tmp_path), "run"),
    )  # fmt: skip
    history = job.run()
    assert (history.rows[0]["admitted"], history.rows[0]["lost"]) == (3, 1)
    told = [row for row in read_rows(tmp_path / "run" / "clients.jsonl") if "DataError" in json.dumps(row)]
    assert len(told) == 1
    assert "05.png: cannot decode it" in json.dumps(told)


def test_the_tables_on_the_page_of_images_are_read_as_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    data, learner = (
        config.parts_of(tomllib.loads(text)) for text in re.findall(r"```toml\n(.*?)```", page, flags=re.S)
    )
    assert data["data"].keywords["std"] == (0.229, 0.224, 0.225)
    assert learner["learner"].augment.steps == (rd.data.RandomCrop(4), rd.data.HorizontalFlip())
    assert all(
        f"`{name}`" in page for name in [*images.__all__, "random_crop", "horizontal_flip", "normalise", "compose"]
    )


def test_the_published_setting_is_the_task() -> None:
    job = config.load("task:cifar10")
    assert (job.num_rounds, job.clients_per_round, job.partition) == (1500, 50, rd.IID(1000))
    assert job.learner == rd.LocalSGD(lr=0.1, batch_size=10, local_epochs=1)
    for task, number in (("cifar10", 1_626_442), ("mnist", 1_663_370), ("femnist", 1_206_590)):
        assert sum(p.numel() for p in config.load(f"task:{task}").model().parameters()) == number


@pytest.mark.slow
def test_cifar10_learns_on_the_real_images(tmp_path):
    run = commanded(
        "cifar10", data_folder("cifar-10-batches-bin"), tmp_path, "--set", "num_rounds=10",
        "--set", "partition.num_clients=200", "--set", "simulation.num_workers=2",
    )  # fmt: skip
    assert read_rows(run / "metrics.jsonl")[-1]["accuracy"] > 0.27


@pytest.mark.slow
def test_mnist_learns_on_the_real_digits(tmp_path):
    run = commanded(
        "mnist", data_folder("mnist"), tmp_path, "--set", "num_rounds=4", "--set", "simulation.num_workers=2"
    )
    assert read_rows(run / "metrics.jsonl")[-1]["accuracy"] > 0.95

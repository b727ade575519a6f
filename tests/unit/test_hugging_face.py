"""Sets of Hugging Face's library, in memory and as it saves them: columns are images, classes, clients."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.data import from_tables, hugging_face
from roundelay.errors import DataError, MissingExtra

datasets = pytest.importorskip("datasets", reason="no Hugging Face sets: datasets is not installed")
Image = pytest.importorskip("PIL.Image", reason="no images: Pillow is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PIXELS = np.random.default_rng(5).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
CLASSES = ["cat", "dog", "fox"]


def table(number: int = 12, **changes: object) -> "datasets.Dataset":
    columns = {
        "image": [Image.fromarray(pixels) for pixels in PIXELS[:number]],
        "label": [at % 3 for at in range(number)],
        "writer": [f"w{at % 4}" for at in range(number)],
        **changes,
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES), "writer": datasets.Value("string")}
    features = {name: kinds[name] for name in columns if name in kinds and name not in changes}
    others = {name: datasets.Value("string" if isinstance(columns[name][0], str) else "int64") for name in changes}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**features, **others}))


def test_images_and_classes_are_those_of_the_rows():
    data = from_tables(table(), table(3), size=6, client="writer", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    inputs, targets = next(data.train.batches(torch.tensor([7, 0]), 2))
    np.testing.assert_array_equal((inputs * 255).round().numpy(), PIXELS[[7, 0]].transpose(0, 3, 1, 2))
    assert targets.tolist() == [1, 0]
    assert data.train.labels().tolist() == [0, 1, 2] * 4
    assert (len(data.test), data.groups[:5]) == (3, ["w0", "w1", "w2", "w3", "w0"])
    rearranged = from_tables(table().select([5, 2]), None, size=6, mean=(0.0,) * 3, std=(1.0,) * 3)
    np.testing.assert_array_equal((rearranged.train[1][0] * 255).round().numpy(), PIXELS[2].transpose(2, 0, 1))
    assert rearranged.train.labels().tolist() == [2, 2]


def test_classes_may_be_text_and_columns_may_have_other_names():
    named = table(4, kind=["fox", "cat", "fox", "dog"]).rename_column("image", "img")
    data = from_tables(named, None, size=(4, 3), image="img", label="kind", mean=(0.5,), std=(0.5,))
    assert data.train.labels().tolist() == [2, 0, 2, 1]
    assert data.train[0][0].shape == (1, 4, 3)
    with pytest.raises(DataError, match="class 'cow' of the test split is in no training example"):
        from_tables(named, table(1, kind=["cow"]).rename_column("image", "img"), 4, image="img", label="kind")


def test_a_saved_set_trains_by_its_natural_clients(tmp_path):
    datasets.DatasetDict(train=table(), test=table(5)).save_to_disk(tmp_path / "both")
    table().save_to_disk(tmp_path / "one")
    alone = hugging_face(tmp_path / "one", size=6)
    assert (len(alone.train), alone.test, alone.groups) == (12, None, None)
    job = small_job(
        model=Tiny, data=lambda: hugging_face(tmp_path / "both", size=6, client="writer"), partition=rd.Natural(),
        tracking=rd.Tracking(str(tmp_path), "run"),
    )  # fmt: skip
    history = job.run()
    assert history.metrics["accuracy"] >= 0
    assert {row["client"] for row in history.clients()} == {"w0", "w1", "w2", "w3"}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(108, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(x.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_tables(table(), None, 6, image="img"), "column 'img' is unknown; did you mean 'image'"),
        (
            lambda: from_tables(table(), None, 6, client="author"),
            "column 'author' is unknown.* Known: image, label, writer",
        ),
        (lambda: from_tables(table(2, label=[0, -1]), None, 6), "row 1, column 'label': expected a class from 0 up"),
        (
            lambda: from_tables(table(), table(2).remove_columns("label"), 6),
            "column 'label' of the test split is unknown",
        ),
    ],
)
def test_what_is_wrong_is_named(make, says):
    with pytest.raises(DataError, match=says):
        make()


def test_a_damaged_or_foreign_image_is_named_by_its_row(tmp_path):
    spoilt = table().cast_column("image", datasets.Image(decode=False))
    rows = [{**row, "image": {"bytes": b"no image", "path": None}} if at == 4 else row for at, row in enumerate(spoilt)]
    broken = datasets.Dataset.from_list(rows, features=table().features)
    data = from_tables(broken, None, size=6)
    assert data.train[3][1] == 0
    with pytest.raises(DataError, match="row 4, column 'image': no image can be made of it"):
        data.train[4]
    numbers = from_tables(table(2, image=[1, 2]), None, size=6)
    with pytest.raises(DataError, match=r"row 0, column 'image': .*it is a int; cast the column to datasets\.Image"):
        numbers.train[0]


def test_what_is_absent_is_said(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"empty: no data set is there .* give a folder that Dataset\.save_to_disk wrote"
    ):
        hugging_face(tmp_path / "empty", size=6)
    datasets.DatasetDict(training=table()).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match="split 'train' is unknown; did you mean 'training'"):
        hugging_face(tmp_path / "both", size=6)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'roundelay\[huggingface\]'"):
        hugging_face(Path("x"), size=6)

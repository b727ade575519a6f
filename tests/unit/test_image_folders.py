"""A folder for each class: images are read one by one when they are needed, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from roundelay.data import image_folder
from roundelay.data.images import folders
from roundelay.errors import ConfigError, DataError, MissingExtra

Image = pytest.importorskip("PIL.Image", reason="no images: Pillow is not installed")


def write(folder: Path, number: int, colour: tuple[int, int, int], suffix: str = ".png", side: int = 8) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(number):
        Image.new("RGB", (side + at, side), colour).save(folder / f"{at:02d}{suffix}")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    write(tmp_path / "dog", 6, (255, 0, 0))
    write(tmp_path / "cat", 4, (0, 255, 0), ".bmp")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_classes_are_folders_in_order_of_name_and_images_have_the_stated_size(classes):
    data = image_folder(classes, size=(5, 4))
    assert data.train.labels().tolist() == [0] * 4 + [1] * 6
    assert data.test is None
    inputs, targets = next(data.train.batches(torch.tensor([9, 0]), 2))
    assert inputs.shape == (2, 3, 5, 4)
    assert inputs.dtype == torch.float32
    assert inputs[:, :, 2, 2].tolist() == [[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]
    assert targets.tolist() == [1, 0]


def test_one_number_makes_them_grey_and_pixels_are_where_they_were(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    image, label = image_folder(tmp_path, size=(3, 4), mean=(0.0,), std=(1.0,)).train[0]
    assert label == 0
    np.testing.assert_array_equal(image[0].numpy() * 255, pixels)


def test_a_split_into_train_and_test_is_kept(tmp_path):
    write(tmp_path / "train" / "cat", 3, (0, 0, 0))
    write(tmp_path / "train" / "dog", 2, (0, 0, 0))
    write(tmp_path / "test" / "dog", 2, (0, 0, 0))
    data = image_folder(tmp_path, 6)
    assert data.train.labels().tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels().tolist() == [1, 1]
    write(tmp_path / "test" / "fox", 1, (0, 0, 0))
    with pytest.raises(DataError, match=r"fox: no images of this class are in .*train"):
        image_folder(tmp_path, 6)
    with pytest.raises(ConfigError, match="has a folder test already; leave test_fraction out"):
        image_folder(tmp_path, 6, test_fraction=0.5)


def test_a_share_of_each_class_is_held_out_always_the_same(classes):
    data, again = (image_folder(classes, 6, test_fraction=0.5) for _ in range(2))
    assert data.test.labels().tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(data.test.indices, again.test.indices)
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(10))


def test_nothing_is_read_before_it_is_needed_and_nothing_is_kept(classes, monkeypatch):
    read: list[int] = []
    real = folders.Files.image
    monkeypatch.setattr(folders.Files, "image", lambda self, number: read.append(number) or real(self, number))
    part = image_folder(classes, 6).train.select(torch.tensor([7, 2]))
    part.labels()
    assert read == []
    for _ in range(2):
        list(part.batches(torch.tensor([1]), 1))
    assert read == [2, 2]


@pytest.mark.parametrize("spoil", [lambda whole: whole[:45], lambda whole: b"", lambda whole: b"GIF89a, or so"])
def test_a_damaged_image_is_named_with_the_fix(classes, spoil):
    file = classes / "dog" / "03.png"
    data = image_folder(classes, 6)
    file.write_bytes(spoil(file.read_bytes()))
    assert len(list(data.train.batches(torch.tensor([0, 6, 8]), 1))) == 3
    with pytest.raises(DataError, match=r"cannot decode it .* replace it with a fresh copy, or delete it") as caught:
        list(data.train.batches(torch.tensor([7]), 1))
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match=r"03\.png: no such file"):
        list(data.train.batches(torch.tensor([7]), 1))


def test_settings_and_folders_are_checked(classes, tmp_path, monkeypatch):
    for size in (0, (3,), (3, 4, 5), 2.5, "big"):
        with pytest.raises(ConfigError, match="size: expected a number of pixels, or a height and a width"):
            image_folder(classes, size)
    with pytest.raises(ConfigError, match="expected 3 numbers each for colour, or 1 for grey, got 2 and 2"):
        image_folder(classes, 4, mean=(0.0, 0.0), std=(1.0, 1.0))
    for fraction in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="test_fraction: expected a number in"):
            image_folder(classes, 4, test_fraction=fraction)
    with pytest.raises(DataError, match="no folder with images is there; put one for each class there"):
        image_folder(classes / "empty", 4)
    data = image_folder(classes, 4)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'roundelay\[images\]'"):
        data.train[0]

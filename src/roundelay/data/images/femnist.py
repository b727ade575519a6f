"""FEMNIST as LEAF writes it: handwritten digits and letters, a client for each writer."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from roundelay.data.examples import TensorExamples
from roundelay.data.federated import FederatedData
from roundelay.data.images.files import REPLACE, existing_folder
from roundelay.data.images.pixels import PixelExamples
from roundelay.errors import DataError

SIDE, NUM_CLASSES = 28, 62


def femnist(folder: str | os.PathLike[str]) -> FederatedData:
    """Read the JSON files in ``train`` and ``test``, as LEAF's preprocessing leaves them in ``data/femnist/data``.

    Writers are clients; each is tested on their own part of ``test``, the server on all of it. Inputs are LEAF's own,
    (N, 1, 28, 28), from 0, black ink, to 1, white paper; classes are 0 to 9, A to Z, a to z. LEAF's numbers are 255ths,
    of which a byte is kept; a file at a time is in memory as text, and each number in it as a reference.

    Raises:
        DataError: a file is absent, damaged, or not LEAF's FEMNIST; the message names it, and the writer.
    """
    path = existing_folder(folder, "LEAF's folders train and test of FEMNIST (its data/femnist/data)")
    train, test = (_read(path / part) for part in ("train", "test"))
    tests = {writer: part for writer, part in test.parts().items() if writer in train.sizes}
    return FederatedData.from_datasets(train.parts(), held_out=test.examples(), tests=tests or None)


@dataclass(slots=True)
class _Collected:
    """The writers of several files, one after the other."""

    pixels: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def examples(self) -> PixelExamples:
        if len(self.pixels) > 1:  # once, so that all parts share one tensor
            self.pixels, self.labels = [np.concatenate(self.pixels)], [np.concatenate(self.labels)]
        return PixelExamples(TensorExamples(torch.from_numpy(self.pixels[0]), torch.from_numpy(self.labels[0])))

    def parts(self) -> dict[str, PixelExamples]:
        whole, start = self.examples(), 0
        parts = {}
        for writer, size in self.sizes.items():
            parts[writer] = whole.select(torch.arange(start, start + size))
            start += size
        return parts


class _Shared(dict[str, float]):
    """Numbers by their text: the 256 greys of a file are 256 objects, not one for each pixel."""

    def __missing__(self, text: str) -> float:
        self[text] = number = float(text)
        return number


def _read(folder: Path) -> _Collected:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(
            f"{folder}: no *.json is there; put what LEAF's preprocess.sh wrote into data/{folder.name} there"
        )
    found = _Collected()
    for file in files:
        for writer, pixels, labels in _writers(file):
            if writer in found.sizes:
                raise DataError(f"{file}: writer {writer!r} is in an earlier file too; is a file there twice?")
            found.pixels.append(pixels)
            found.labels.append(labels)
            found.sizes[writer] = len(labels)
    if not found.sizes:
        raise DataError(f"{files[0]}: no writer in it has an example; is it a file of LEAF's FEMNIST?")
    return found


def _writers(file: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each writer with examples: id, uint8 (N, 1, 28, 28), int64 (N,)."""
    try:
        document = json.loads(file.read_bytes(), parse_float=_Shared().__getitem__)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: it is no JSON ({error}); {REPLACE}") from error
    try:
        users, sizes, data = document["users"], document["num_samples"], document["user_data"]
        listed = [(str(user), size, data[user]["x"], data[user]["y"]) for user, size in zip(users, sizes, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: expected LEAF's users, num_samples and user_data with x and y for each, lacks "
                        f"{error}; is it a file of LEAF's FEMNIST?") from error  # fmt: skip
    for user, size, x, y in listed:
        if type(size) is not int or size < 0:
            raise DataError(f"{file}: writer {user!r}: expected a number of examples in num_samples, got "
                            f"{str(size)[:80]!r}; {REPLACE}")  # fmt: skip
        if size:
            yield user, _pixels(file, user, size, x), _labels(file, user, size, y)


def _pixels(file: Path, user: str, size: int, x: object) -> np.ndarray:
    wanted = f"{file}: writer {user!r}: expected {size} images of {SIDE * SIDE} numbers from 0 to 1"
    try:
        with np.errstate(all="ignore"):  # what is too large, or no number, is refused below
            values = np.asarray(x, dtype=np.float32) * 255
            grey = values.round()
            off = np.abs(values - grey)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{wanted}, got others ({error}); {REPLACE}") from error
    if values.shape != (size, SIDE * SIDE):
        raise DataError(f"{wanted}, got shape {values.shape}; {REPLACE}")
    if not (off < 0.01).all() or grey.min() < 0 or grey.max() > 255:
        raise DataError(f"{wanted}, 255ths, got others; is it a file of LEAF's FEMNIST, and not normalised since?")
    return grey.astype(np.uint8).reshape(size, 1, SIDE, SIDE)


def _labels(file: Path, user: str, size: int, y: object) -> np.ndarray:
    try:
        labels = np.asarray(y)
    except ValueError as error:  # lists of several lengths
        raise DataError(f"{file}: writer {user!r}: expected {size} classes, got others ({error}); {REPLACE}") from error
    if labels.shape != (size,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise DataError(f"{file}: writer {user!r}: expected {size} classes from 0 to {NUM_CLASSES - 1}, one for each "
                        f"image; {REPLACE}")  # fmt: skip
    return labels.astype(np.int64)

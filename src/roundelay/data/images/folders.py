"""A folder with a folder of images for each class, read an image at a time."""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from roundelay import seeds
from roundelay.data.examples import Data, MapExamples
from roundelay.data.images.decoding import Decoded, Form
from roundelay.data.images.files import existing_folder
from roundelay.data.images.pixels import Channels
from roundelay.errors import ConfigError, DataError, optional

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def image_folder(
    folder: str | os.PathLike[str], size: int | Sequence[int], test_fraction: float = 0.0,
    mean: Channels = (0.5, 0.5, 0.5), std: Channels = (0.5, 0.5, 0.5),
) -> Data:  # fmt: skip
    """Read ``folder/CLASS/*.png``, or ``folder/train/CLASS/*`` and ``folder/test/CLASS/*``; classes are numbered in the
    order of their names.

    Images are opened when a batch needs them, brought to ``size``, a side or (height, width), and kept by nobody: what
    is in memory is their names. One number in ``mean`` and ``std`` each makes them grey. Where there is no ``test``, a
    ``test_fraction`` of each class is held out, always the same.

    Raises:
        ConfigError: a setting is out of range.
        DataError: there is no image, or a class of the test that training has not. An image that cannot be decoded is
            found when it is read; the message names it.
    """
    form, path = Form(size, mean, std), existing_folder(folder, "a folder of images for each class")
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction: expected a number in [0, 1), got {test_fraction!r}")
    split = (path / "train").is_dir() and (path / "test").is_dir()
    if split and test_fraction:
        raise ConfigError(f"test_fraction: {path} has a folder test already; leave test_fraction out")
    root = path / "train" if split else path
    classes = sorted(inner.name for inner in root.iterdir() if inner.is_dir() and _images(inner))
    if not classes:
        raise DataError(f"{root}: no folder with images is there; put one for each class there, as {root / 'cat'} with "
                        f"files in it that end in one of {', '.join(sorted(SUFFIXES))}")  # fmt: skip
    train = _examples(root, classes, form)
    if split:
        strange = sorted(inner.name for inner in (path / "test").iterdir() if inner.is_dir())
        for name in strange:
            if name not in classes:
                raise DataError(f"{path / 'test' / name}: no images of this class are in {root}; put some there, or "
                                "take this folder away")  # fmt: skip
        return Data(train, _examples(path / "test", classes, form), name=path.name)
    held_out = _held_out(train.labels(), classes, test_fraction)
    test = train.select(held_out.nonzero()[:, 0]) if held_out.any() else None
    return Data(train.select((~held_out).nonzero()[:, 0]), test, name=path.name)


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Images in files of any kind that Pillow reads."""

    files: tuple[Path, ...]
    form: Form

    def image(self, number: int) -> np.ndarray:
        """Return one image, decoded.

        Raises:
            DataError: the file is gone, or no image, or a damaged one; the message names it.
            MissingExtra: Pillow is not installed.
        """
        with optional("pillow", "images"):
            from PIL import Image
        file = self.files[number]
        if not file.is_file():
            raise DataError(f"{file}: no such file; it was there when the job began, put it back")
        broken = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
        try:
            with Image.open(file) as image:
                return self.form.fitted(image)
        except broken as error:
            raise DataError(
                f"{file}: cannot decode it ({error}); it is truncated or damaged, replace it with a fresh copy, or "
                "delete it"
            ) from error


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _examples(root: Path, classes: Sequence[str], form: Form) -> MapExamples:
    found = [(file, label) for label, name in enumerate(classes) if (root / name).is_dir()
             for file in _images(root / name)]  # fmt: skip
    files = Files(tuple(file for file, _ in found), form)
    return MapExamples(Decoded(files, [label for _, label in found], form.mean, form.std))


def _held_out(labels: torch.Tensor, classes: Sequence[str], fraction: float) -> torch.Tensor:
    """Return which are held out: of each class that share, rounded, the first of a shuffle keyed by its name."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(classes):
        (members,) = (labels == label).nonzero(as_tuple=True)
        order = torch.randperm(len(members), generator=seeds.generator(0, 0, 0, name, "images held out"))
        mask[members[order[: round(fraction * len(members))]]] = True
    if mask.all():
        raise ConfigError(f"test_fraction: {fraction} leaves nothing to train on")
    return mask

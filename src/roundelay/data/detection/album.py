"""Photographs with boxes as examples: decoded when a batch needs them, and kept as long as there is room.

Shapes: N photographs, S the side of the square that each is brought to, M objects at most in one, T objects in all.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from roundelay.data import boxes
from roundelay.data.detection.annotated import Annotated
from roundelay.errors import ConfigError, DataError, optional


@dataclass(frozen=True, slots=True, eq=False)
class Album:
    """All photographs of a data set, which its parts share.

    ``objects`` (T, 6) are target rows in pixels of the S x S square, those of photograph n from ``offsets[n]`` to
    ``offsets[n + 1]``; targets have ``most_objects`` rows, so that any two of a data set stack. At most ``cache_mib``
    MiB of decoded photographs are kept; they are not pickled.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    objects: Tensor
    offsets: Tensor
    image_size: int
    classes: tuple[str, ...]
    cache_mib: int = 256
    most_objects: int = field(init=False)
    _decoded: Callable[[int], Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.cache_mib < 0:
            raise ConfigError(
                f"expected image_size of at least 1 and cache_mib of at least 0, got {self.image_size!r} and "
                f"{self.cache_mib!r}"
            )
        object.__setattr__(self, "most_objects", max([1, *self.offsets.diff().tolist()]))
        room = self.cache_mib * 2**20 // (3 * self.image_size**2)
        object.__setattr__(self, "_decoded", lru_cache(maxsize=room)(self._decode))

    @classmethod
    def of(cls, found: Sequence[Annotated], classes: Sequence[str], image_size: int, cache_mib: int) -> "Album":
        """Put photographs together; each is stretched to a square, and its boxes with it."""
        rows = [torch.tensor(one.rows).view(-1, boxes.WIDTH) * _stretch(one, image_size) for one in found]
        return cls(
            names=tuple(one.name for one in found),
            files=tuple(one.file for one in found),
            sizes=tuple((one.width, one.height) for one in found),
            objects=torch.cat(rows) if rows else torch.zeros(0, boxes.WIDTH),
            offsets=torch.tensor([0, *map(len, rows)]).cumsum(0),
            image_size=image_size,
            classes=tuple(classes),
            cache_mib=cache_mib,
        )

    def image(self, number: int) -> Tensor:
        """Return a photograph as uint8 (3, S, S): red, green, blue. It may be shared: change nothing in place.

        Raises:
            DataError: the file is damaged, or is not the photograph that the annotation is of.
            MissingExtra: Pillow is not installed.
        """
        return self._decoded(number)

    def target(self, number: int) -> Tensor:
        """Return the objects in a photograph, (M, 6), as ``roundelay.data.boxes`` has them."""
        return boxes.padded(self._rows(number), self.most_objects)

    def box_counts(self, number: int) -> Tensor:
        """Return how many objects of each class to be found a photograph has, int64 of shape (classes,)."""
        found = boxes.wanted(self._rows(number))[:, boxes.CLASS]
        return torch.bincount(found.long(), minlength=len(self.classes))

    def _rows(self, number: int) -> Tensor:
        start, stop = self.offsets[number : number + 2].tolist()
        return self.objects[start:stop]

    def _decode(self, number: int) -> Tensor:
        with optional("pillow", "detection"):
            from PIL import Image
        file, size = self.files[number], self.sizes[number]
        broken = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
        try:
            with Image.open(file) as photograph:
                found, pixels = photograph.size, None
                if found == size:
                    square = photograph.convert("RGB").resize(
                        (self.image_size, self.image_size), Image.Resampling.BILINEAR
                    )
                    pixels = np.array(square)
        except FileNotFoundError as error:
            raise DataError(f"{file}: no such image; put it there, or take {file.stem} out of the list") from error
        except broken as error:
            raise DataError(f"{file}: cannot decode it ({error}); it is truncated or damaged, replace it with a fresh "
                            f"copy, or take {file.stem} out of the list") from error  # fmt: skip
        if pixels is None:
            raise DataError(f"{file}: its annotation is of an image of {size[0]} x {size[1]} pixels, it has {found[0]} "
                            f"x {found[1]}; is it another image under this name?")  # fmt: skip
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __reduce__(self) -> tuple[Callable[..., "Album"], tuple[object, ...]]:
        return Album, (
            self.names, self.files, self.sizes, self.objects, self.offsets, self.image_size, self.classes,
            self.cache_mib,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class DetectionExamples:
    """A part of an album. Inputs are float32 (B, 3, S, S) from 0 to 1, targets float32 (B, M, 6) as
    ``roundelay.data.boxes`` has them.
    """

    album: Album
    indices: Tensor

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        inputs, targets = self._batch([int(self.indices[index])])
        return inputs[0], targets[0]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size!r}")
        for group in torch.split(self._base(order), batch_size):
            if len(group):
                yield self._batch(group.tolist())

    def labels(self) -> Tensor:
        """Return the class of which an image has the most objects, the first of several; the number of classes where it
        has none.
        """
        counts = self.box_counts()
        none = torch.full((len(self),), len(self.album.classes))
        return torch.where(counts.sum(1) > 0, counts.argmax(1), none)

    def box_counts(self) -> Tensor:
        """Return how many objects of each class each example has, int64 of shape (examples, classes)."""
        counts = [self.album.box_counts(number) for number in self.indices.tolist()]
        return torch.stack(counts) if counts else torch.zeros(0, len(self.album.classes), dtype=torch.int64)

    def names(self) -> tuple[str, ...]:
        """Return each example's name: its device and the stem of its file, such as "camera-2/0012"."""
        return tuple(self.album.names[number] for number in self.indices.tolist())

    def select(self, indices: Tensor) -> "DetectionExamples":
        return DetectionExamples(self.album, self._base(indices))

    def _base(self, positions: Tensor) -> Tensor:
        if positions.dtype != torch.int64 or positions.ndim != 1:
            raise DataError(f"expected int64 positions of shape (N,), got {positions.dtype} {tuple(positions.shape)}")
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise DataError(f"expected positions from 0 to {len(self) - 1}, got {int(positions.min())} to "
                            f"{int(positions.max())}")  # fmt: skip
        return self.indices.index_select(0, positions)

    def _batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = torch.stack([self.album.image(number) for number in numbers])
        return images.float().div_(255), torch.stack([self.album.target(number) for number in numbers])


def _stretch(one: Annotated, image_size: int) -> Tensor:
    across, down = image_size / one.width, image_size / one.height
    return torch.tensor([1.0, across, down, across, down, 1.0])

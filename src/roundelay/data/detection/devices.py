"""A folder for each device: whose photographs they are, which are for training and which for testing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from roundelay.data.detection.album import Album, DetectionExamples
from roundelay.data.detection.annotated import Annotated
from roundelay.data.examples import Data
from roundelay.data.federated import FederatedData
from roundelay.errors import DataError

CLASSES_FILE = "classes.names"


@dataclass(frozen=True, slots=True)
class Device:
    """What one device took. ``test`` may be empty."""

    name: str
    train: Sequence[Annotated]
    test: Sequence[Annotated]

    def parts(self) -> tuple[tuple[str, Sequence[Annotated]], ...]:
        return ("train", self.train), ("test", self.test)


def device_folders(folder: Path, marked: Callable[[Path], bool], wanted: str) -> list[Path]:
    """Return the folders of devices, by name: those in ``folder`` that are ``marked``, or itself where it is one.

    Raises:
        DataError: there is none; says what to put where.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; make it and put {wanted} into it")
    if marked(folder):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and marked(path))
    if not found:
        raise DataError(f"{folder}: no device is there; put {wanted} into it")
    return found


def listed_classes(folder: Path) -> tuple[str, ...] | None:
    """Return what ``classes.names`` says, a class a line, in this folder or in the one that it is in; None without it.

    Raises:
        DataError: the file names no class, or one twice.
    """
    for place in (folder, folder.resolve().parent):
        file = place / CLASSES_FILE
        if file.is_file():
            names = tuple(line.strip() for line in text_of(file).splitlines() if line.strip())
            if not names or len(set(names)) != len(names):
                raise DataError(f"{file}: expected a class in each line, each once, got {list(names)}")
            return names
    return None


def text_of(file: Path) -> str:
    """Return a text file's content.

    Raises:
        DataError: it is absent, empty or no text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; put it there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot read it ({error}); replace it with a fresh copy") from error
    if not text.strip():
        raise DataError(f"{file}: the file is empty; replace it with a fresh copy")
    return text


def together(
    devices: Sequence[Device], classes: Sequence[str], image_size: int, pooled: bool, cache_mib: int, name: str
) -> Data | FederatedData:
    """Return the devices as clients, each with its own test part, and the server with all of these; ``pooled``, as one
    data set for a partitioner, whose natural clients are the devices.
    """
    parts = [(device.name, kind, one) for device in devices for kind, ones in device.parts() for one in ones]
    album = Album.of([one for _, _, one in parts], classes, image_size, cache_mib)

    def where(kind: str, device: str | None = None) -> DetectionExamples:
        places = [at for at, (owner, of, _) in enumerate(parts) if of == kind and device in (None, owner)]
        return DetectionExamples(album, torch.tensor(places, dtype=torch.int64))

    tested = where("test")
    held_out = tested if len(tested) else None
    if pooled:
        owners = [owner for owner, kind, _ in parts if kind == "train"]
        return Data(train=where("train"), test=held_out, groups=owners, name=name)
    return FederatedData.from_datasets(
        {device.name: where("train", device.name) for device in devices},
        held_out,
        {device.name: where("test", device.name) for device in devices if device.test} or None,
    )

"""Image sets of the Hugging Face library ``datasets``: a column of images, one of classes, perhaps one of clients."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roundelay.components import unknown_message
from roundelay.data.examples import Data, MapExamples
from roundelay.data.images.decoding import Decoded, Form
from roundelay.data.images.pixels import Channels
from roundelay.errors import DataError, optional

Table = Any  # a ``datasets.Dataset``, which is known here by what it does


def hugging_face(
    folder: str | os.PathLike[str], size: int | Sequence[int], image: str = "image", label: str = "label",
    client: str | None = None, train: str = "train", test: str = "test",
    mean: Channels = (0.5, 0.5, 0.5), std: Channels = (0.5, 0.5, 0.5),
) -> Data:  # fmt: skip
    """Read a data set that ``save_to_disk`` left in ``folder``, or one that ``datasets.load_dataset`` finds under this
    name, in a folder of its files or on the hub, from where it is then fetched.

    ``image``, ``label`` and ``client`` are columns, ``train`` and ``test`` splits; of a set without splits, all is for
    training. Clients are the natural ones where the partition is "natural". Everything else is as in ``from_tables``.

    Raises:
        DataError: the set, a split or a column is absent.
        MissingExtra: datasets is not installed.
    """
    with optional("datasets", "huggingface"):
        import datasets
    saved = any((Path(folder) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder}: no data set is there ({error}); give a folder that Dataset.save_to_disk wrote, or "
            "a name on the hub, and be online for that"
        ) from error
    if not isinstance(found, Mapping):
        return from_tables(found, None, size, image, label, client, mean, std, name=Path(folder).name)
    if train not in found:
        raise DataError(unknown_message(f"{folder}: split {train!r}", train, found))
    return from_tables(found[train], found.get(test), size, image, label, client, mean, std, name=Path(folder).name)


def from_tables(
    train: Table, test: Table | None, size: int | Sequence[int], image: str = "image", label: str = "label",
    client: str | None = None, mean: Channels = (0.5, 0.5, 0.5), std: Channels = (0.5, 0.5, 0.5), name: str = "images",
) -> Data:  # fmt: skip
    """Return tables of ``datasets`` as data. An image is decoded when a batch needs it, brought to ``size``, a side or
    (height, width), and kept by nobody; one number in ``mean`` and ``std`` each makes it grey. Classes that are text
    are numbered in the order of their names.

    Raises:
        DataError: a column is absent, or the labels are no classes.
    """
    form = Form(size, mean, std)
    for column in (image, label, *([client] if client is not None else [])):
        if column not in train.column_names:
            raise DataError(unknown_message(f"{name}: column {column!r}", column, train.column_names))
    labels = _column(train, label)
    names = sorted(set(labels)) if all(isinstance(value, str) for value in labels) else None
    parts = [MapExamples(Decoded(Rows(table, image, form), _classes(table, label, names, name), form.mean, form.std))
             for table in (train, test) if table is not None]  # fmt: skip
    groups = None if client is None else [str(value) for value in _column(train, client)]
    return Data(parts[0], parts[1] if test is not None else None, groups, name)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The images in a column of a table."""

    table: Table
    column: str
    form: Form

    def image(self, number: int) -> np.ndarray:
        """Return one image, decoded.

        Raises:
            DataError: it is damaged, or no image; the message names row and column.
        """
        try:
            value = self.table[number][self.column]
            if not hasattr(value, "convert"):
                raise TypeError(f"it is a {type(value).__name__}; cast the column to datasets.Image()")
            return self.form.fitted(value)
        except (OSError, SyntaxError, ValueError, TypeError) as error:
            raise DataError(
                f"row {number}, column {self.column!r}: no image can be made of it ({error}); leave the row out with "
                "select, or repair it"
            ) from error


def _column(table: Table, name: str) -> list[Any]:
    """Return a column's values, without reading or decoding the others."""
    values: list[Any] = table.select_columns([name]).with_format(None)[:][name]
    return values


def _classes(table: Table, column: str, names: Sequence[str] | None, where: str) -> list[int]:
    if column not in table.column_names:
        raise DataError(unknown_message(f"{where}: column {column!r} of the test split", column, table.column_names))
    values = _column(table, column)
    if names is not None:
        numbers = {name: number for number, name in enumerate(names)}
        for value in values:
            if value not in numbers:
                raise DataError(f"{where}: class {value!r} of the test split is in no training example")
        return [numbers[value] for value in values]
    for row, value in enumerate(values):
        if type(value) is not int or value < 0:
            raise DataError(
                f"{where}: row {row}, column {column!r}: expected a class from 0 up or its name, got {value!r}"
            )
    return values

"""A table of clients on disk: each one's examples are read when it trains, and nothing before.

A folder. ``inputs`` and ``targets`` are the rows of all examples, client after client in ascending order of id; client
number i has rows ``offsets[i]`` to ``offsets[i + 1]`` (int64). ``ids`` are their ids as UTF-8 of one width, filled with
zeros. ``table.json`` says what a row is, and comes last: a folder without it is none. All is memory-mapped, so that a
process reads, of a million clients, the pages of those that it trains. Byte order is the machine's.
"""

import json
import math
import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundelay.data.examples import TensorExamples
from roundelay.data.federated import FederatedData
from roundelay.data.ids import Ids
from roundelay.data.parts import read_part
from roundelay.errors import DataError
from roundelay.files import save_atomically

__all__ = ["client_table"]
"""What a job file can name; the rest is for Python."""

FILE_FORMAT = "roundelay client table 1"
COLUMNS = ("inputs", "targets")
DTYPES = {"bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32",
          "float64", "complex64", "complex128"}  # fmt: skip
"""What both torch and numpy have; a file may not say anything else, such as objects."""

MOST = 2**48
"""Of clients, rows, sizes of a row and bytes of an id."""


def write_client_table(folder: str | os.PathLike[str], clients: Iterable[tuple[str, object]]) -> None:
    """Write clients' data as a new table, from pairs of id and data in ascending order of id. Data is anything that
    ``as_examples`` takes and that lies in two tensors; one client's is in memory at a time, and all ids.

    Raises:
        DataError: the folder is there, there is no client, ids do not ascend, or a client's rows are not as the first
            one's.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        raise DataError(f"{place} is there already: a table is written once; choose another folder") from None
    ids, offsets, rows = list[str](), array("q", [0]), dict[str, dict[str, Any]]()
    with (place / "inputs").open("wb") as inputs, (place / "targets").open("wb") as targets:
        for client, value in clients:
            _check_follows(ids, client)
            columns = _columns(client, value)
            found = {name: _row(tensor) for name, tensor in columns.items()}
            rows = rows or found
            if found != rows:
                raise DataError(f"client {client!r}: expected rows as {ids[0]!r} has them, {rows}, got {found}")
            for name, file in (("inputs", inputs), ("targets", targets)):
                file.write(columns[name].contiguous().numpy().data)
            ids.append(client)
            offsets.append(offsets[-1] + len(columns["inputs"]))
    if not ids:
        raise DataError(f"{place}: expected at least one client, got none")
    (place / "offsets").write_bytes(offsets.tobytes())
    encoded = np.array([client.encode() for client in ids])
    (place / "ids").write_bytes(encoded.tobytes())
    table = {"format": FILE_FORMAT, "num_clients": len(ids), "id_bytes": encoded.itemsize, **rows}
    save_atomically(place / "table.json", lambda file: file.write(json.dumps(table).encode()))


def client_table(path: str | os.PathLike[str], held_out: object | None = None, num_cached: int = 16) -> FederatedData:
    """Return the data of a table that ``write_client_table`` wrote, in its clients' hands; ``held_out`` is the
    server's. Each process keeps the examples of ``num_cached`` clients.

    Raises:
        DataError: there is no such table.
    """
    table = Table(Path(path).resolve())
    return FederatedData.from_function(
        TableIds(table), table.part, sizes=table.size, held_out=held_out, num_cached=num_cached
    )


@dataclass(frozen=True, slots=True)
class Table:
    """An open table. Pickled, it is its path."""

    path: Path
    num_clients: int = field(init=False, compare=False)
    _ids: NDArray[np.bytes_] = field(init=False, repr=False, compare=False)
    _offsets: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _columns: tuple[NDArray[Any], ...] = field(init=False, repr=False, compare=False)  # Any: of whatever dtype

    def __post_init__(self) -> None:
        try:
            told = json.loads((self.path / "table.json").read_bytes().decode())
            if told["format"] != FILE_FORMAT:
                raise ValueError(f"its format is {str(told['format'])[:80]!r}")
            count, width = _size(told["num_clients"], "num_clients"), _size(told["id_bytes"], "id_bytes")
            ids = _mapped(self.path / "ids", np.dtype(f"S{width}"), (count,))
            offsets = _mapped(self.path / "offsets", np.dtype(np.int64), (count + 1,))
            num_rows = _size(int(offsets[-1]), "the last offset")
            columns = tuple(_column(self.path / name, told[name], num_rows) for name in COLUMNS)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path}: expected a table written by write_client_table, cannot read it ({error})"
            ) from error
        for name, value in (("num_clients", count), ("_ids", ids), ("_offsets", offsets), ("_columns", columns)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type["Table"], tuple[Path]]:
        return Table, (self.path,)

    def id(self, number: int) -> str:
        try:
            return bytes(self._ids[number]).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path / 'ids'}: the id of client number {number} is no text ({error}); {_AGAIN}"
            ) from error

    def number(self, client: str) -> int | None:
        encoded = client.encode()
        if len(encoded) > self._ids.itemsize or client.endswith("\0"):  # numpy would widen the others, or cut this one
            return None
        wanted = np.array(encoded, self._ids.dtype)
        at = int(np.searchsorted(self._ids, wanted))
        return at if at < self.num_clients and self._ids[at] == wanted else None

    def part(self, client: str) -> TensorExamples:
        start, stop = self._stretch(client)
        inputs, targets = (torch.from_numpy(np.array(column[start:stop])) for column in self._columns)
        return TensorExamples(inputs, targets)

    def size(self, client: str) -> int:
        start, stop = self._stretch(client)
        return stop - start

    def _stretch(self, client: str) -> tuple[int, int]:
        number = self.number(client)
        if number is None:
            raise DataError(f"{self.path}: client {client!r} has no rows here")
        start, stop = int(self._offsets[number]), int(self._offsets[number + 1])
        if not 0 <= start <= stop <= len(self._columns[0]):
            raise DataError(f"{self.path / 'offsets'}: client {client!r} is said to have rows {start} to {stop} of "
                            f"{len(self._columns[0])}; {_AGAIN}")  # fmt: skip
        return start, stop


@dataclass(frozen=True, slots=True)
class TableIds(Ids):
    """The ids of a table: finding one among a million reads about twenty."""

    table: Table

    def __len__(self) -> int:
        return self.table.num_clients

    def at(self, number: int) -> str:
        return self.table.id(number)

    def number(self, client: object) -> int | None:
        return self.table.number(client) if isinstance(client, str) else None


def _check_follows(ids: list[str], client: object) -> None:
    if not isinstance(client, str) or not client or "\0" in client:
        raise DataError(f"client ids: expected non-empty strings without a zero byte, got {client!r}")
    if ids and client <= ids[-1]:
        raise DataError(f"client ids: expected them in ascending order, each once, got {ids[-1]!r} before {client!r}")


def _columns(client: str, value: object) -> dict[str, Tensor]:
    examples = read_part(client, value)
    if not isinstance(examples, TensorExamples):
        raise DataError(
            f"client {client!r}: a table holds rows of two tensors, got {type(examples).__name__}; give a pair "
            "(inputs, targets)"
        )
    tensors = examples.inputs, examples.targets
    if examples.indices is not None:
        tensors = examples.inputs[examples.indices], examples.targets[examples.indices]
    return dict(zip(COLUMNS, (tensor.detach().cpu() for tensor in tensors), strict=True))


def _row(tensor: Tensor) -> dict[str, Any]:  # Any: text, and a list of numbers
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        raise DataError("a table holds what numpy does, and that knows no bfloat16; give float16 or float32")
    return {"dtype": dtype, "shape": list(tensor.shape[1:])}


def _column(path: Path, row: dict[str, Any], num_rows: int) -> NDArray[Any]:  # Any: see Table
    if row["dtype"] not in DTYPES or not isinstance(row["shape"], list) or len(row["shape"]) > 32:
        raise ValueError(f"{path.name} is said to have rows of {str(row)[:80]}")
    sizes = [_size(size, f"a size of {path.name}") for size in row["shape"]]
    return _mapped(path, np.dtype(row["dtype"]), (num_rows, *sizes))


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:  # Any: see Table
    if path.stat().st_size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path.name} is not as long as {shape} of {dtype}")
    return np.memmap(path, dtype, "r", shape=shape)


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"{what} is {str(value)[:80]}, expected a whole number up to {MOST}")
    return value


_AGAIN = "the table is damaged, write it again with write_client_table"

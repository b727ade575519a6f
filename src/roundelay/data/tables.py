"""Reading a CSV file into typed columns; what is wrong in it is named by file, line and column."""

import csv
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roundelay.errors import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "."})
"""What stands in a cell that has no value, in any case."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The columns that were asked for, N rows each: ``numbers`` float64 with NaN where a cell has no value, ``words``
    objects that are text, "" where it has none. ``lines`` says where in the file a row stands, from 1.
    """

    file: Path
    numbers: dict[str, np.ndarray]
    words: dict[str, np.ndarray]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self, kept: np.ndarray) -> "Table":
        """Return the rows that a mask, or positions, name."""
        numbers, words = ({name: column[kept] for name, column in part.items()} for part in (self.numbers, self.words))
        return replace(self, numbers=numbers, words=words, lines=self.lines[kept])

    def require(self, column: str, there: np.ndarray, fix: str) -> None:
        """Refuse the table where ``there`` is false of a row: that cell has no value, and ``fix`` says what to do.

        Raises:
            DataError: names the file, the line and the column.
        """
        if not there.all():
            line = self.lines[int((~there).argmax())]
            raise DataError(f"{self.file}, line {line}, column {column!r}: the cell has no value; {fix}")


def read_table(path: str | os.PathLike[str], words: Sequence[str], numbers: Sequence[str] | None = None) -> Table:
    """Read the columns ``words`` as text and ``numbers`` as numbers, or as numbers all the others. The first line names
    the columns; a column that nobody asks for is not looked at.

    Raises:
        DataError: the file or a column is absent, a line has too many or too few cells, or a cell that should be a
            number is none.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            return _read(file, text, words, numbers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot read it as a CSV file in UTF-8 ({error})") from error


def _read(file: Path, text: Iterable[str], words: Sequence[str], numbers: Sequence[str] | None) -> Table:
    reader = csv.reader(text, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise DataError(f"{file}: it is empty; expected a line of column names, then a line for each row")
    if numbers is None:
        numbers = [name for name in header if name not in words]
    places = {name: _place(file, header, name) for name in (*words, *numbers)}
    values = {name: array("d") for name in numbers}
    texts: dict[str, list[str]] = {name: [] for name in words}
    known: dict[str, str] = {}  # a site's name is one string, however many rows it has
    lines = array("q")
    for cells in reader:
        if not cells:
            continue  # an empty line
        if len(cells) != len(header):
            raise DataError(f"{file}, line {reader.line_num}: expected {len(header)} cells as in the first line, got "
                            f"{len(cells)}; is a comma inside a cell that is not quoted?")  # fmt: skip
        lines.append(reader.line_num)
        for name, column in values.items():
            column.append(_number(file, reader.line_num, name, cells[places[name]]))
        for name, strings in texts.items():
            cell = cells[places[name]].strip()
            strings.append("" if cell.lower() in MISSING else known.setdefault(cell, cell))
    if not lines:
        raise DataError(f"{file}: it has column names and no rows")
    return Table(
        file,
        {name: np.array(column, dtype=np.float64) for name, column in values.items()},
        {name: np.array(strings, dtype=object) for name, strings in texts.items()},
        np.array(lines, dtype=np.int64),
    )


def _place(file: Path, header: Sequence[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise DataError(f"{file}: column {name!r} is there {header.count(name)} times; give each a name of its own")
    raise DataError(f"{file}: there is no column {name!r}; it has {', '.join(header)}: correct the name in the job, or "
                    "the first line of the file")  # fmt: skip


def _number(file: Path, line: int, column: str, cell: str) -> float:
    if cell.strip().lower() in MISSING:
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        value = np.inf
    if np.isfinite(value):
        return value
    raise DataError(f"{file}, line {line}, column {column!r}: expected a number, got {cell!r}; correct the cell, leave "
                    "it empty where it has no value, or name the column among the categorical ones")  # fmt: skip

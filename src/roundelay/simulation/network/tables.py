"""CSV files with a heading, as traces and positions come."""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from roundelay.errors import DataError


def rows_of(
    path: str | os.PathLike[str], needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, list[float]]]:
    """Yield each line's client and its numbers, those needed before those that are optional and there.

    Raises:
        DataError: the file is absent, its heading lacks a column, or a line has no such number; names line and column.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read it ({error})") from error
    lines = csv.DictReader(text.splitlines())
    heading = list(lines.fieldnames or ())
    if missing := [name for name in ("client", *needed) if name not in heading]:
        expected = ",".join(("client", *needed))
        raise DataError(f"{path}: the heading lacks {', '.join(missing)}; expected {expected}, got {','.join(heading)}")
    names = [*needed, *(name for name in optional if name in heading)]
    for line in lines:
        where = f"{path}, line {lines.line_num}"
        if not line["client"]:
            raise DataError(f"{where}: no client is named")
        yield line["client"], [_number(line[name], f"{where}: {name}") for name in names]


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected a number, got {text!r}")
    return value

"""What a benchmark promises, and the account of it that `make bench` ends with.

A script makes a `Bar` for each promise, from what it measured, and calls `tell(bars)` at its end: that prints their
table, and adds them to the file that the environment variable BENCH_BARS names. `python benchmarks/bars.py FILE` prints
what a whole run has written there. A bar that is missed is news, not an error: only with --strict is the exit code 1.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

FILE = "BENCH_BARS"


@dataclass(frozen=True, slots=True)
class Bar:
    """``value`` was measured and should be at least, or at most, ``limit``, both in ``unit``; ``floor`` says beside
    what it was measured.
    """

    name: str
    value: float
    limit: float
    unit: str = ""
    side: Literal["at least", "at most"] = "at least"
    floor: str = ""

    @property
    def reached(self) -> bool:
        """False where the value is not a number, too."""
        return self.value >= self.limit if self.side == "at least" else self.value <= self.limit


def tell(bars: Sequence[Bar]) -> None:
    """Print the bars, and add them to the run's file, if there is one."""
    show(bars)
    if path := os.environ.get(FILE):
        with Path(path).open("a") as file:
            file.writelines(json.dumps(asdict(bar)) + "\n" for bar in bars)


def show(bars: Sequence[Bar]) -> None:
    table = Table("bar", "measured", "limit", "beside", "reached")
    for bar in bars:
        limit = f"{bar.side} {bar.limit:g} {bar.unit}".rstrip()
        value = f"{bar.value:.3g} {bar.unit}".rstrip()
        table.add_row(bar.name, value, limit, bar.floor, "yes" if bar.reached else "NO")
    Console(width=140).print(table)


def read(path: Path) -> list[Bar]:
    return [Bar(**json.loads(line)) for line in path.read_text().splitlines()]


def main(
    path: Annotated[Path, typer.Argument(help="What the scripts of a run have written.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a bar is missed.")] = False,
) -> None:
    """Print every bar of a run, and how many were reached."""
    bars = read(path) if path.exists() else []
    show(bars)
    reached = sum(bar.reached for bar in bars)
    print(f"{reached} of {len(bars)} bars reached")
    if strict and (reached < len(bars) or not bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

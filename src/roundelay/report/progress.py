"""The live display of a run in a terminal, and the table at its end."""

import math
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from roundelay.history import History, Round
from roundelay.metrics import COLUMNS
from roundelay.tasks import Card
from roundelay.tracking.run_folder import Row


def shown(
    rounds: Iterable[Round], num_rounds: int, done: int, console: Console, first: str = "starting workers"
) -> Iterator[Round]:
    """Pass rounds on, showing their progress: a bar in a terminal, a line for every tenth of the way elsewhere.
    ``first`` is what is waited for before the first round.
    """
    whole = Column(no_wrap=True)  # at 80 columns, the bar gives way to the numbers
    columns = (MofNCompleteColumn(table_column=whole), BarColumn(bar_width=None),
               TextColumn("{task.fields[numbers]}", table_column=whole), TimeElapsedColumn(table_column=whole),
               TextColumn("left", table_column=whole), TimeRemainingColumn(table_column=whole))  # fmt: skip
    step = max(1, num_rounds // 10)
    with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=num_rounds, completed=done, numbers=first)
        for round in rounds:
            progress.update(bar, completed=round.number, numbers=summary(round.row))
            if not console.is_terminal and (round.number % step == 0 or round.number == num_rounds):
                console.print(f"round {round.number}/{num_rounds}: {summary(round.row)}", highlight=False)
            yield round


def summary(row: Row) -> str:
    """Return the numbers that one looks at while training, on one line."""
    # a round without a measurement on the server: what the clients report says how it goes
    reported = sorted(name for name in row if name.startswith("train_"))[:3]
    names = measured(row)[:3] or reported
    parts = [f"{name} {row[name]:.4f}" for name in names if row.get(name) is not None]
    parts += [f"{row[name]} {name}" for name in ("refused", "lost", "late", "silent", "waits") if row.get(name)]
    return ", ".join(parts)


OF_CLIENTS = ("client_", "pooled_", "train_")
BESIDE = ("uplink_bits", "downlink_bits", "joules")
"""What a network adds to a row."""


def measured(row: Mapping[str, object]) -> list[str]:
    """Return the names of what the server measured, in their order."""
    other = {*COLUMNS, *BESIDE}
    return [name for name, value in row.items()
            if isinstance(value, float) and name not in other and not name.startswith(OF_CLIENTS)]  # fmt: skip


def beside(card: Card, history: History) -> str:
    """Return what a run came to by its task's own metric, beside what is known of the task."""
    best = history.best(card.metric)
    reached = "never measured" if math.isnan(best) else f"{best:.4f} at best"
    return (f"{card.metric}: {reached}, in {len(history.rows)} rounds\nreference: {card.reference}\n"
            f"measured by us: {card.ours}\nmore: {card.page}")  # fmt: skip


def final_table(history: History) -> Table:
    """Return what a run came to: rounds, last and best metrics, bytes each way, seconds."""
    table = Table(show_header=False, title="result", title_justify="left")
    last, rows = history.metrics, history.rows
    table.add_row("rounds", f"{len(rows)} ({history.stopped})")
    of_clients = [name for name in last if name.startswith(OF_CLIENTS) and name not in COLUMNS]
    for name in sorted([*measured(last), *of_clients]):
        table.add_row(name, f"{last[name]:.4f} (best {history.best(name):.4f})")
    table.add_row("bytes down", f"{sum(row['bytes_down'] for row in rows):,}")
    table.add_row("bytes up", f"{sum(row['bytes_up'] for row in rows):,}")
    table.add_row("seconds", f"{sum(row['seconds'] for row in rows):.1f}")
    if last.get("virtual_s"):
        table.add_row("simulated seconds", f"{last['virtual_s']:.3f}")
    if "joules" in last:
        table.add_row("joules of the clients", f"{sum(row['joules'] for row in rows):.3f}")
    if gathered := max((row.get("gathered_bytes") or 0 for row in rows), default=0):
        table.add_row("updates in memory", f"{gathered:,} bytes: the aggregation rule needs a round's all at once")
    if kept := sum(row.get("kept_model") or 0 for row in rows):
        table.add_row("rounds that kept the model", str(kept))
    for name in ("refused", "lost", "late", "silent"):
        if total := sum(row.get(name) or 0 for row in rows):
            table.add_row(f"updates {name}", str(total))
    return table

"""What a model is to each client: the last evaluation on clients' own data, worst client first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from roundelay.metrics import higher_is_better
from roundelay.tracking.run_folder import Row, row_of

MOST_SHOWN = 20
"""So many of the worst clients are listed in a terminal."""

MOST_METRICS = 6
"""So many metrics stand side by side there."""

COLUMNS = ("round", "attempt", "client", "status", "num_examples")
OF_ALL = ("pooled_", "client_")


@dataclass(frozen=True, slots=True)
class Evaluations:
    """One row a client, of one round. A metric that is undefined at a client is None, or left out."""

    round: int
    rows: Sequence[Row]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row if name not in COLUMNS))

    def by_client(self, metric: str) -> dict[str, float]:
        """Return each client's value, worst first; without the clients that have none."""
        found = {row["client"]: row[metric] for row in self.rows if _has(row, metric)}
        return dict(sorted(found.items(), key=lambda one: one[1], reverse=not higher_is_better(metric)))

    def like(self, metric: str) -> str:
        """Return the clients' own metric behind one of all of them: "macro_f1" behind "pooled_macro_f1"; else their
        first.
        """
        own = next((metric.removeprefix(prefix) for prefix in OF_ALL if metric.startswith(prefix)), metric)
        return own if own in self.metrics else next((name for name in self.metrics if name != "loss"), "loss")


def last_evaluations(run: Path) -> Evaluations | None:
    """Return the last evaluation on clients' own data that a run folder tells of, None where there was none."""
    file, found = run / "clients.jsonl", list[Row]()
    lines = file.read_bytes().splitlines() if file.exists() else []
    for line in reversed(lines):  # a long run's table is long, and its end is enough
        try:
            row = row_of(line)
        except (ValueError, RecursionError):  # a crash cut it off
            continue
        if found and row["round"] != found[-1]["round"]:
            break
        if row.get("status") == "evaluated":
            found.append(row)
    return Evaluations(found[0]["round"], found[::-1]) if found else None


def worst_table(found: Evaluations, metric: str) -> Table:
    """Return clients and what the model is to them, worst first, under the mean over clients, each counted once."""
    metrics = [metric, *(name for name in found.metrics if name != metric)][:MOST_METRICS]
    title = f"clients after round {found.round}, worst {metric} first"
    table = Table("client", "examples", *metrics, title=title, title_justify="left")
    rows = {row["client"]: row for row in found.rows}
    ordered = [*found.by_client(metric), *(client for client, row in rows.items() if not _has(row, metric))]
    means = [_mean([row[name] for row in found.rows if _has(row, name)]) for name in metrics]
    total = sum(row["num_examples"] for row in found.rows)
    table.add_row(f"mean of {len(rows)}", f"{total:,.0f}", *map(_shown, means), end_section=True)
    for client in ordered[:MOST_SHOWN]:
        row = rows[client]
        table.add_row(escape(client), f"{row['num_examples']:,.0f}", *(_shown(row.get(name)) for name in metrics))
    if len(ordered) > MOST_SHOWN:
        table.add_row(f"and {len(ordered) - MOST_SHOWN} more", "", *[""] * len(metrics))
    return table


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _has(row: Row, metric: str) -> bool:
    value = row.get(metric)
    return value is not None and math.isfinite(value)

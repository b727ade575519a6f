"""``roundelay runs``: list, show, compare and plot what was run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from roundelay.cli.common import ACCURACIES, Metric, console
from roundelay.report.runs import list_runs, plot_compared, plot_run, read_run, require_metric

app = typer.Typer(no_args_is_help=True, help="Look at finished and unfinished runs.")
Root = Annotated[Path, typer.Option(help="The folder that holds the runs.")]


@app.command("list")
def runs_list(root: Root = Path("runs")) -> None:
    """List the runs of a folder."""
    table = Table(Column("run", no_wrap=True), Column("started", max_width=10), "rounds", "accuracy", "state", "sha256")
    for record in list_runs(root):
        accuracy = next((value for name in ACCURACIES if (value := record.last(name)) is not None), None)
        table.add_row(record.path.name, record.info.get("started", ""), str(len(record.rows)),
                      "" if accuracy is None else f"{accuracy:.4f}", record.state.get("state", "unknown"),
                      str(record.state.get("sha256", ""))[:12])  # fmt: skip
    console.print(table)


@app.command("show")
def runs_show(folder: Path, last: Annotated[int, typer.Option(help="How many rounds, from the end.")] = 20) -> None:
    """Show a run: its circumstances and its rounds."""
    record = read_run(folder)
    console.print_json(data={**record.info, **record.state})
    names = list(dict.fromkeys(name for row in record.rows for name in row))
    shown_names = [n for n in names if any(row.get(n) not in (None, 0) for row in record.rows)]
    table = Table()
    for name in shown_names:
        table.add_column(name, overflow="fold")
    for row in record.rows[-last:]:
        table.add_row(*("" if row.get(n) is None else f"{row[n]:.6g}" for n in shown_names))
    console.print(table)


@app.command("compare")
def runs_compare(folders: list[Path], metric: Metric = "accuracy", plot: Path | None = None) -> None:
    """Put runs side by side; --plot FILE draws one line per run."""
    records = [read_run(folder) for folder in folders]
    require_metric([record.rows for record in records], metric)
    table = Table("run", "rounds", f"last {metric}", "bytes up", "bytes down", "seconds", "simulated s", "sha256")
    for record in records:
        value = record.last(metric)
        table.add_row(record.path.name, str(len(record.rows)), "" if value is None else f"{value:.4f}",
                      f"{record.total('bytes_up'):,.0f}", f"{record.total('bytes_down'):,.0f}",
                      f"{record.total('seconds'):.1f}", f"{record.last('virtual_s') or 0:.3f}",
                      str(record.state.get("sha256", ""))[:12])  # fmt: skip
    console.print(table)
    if plot is not None:
        console.print(f"wrote {plot_compared(records, metric, plot)}")


@app.command("plot")
def runs_plot(
    folder: Path,
    metric: Annotated[str | None, typer.Option(help="Which column; accuracy, by whoever measures it.")] = None,
) -> None:
    """Draw a run's pictures into its folder."""
    record = read_run(folder)
    usual = (*ACCURACIES, "train_loss")
    chosen = metric or next((name for name in usual if record.last(name) is not None), usual[0])
    require_metric([record.rows], chosen)
    for picture in plot_run(folder, chosen):
        console.print(f"wrote {picture}", soft_wrap=True)

"""``roundelay runs``: list, show, compare and plot what was run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from roundelay.cli.common import ACCURACIES, Metric, Overrides, console, say, say_clients
from roundelay.errors import ConfigError, MissingExtra
from roundelay.reclocking import reclocked
from roundelay.report.comparing import Told, parse_target, scaled_apart
from roundelay.report.network import Comparison, comparison, draw_compared, draw_network, told_of
from roundelay.report.runs import RunRecord, list_runs, plot_compared, plot_run, read_run, require_metric
from roundelay.report.tables import account_table, target_table

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
    say_clients(folder, "accuracy")
    told = told_of(record, "accuracy")
    if told.account is not None:
        console.print(account_table([told]))


@app.command("compare")
def runs_compare(
    folders: list[Path],
    metric: Metric = "accuracy",
    plot: Annotated[Path | None, typer.Option(help="Draw the metric by round into this file.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="What to reach; the best that all runs reach.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the pictures go, if runs had a network.")] = Path("compared"),
    rounds: Annotated[str, typer.Option(help="Which rounds a Gantt chart shows: 1-3 or 5.")] = "1-3",
    svg: Annotated[bool, typer.Option("--svg", help="Write SVG, not PNG.")] = False,
) -> None:
    """Put runs side by side, each against the first: what each took to a target. Seeds of one job are one setting."""
    records = [read_run(folder) for folder in folders]
    span, goal = _span(rounds), None
    if target is not None:
        metric, goal = parse_target(target)
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
    told = [told_of(record, metric) for record in records]
    found = comparison(told, metric, goal)
    if found.target is not None:
        console.print(target_table(found.compared, metric, found.target))
    if any(one.account is not None for one in told):
        console.print(account_table(told))
        if scaled_apart(told):
            say("transmit_over_compute scaled computing by different factors for one seed: these are not times and "
                "joules of the same devices")  # fmt: skip
        _draw(records, told, found, out, span, ".svg" if svg else ".png")


def _draw(
    records: Sequence[RunRecord], told: Sequence[Told], found: Comparison, out: Path, rounds: tuple[int, int], kind: str
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    try:
        pictures = draw_compared(found, out, kind)
        for record, one in zip(records, told, strict=True):
            pictures += draw_network(record, one, out, rounds, f"-{one.name}{kind}")
    except MissingExtra as error:
        say(f"no pictures: {error}")
        return
    for picture in pictures:
        say(f"wrote {picture}")


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first):
        return int(first), int(last or first)
    raise ConfigError(f"--rounds must be a round or two with a dash between them, such as 1-3, got {text!r}")


@app.command("plot")
def runs_plot(
    folder: Path,
    metric: Annotated[str | None, typer.Option(help="Which column; accuracy, by whoever measures it.")] = None,
    rounds: Annotated[str, typer.Option(help="Which rounds the Gantt chart of a network shows: 1-3 or 5.")] = "1-3",
) -> None:
    """Draw a run's pictures into its folder."""
    record = read_run(folder)
    usual = (*ACCURACIES, "train_loss")
    chosen = metric or next((name for name in usual if record.last(name) is not None), usual[0])
    require_metric([record.rows], chosen)
    told = told_of(record, chosen)
    drawn = plot_run(folder, chosen)
    drawn += [] if told.account is None else draw_network(record, told, folder, _span(rounds))
    for picture in drawn:
        console.print(f"wrote {picture}", soft_wrap=True)


@app.command("reclock")
def runs_reclock(folder: Path, set: Overrides = None) -> None:
    """Put finished synchronous rounds on another clock, without training: --set
    simulation.network.transmit_over_compute=10 says what a run of that network would have taken.
    """
    console.print(f"wrote {reclocked(folder, set or [])}", soft_wrap=True)

"""The reference tasks: a list of them, and each one's card."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from roundelay import tasks
from roundelay.cli.common import console, say
from roundelay.errors import ConfigError
from roundelay.tasks.fetching import Source
from roundelay.tasks.fetching import fetch as fetched

app = typer.Typer(help="The reference tasks of the field.", invoke_without_command=True)


@app.callback()
def listed(context: typer.Context) -> None:
    """List the reference tasks; `roundelay run task:NAME --data FOLDER` runs one."""
    if context.invoked_subcommand is not None:
        return
    table = Table("task", "what", "clients", "metric", "reference", "ours")
    for name, card in tasks.cards().items():
        values = ("" if value is None else f"{value:g}" for value in (card.reference_value, card.ours_value))
        table.add_row(name, escape(card.title), escape(card.clients), card.metric, *values)
    console.print(table)
    say("more of one: roundelay tasks show NAME; to run it: roundelay run task:NAME --data FOLDER")


@app.command()
def show(task: Annotated[str, typer.Argument(help="A task's name.")]) -> None:
    """Show a task's card: its data and where to put it, its model, what others reached, what we did."""
    table = Table(show_header=False, title=f"task:{task.removeprefix(tasks.PREFIX)}", title_justify="left")
    for what, text in tasks.told(tasks.card(task)):
        table.add_row(what, escape(text))
    console.print(table)


@app.command()
def fetch(
    task: Annotated[str, typer.Argument(help="A task's name.")],
    to: Annotated[Path | None, typer.Option(help="The folder for it; else where the task looks for it.")] = None,
) -> None:
    """Fetch a task's data from where its makers publish it."""
    card, name = tasks.card(task), task.removeprefix(tasks.PREFIX)
    if not card.sources:
        raise ConfigError(f"task {name!r} has no source to fetch from; what to put where: {card.put}")
    folder = to or tasks.folder_of(task)
    if folder is None:
        raise ConfigError(f"task {name!r} has no folder of its own: say where its data shall be, --to FOLDER")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        shown: dict[str, TaskID] = {}

        def progress(source: Source, so_far: int, total: int | None) -> None:
            if source.url not in shown:
                shown[source.url] = bars.add_task(escape(source.url.rpartition("/")[2]))
            bars.update(shown[source.url], completed=so_far, total=total)

        came = fetched(card.sources, folder, card.put, progress)
    for file in came:
        say(f"fetched {file}")
    say(f"run it: roundelay run task:{name} --data {folder}" if came else f"all of it is there already: {folder}")

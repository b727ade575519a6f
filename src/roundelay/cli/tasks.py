"""The reference tasks: a list of them, and each one's card."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from roundelay import tasks
from roundelay.cli.common import console, say

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

"""The ``roundelay`` command."""

import logging
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import roundelay as rd
from roundelay.cli import doctor, jobs, logs, members, runs, sites, tasks
from roundelay.cli.common import console
from roundelay.errors import RoundelayError

log = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(jobs.app)
app.add_typer(sites.app)
app.add_typer(members.kits)
app.add_typer(doctor.app)
app.add_typer(members.app, name="clients")
app.add_typer(runs.app, name="runs")
app.add_typer(tasks.app, name="tasks")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(rd.__version__, highlight=False)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
    log_format: Annotated[
        logs.LogFormat,
        typer.Option(
            envvar="ROUNDELAY_LOG_FORMAT", help="How to log on the error stream: text, or a JSON object a line."
        ),
    ] = logs.LogFormat.TEXT,
) -> None:
    """Federated learning."""
    logs.configure(log_format)


def main() -> None:
    """Run the command; a mistake of the user's ends in one message and exit status 2, not in a traceback."""
    try:
        app()
    except RoundelayError as error:
        if logs.is_json():
            log.critical("%s", error)
        else:
            Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None

"""What several commands share."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from roundelay.errors import MissingExtra
from roundelay.history import History
from roundelay.report.clients import last_evaluations, worst_table
from roundelay.report.detections import draw_detections
from roundelay.report.progress import final_table
from roundelay.report.runs import plot_run
from roundelay.run import Run

console = Console()

JobFile = Annotated[Path, typer.Argument(help="A job file (TOML), or task:NAME.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: learner.lr=0.05")
]
Metric = Annotated[str, typer.Option(help="Which column of the per-round table.")]
ServerFolder = Annotated[Path, typer.Option(help="Where the server keeps who is who, over all its runs.")]

ACCURACIES = ("accuracy", "client_accuracy", "train_accuracy")
"""By whoever measures: the server, the clients on a new model, the clients in training."""

SERVER_FOLDER = Path(".roundelay/server")


def say(text: str) -> None:
    """Print a line that may hold what somebody copies: whole, and as it is."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def say_clients(folder: Path, metric: str) -> None:
    """Show what the model is to each client, where clients evaluated it on their own data."""
    evaluated = last_evaluations(folder)
    if evaluated is not None:
        console.print(worst_table(evaluated, evaluated.like(metric)))


def concluded(run: Run, pictures: bool = True) -> History:
    """Show what a run has come to, draw its pictures, and print its hash."""
    history = run.history()
    console.print(final_table(history))
    if history.run_folder is not None:
        say_clients(history.run_folder, run.watched)
        say(f"run folder: {history.run_folder}")
        if (history.run_folder / "sites").is_dir():
            say(f"what each script wrote and printed: {history.run_folder / 'sites'}")
        if pictures:
            try:
                drawn = plot_run(history.run_folder, run.watched)
                drawn += draw_detections(history.run_folder, history.model, run.job.work.data.held_out)
                for picture in drawn:
                    say(f"picture: {picture}")
            except MissingExtra as error:
                say(f"no pictures: {error}")
    say(f"sha256: {history.sha256}")
    if history.trace_hash is not None:
        say(f"trace: {history.trace_hash}")
    return history

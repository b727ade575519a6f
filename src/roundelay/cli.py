"""The ``roundelay`` command: begin a project; run, resume and sweep jobs; list, show, compare and plot runs."""

import itertools
import logging
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Column, Table

import roundelay as rd
from roundelay import config, templates
from roundelay.errors import ConfigError, MissingExtra, RoundelayError
from roundelay.history import History
from roundelay.job import Job
from roundelay.report.progress import final_table, shown
from roundelay.report.runs import list_runs, plot_compared, plot_run, read_run, require_metric
from roundelay.tracking.run_folder import require_run_folder

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
runs_app = typer.Typer(no_args_is_help=True, help="Look at finished and unfinished runs.")
app.add_typer(runs_app, name="runs")
console = Console()

JobFile = Annotated[Path, typer.Argument(help="A job file (TOML).")]
ACCURACIES = ("accuracy", "client_accuracy", "train_accuracy")
"""By whoever measures: the server, the clients on a new model, the clients in training."""

OfScripts = "Clients that are scripts"
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: learner.lr=0.05")
]
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", metavar="NAME:KEY=VALUE,...", help="Add an attack or a fault: alie:fraction=0.2"),
]
Root = Annotated[Path, typer.Option(help="The folder that holds the runs.")]
Metric = Annotated[str, typer.Option(help="Which column of the per-round table.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(rd.__version__, highlight=False)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Federated learning."""


@app.command()
def new(
    name: Annotated[Path, typer.Argument(help="The project's folder, new or empty.")],
    template: Annotated[str, typer.Option(help=f"What to start from: {', '.join(templates.TEMPLATES)}.")] = "pytorch",
) -> None:
    """Begin a project that runs as it stands: a folder with a model, the digits as data, and a job."""
    files = templates.write(name, template)
    console.print(f"wrote {', '.join(file.name for file in files)}; go on with:", soft_wrap=True, highlight=False)
    for command in (f"cd {shlex.quote(str(name))}", templates.TEMPLATES[template]):
        console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def run(
    job: Annotated[Path | None, typer.Argument(help="A job file (TOML).")] = None,
    set: Overrides = None,
    attack: Attacks = None,
    script: Annotated[
        Path | None,
        typer.Option(
            help="Instead of a job file: the training script that every client runs.", rich_help_panel=OfScripts
        ),
    ] = None,
    script_args: Annotated[str, typer.Option(help="Its command line.", rich_help_panel=OfScripts)] = "",
    clients: Annotated[
        int | None, typer.Option(help="How many clients; 2 unless a partition says.", rich_help_panel=OfScripts)
    ] = None,
    rounds: Annotated[int, typer.Option(help="How many rounds.", rich_help_panel=OfScripts)] = 2,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:NAME", help="The model, beside the script.", rich_help_panel=OfScripts)
    ] = None,
    init: Annotated[Path | None, typer.Option(help="A file with initial weights.", rich_help_panel=OfScripts)] = None,
) -> None:
    """Run a job: that of a job file, or --script with the model that its clients train."""
    if script is None:
        if job is None:
            raise ConfigError("give a job file, or --script FILE --model MODULE:NAME")
        _train(config.load(job, set or [], attack or []), None)
        return
    if model is None:
        raise ConfigError("with --script, give the model that its clients train: --model MODULE:NAME")
    if job is not None:
        raise ConfigError(f"give --script or the job file {job}, not both (a job file can name a script itself)")
    settings: dict[str, Any] = {
        "model": model, "num_rounds": rounds, "script_args": script_args,
    }  # fmt: skip
    if clients is not None:
        settings["simulation"] = {"num_clients": clients}
    if init is not None:
        settings["init"] = str(init)
    _train(config.for_script(script, settings, set or [], attack or []), None)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of an interrupted run.")], set: Overrides = None
) -> None:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped."""
    require_run_folder(folder)
    _train(config.load(folder / "job.toml", set or []), folder)


@app.command()
def sweep(
    job: JobFile,
    set: Overrides = None,
    attack: Attacks = None,
    seeds: Annotated[str, typer.Option(help="0..2 or 1,5,9")] = "0..2",
    metric: Metric = "accuracy",
) -> None:
    """Run a job for every combination of values (--set learner.lr=0.05,0.1) and every seed; show the means."""
    varied, fixed = _split_overrides(set or [])
    table = Table("setting", "seeds", f"best {metric}", "±", f"last {metric}", "±", "seconds")
    for values in itertools.product(*(texts for _, texts in varied)):
        setting = [f"{key}={text}" for (key, _), text in zip(varied, values, strict=True)]
        bests, lasts, seconds = [], [], 0.0
        for seed in _seed_list(seeds):
            job_of_seed = config.load(job, [*fixed, *setting, f"seed={seed}"], attack or [])
            console.print(f"[bold]{escape(' '.join(setting) or 'as written')}[/bold], seed {seed}")
            history = _train(job_of_seed, None, pictures=False)
            require_metric([history.rows], metric)
            bests.append(history.best(metric))
            lasts.append(history.metrics.get(metric, math.nan))
            seconds += sum(row["seconds"] for row in history.rows)
        table.add_row(" ".join(setting) or "as written", str(len(bests)), *_mean_and_deviation(bests),
                      *_mean_and_deviation(lasts), f"{seconds:.1f}")  # fmt: skip
    console.print(table)


@runs_app.command("list")
def runs_list(root: Root = Path("runs")) -> None:
    """List the runs of a folder."""
    table = Table(Column("run", no_wrap=True), Column("started", max_width=10), "rounds", "accuracy", "state", "sha256")
    for record in list_runs(root):
        accuracy = next((value for name in ACCURACIES if (value := record.last(name)) is not None), None)
        table.add_row(record.path.name, record.info.get("started", ""), str(len(record.rows)),
                      "" if accuracy is None else f"{accuracy:.4f}", record.state.get("state", "unknown"),
                      str(record.state.get("sha256", ""))[:12])  # fmt: skip
    console.print(table)


@runs_app.command("show")
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


@runs_app.command("compare")
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


@runs_app.command("plot")
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


def main() -> None:
    """Run the command; a mistake of the user's ends in one message and exit status 2, not in a traceback."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        app()
    except RoundelayError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _train(job: Job, folder: Path | None, pictures: bool = True) -> History:
    run = job.start(folder)
    if folder is not None:
        done = run.num_rounds_done
        console.print(f"going on after round {done}" if done else "there is no checkpoint yet: starting at round 1")
    try:
        for _ in shown(run, job.num_rounds, run.num_rounds_done, console):
            pass
    except KeyboardInterrupt:
        if run.folder:
            console.print(f"interrupted; go on with: roundelay resume {run.folder}", soft_wrap=True)
        raise
    history = run.history()
    console.print(final_table(history))
    if history.run_folder is not None:
        console.print(f"run folder: {history.run_folder}", soft_wrap=True)
        if (history.run_folder / "sites").is_dir():
            console.print(f"what each script wrote and printed: {history.run_folder / 'sites'}", soft_wrap=True)
        if pictures:
            try:
                for picture in plot_run(history.run_folder, run.watched):
                    console.print(f"picture: {picture}", soft_wrap=True)
            except MissingExtra as error:
                console.print(f"no pictures: {error}", soft_wrap=True)
    console.print(f"sha256: {history.sha256}", soft_wrap=True, highlight=False)
    return history


def _split_overrides(overrides: Sequence[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Separate overrides with several values, "learner.lr=0.05,0.1", from those with one."""
    varied, fixed = [], []
    for override in overrides:
        key, _, text = override.partition("=")
        texts = list(config.top_level_commas(text))
        if len(texts) > 1:
            varied.append((key, texts))
        else:
            fixed.append(override)
    return varied, fixed


def _seed_list(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    try:
        return list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"cannot read the seeds {text!r}; expected 0..2 or 1,5,9") from None


def _mean_and_deviation(values: Sequence[float]) -> tuple[str, str]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.4f}", f"{deviation:.4f}"

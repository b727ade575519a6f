"""Begin a project; run, resume and sweep jobs."""

import itertools
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from roundelay import config, templates
from roundelay.cli.common import SERVER_FOLDER, JobFile, Metric, Overrides, concluded, console, remind, say
from roundelay.cli.sites import served
from roundelay.errors import ConfigError
from roundelay.history import History
from roundelay.job import Job
from roundelay.report.progress import shown
from roundelay.report.runs import require_metric
from roundelay.run import Run
from roundelay.simulation.settings import EXECUTORS
from roundelay.tracking.run_folder import require_run_folder

app = typer.Typer()
OfScripts, OnWorkers, InSimulation = "Clients that are scripts", "Workers that listen", "Where simulated clients train"
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", metavar="NAME:KEY=VALUE,...", help="Add an attack or a fault: alie:fraction=0.2"),
]


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
    job: Annotated[Path | None, typer.Argument(help="A job file (TOML), or task:NAME.")] = None,
    set: Overrides = None,
    data: Annotated[Path | None, typer.Option(help="The folder with its data: data.folder.")] = None,
    attack: Attacks = None,
    executor: Annotated[
        str | None, typer.Option(help=f"Who trains: one of {', '.join(EXECUTORS)}.", rich_help_panel=InSimulation)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, or HOST:PORT.", rich_help_panel=InSimulation)
    ] = None,
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
    workers: Annotated[
        str | None,
        typer.Option(metavar="ID@HOST:PORT,...", help="Train on workers that listen.", rich_help_panel=OnWorkers),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulate the workers, to the same bits.", rich_help_panel=OnWorkers)
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where their keys are kept.", rich_help_panel=OnWorkers)] = SERVER_FOLDER,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain HTTP to other machines.", rich_help_panel=OnWorkers)
    ] = False,
    replay: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Simulate a run on real devices as it went, from its folder.")
    ] = None,
) -> None:
    """Run a job: that of a job file, or --script with the model that its clients train."""
    if simulate and workers is None:
        raise ConfigError("--simulate is for --workers; without them a job is simulated anyway")
    if replay is not None and (workers is not None or script is not None):
        raise ConfigError(f"--replay {replay} says where its clients were, and what they ran: leave --workers and "
                          "--script out")  # fmt: skip
    given = {"simulation.executor": executor, "simulation.address": address}
    set = [*(set or []), *(f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)]
    if script is None:
        if job is None and replay is not None:
            job = replay / "job.toml"
        if job is None:
            raise ConfigError("give a job file, or --script FILE --model MODULE:NAME")
        found = [] if data is None else [f"data.folder={json.dumps(str(data.absolute()))}"]
        made = config.load(job, [*set, *found], attack or [])
        if replay is not None:
            _shown(made.replayed(replay))
            return
        if workers is None:
            history = _train(made, None)
        else:
            history = run_on_workers(made, workers.split(","), folder, insecure, simulate)
        remind(job, history)
        return
    if data is not None:
        raise ConfigError("--data is for the loader of a job file; a script is told by --script-args where its data is")
    if workers is not None:
        raise ConfigError("workers bring their scripts themselves (roundelay worker --script): give a job file")
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
    _train(config.for_script(script, settings, set, attack or []), None)


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


def run_on_workers(job: Job, workers: Sequence[str], folder: Path, insecure: bool, simulate: bool) -> History:
    from roundelay.deployment.greeting import Worker
    from roundelay.deployment.trust.place import Place
    from roundelay.serving import Serving
    from roundelay.site import simulated

    there = [Worker.of(text.strip()) for text in workers]
    names = [worker.client for worker in there]
    named = simulated(job, names)
    if simulate:
        return _train(named, None)
    return served(lambda: Serving(named.prepared(names), Place(folder, insecure=insecure, workers=there)))


def _train(job: Job, folder: Path | None, pictures: bool = True) -> History:
    run = job.start(folder)
    if folder is not None:
        done = run.num_rounds_done
        console.print(f"going on after round {done}" if done else "there is no checkpoint yet: starting at round 1")
    return _shown(run, pictures)


def _shown(run: Run, pictures: bool = True) -> History:
    try:
        for _ in shown(run, run.job.plan.num_rounds, run.num_rounds_done, console):
            pass
    except KeyboardInterrupt:
        if run.folder:
            say(f"interrupted; go on with: roundelay resume {run.folder}")
        raise
    return concluded(run, pictures)


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

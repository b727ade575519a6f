"""A finished run once more on the clock of another network, without training: from its run folder into a new one."""

import shutil
import tomllib
from asyncio import Runner
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from roundelay import config
from roundelay.bookkeeping import Given
from roundelay.errors import ConfigError
from roundelay.job import Job
from roundelay.report.runs import json_of
from roundelay.run import Run
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.network.availability import Always
from roundelay.simulation.network.network import Network
from roundelay.simulation.reclocked import RoundAgain, once_more, rounds_before
from roundelay.simulation.world import Simulated
from roundelay.tracking.run_folder import JOURNAL, RunFolder, Tracking, read_rows, require_run_folder
from roundelay.workflows.rounds import Rounds

MADE_ANEW = {"run.json", "state.json", "calibration.json", "metrics.jsonl", "ledger.jsonl", "checkpoint.pt"}
COPIED = (".json", ".jsonl", ".pt")


def reclocked(run: str | Path, overrides: Sequence[str] = (), tracking: Tracking | None = None) -> Path:
    """Return the folder of what a run would have been under another ``[simulation.network]``: the same models and rows,
    with another ``virtual_s``, other joules, and another ledger. ``overrides`` are such as
    "simulation.network.transmit_over_compute=10"; without a ``tracking``, the new folder lies beside the old one.

    Raises:
        ConfigError: the run is not finished, or more than the clock would be another: who belongs to a round.
    """
    old = Path(run)
    _require_finished(old)
    before, after = config.load(old / "job.toml"), config.load(old / "job.toml", overrides)
    _require_same(before, after)
    network = _timeless(before)
    _timeless(after)
    tracking = tracking or after.tracking
    if tracking is None or tracking == before.tracking:
        tracking = Tracking(str(old.parent), f"{old.name}-reclocked")
    after = replace(after, tracking=tracking)
    rows, ledger = read_rows(old / "metrics.jsonl"), read_rows(old / "ledger.jsonl")
    rounds = rounds_before((row["round"] for row in rows), ledger, network.header_bits)
    again_run = Run(replace(after, tracking=None).prepared())
    loop = VirtualLoop()
    world = again_run.simulated()
    assert isinstance(world, Simulated)
    with Runner(loop_factory=lambda: loop) as runner:
        again = runner.run(once_more(loop, world.delivery(_given(again_run), loop), rounds))
    return _written(old, after, tracking, rows, again, again_run.standing.records)


def _given(run: Run) -> Given:
    job, standing = run.job, run.standing
    return Given(
        plan=job.plan, clients=job.work.data.clients, trainer=run.trainer, guard=job.guard,
        lengths=run.rehearsal.lengths, restored=None, history=(), on_round=lambda finished: {},
        on_record=standing.keep_record,
    )  # fmt: skip


def _require_finished(old: Path) -> None:
    require_run_folder(old)
    if (old / JOURNAL).exists():
        raise ConfigError(f"{old} is a run on real devices, whose clock was a real one")
    state = json_of(old / "state.json").get("state")
    if state != "finished":
        raise ConfigError(f"the run in {old} is {state or 'not begun'}; expected one that is finished")
    if not (old / "ledger.jsonl").exists() or not (old / "ledger.jsonl").stat().st_size:
        raise ConfigError(f"the run in {old} kept no ledger: it had no [simulation.network]")


def _require_same(before: Job, after: Job) -> None:
    then, now = _trained_by(before), _trained_by(after)
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            raise ConfigError(f"{name} decides what is trained: only simulation.network can be another on another "
                              f"clock; it is {then.get(name)!r}, and would be {now.get(name)!r}")  # fmt: skip


def _trained_by(job: Job) -> Mapping[str, Any]:  # Any: what TOML holds
    told = tomllib.loads(job.to_toml())
    told["simulation"].pop("network", None)
    return {name: value for name, value in told.items() if name not in ("name", "tracking")}


def _timeless(job: Job) -> Network:
    """Refuse what lets time decide who belongs to a round."""
    network, workflow = job.simulation.network, job.workflow
    if network is None:
        raise ConfigError("the job has no [simulation.network], whose clock could be another")
    if not isinstance(workflow, Rounds):
        raise ConfigError(f"in workflow {type(workflow).__name__}, time decides what is trained on which model; "
                          "expected synchronous rounds: train the job anew")  # fmt: skip
    for name, usual in (
        ("goal", None),
        ("deadline_s", None),
        ("over_selection", 0.0),
        ("attempts", 1),
        ("readiness", None),
    ):
        if getattr(workflow, name) != usual:
            raise ConfigError(f"workflow {name} = {getattr(workflow, name)!r} lets time decide who belongs to a round; "
                              "train the job anew")  # fmt: skip
    given = {"availability": not isinstance(network.availability, Always), "select": network.select is not None,
             "transfer": network.transfer is not None}  # fmt: skip
    for name, there in given.items():
        if there:
            raise ConfigError(f"simulation.network.{name} = {getattr(network, name)!r} lets the clock decide who takes "
                              "part, or what arrives; train the job anew")  # fmt: skip
    if getattr(job.learner, "ends_together", False):
        raise ConfigError("clients that end their epochs together draw on a schedule that a ledger does not tell: "
                          "train the job anew")  # fmt: skip
    return network


def _written(
    old: Path, job: Job, tracking: Tracking, rows: Sequence[dict[str, Any]], again: Sequence[RoundAgain],
    records: Mapping[str, Mapping[str, object]],
) -> Path:  # fmt: skip
    folder = RunFolder.create(tracking, job.name)
    try:
        folder.write_text("job.toml", job.to_toml())
        folder.write_json("run.json", {**json_of(old / "run.json"), "reclocked_from": old.name})
        for file in sorted(old.iterdir()):
            if file.suffix in COPIED and file.name not in MADE_ANEW:
                shutil.copyfile(file, folder.path / file.name)
        for name, content in records.items():
            folder.write_json(f"{name}.json", content)
        folder.open_tables(keep_rounds=len(rows))
        for row, one in zip(rows, again, strict=True):
            folder.append({**row, "virtual_s": one.at_s, **one.traced.numbers}, ())
            folder.append_ledger(one.traced.ledger)
        folder.sync()
        trace = {"trace_hash": again[-1].traced.trace_hash} if again else {}
        folder.write_json("state.json", {**json_of(old / "state.json"), **trace})
    finally:
        folder.close()
    return folder.path

"""The executor of a job that leaves it to roundelay: chosen once, noted in the run folder, taken again on resume."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from roundelay.errors import ConfigError
from roundelay.federation import Plan, Workflow
from roundelay.prepared import Prepared
from roundelay.simulation.executors.automatic import Choice, choose, examine
from roundelay.simulation.settings import AUTO
from roundelay.trainer import Trainer
from roundelay.workflows.buffered import Buffered
from roundelay.workflows.cross_site import CrossSite
from roundelay.workflows.cyclic import Cyclic
from roundelay.workflows.hierarchical import Hierarchical
from roundelay.workflows.own import as_workflow
from roundelay.workflows.rounds import Rounds

log = logging.getLogger(__name__)

RECORD = "executor"
"""A run's record of what was chosen and why, ``executor.json`` in its folder."""


def settled(job: Prepared, trainer: Trainer, resume: Path | None, *, real: bool) -> tuple[Prepared, Choice | None]:
    """Return the job with an executor in the place of "auto", and the choice, or None where the job itself chooses.

    A resumed run takes what its folder notes. ``real``: its clients are, or were, devices; a replay of them ends in
    their bits, which are those of "processes".
    """
    if job.simulation.executor != AUTO:
        return job, None
    choice = None if resume is None else _noted(resume / f"{RECORD}.json")
    if choice is None:
        choice = Choice("processes", "clients are devices") if real else _choice(job, trainer)
    log.info("executor: %s, since %s", choice.executor, choice.reason)
    return replace(job, simulation=replace(job.simulation, executor=choice.executor)), choice


def _choice(job: Prepared, trainer: Trainer) -> Choice:
    simulation = job.simulation
    at_once, together = asked(job.workflow, job.plan, job.work.data.clients)
    facts = examine(
        trainer, device=torch.device(simulation.worker_devices()[0]).type,
        block_bytes=int(simulation.block_mib * 2**20), at_once=at_once, together=together,
        own_settings=job.client_config is not None, measures=job.plan.client_eval_every > 0,
    )  # fmt: skip
    return choose(facts)


def asked(workflow: Workflow, plan: Plan, clients: Sequence[str]) -> tuple[int, int]:
    """Return how many clients may train at the same time, and how many of them are asked in one go, from one model."""
    if isinstance(workflow, CrossSite):
        return asked(as_workflow(workflow.then), plan, clients)
    if isinstance(workflow, Cyclic):
        return 1, 1
    if isinstance(workflow, Buffered):  # as one comes back, another goes
        return workflow.concurrency or plan.cohort_size(len(clients)), 1
    if isinstance(workflow, Hierarchical):
        cohorts = [plan.cohort_size(len(members)) for members in workflow.members(clients).values()]
        return sum(cohorts), min(cohorts)
    cohort = plan.cohort_size(len(clients))
    return cohort, cohort if isinstance(workflow, Rounds) else 1  # whom one of your own asks together, only it knows


def _noted(path: Path) -> Choice | None:
    """Raises:
    ConfigError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        return Choice(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot read from {path} which executor the run took: {error}; name it: "
                          "--set simulation.executor=processes (or vectorized)") from error  # fmt: skip

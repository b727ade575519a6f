"""A job's parts, built and ready to run, and which of them cannot mean together what each one's name says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from roundelay import algorithms
from roundelay.aggregators import Rule, root_of, shortfall
from roundelay.algorithms.protocol import NUMBERS, Algorithm, Personalised, Rehearsal, num_groups
from roundelay.attacks.faults import Crash
from roundelay.attacks.protocol import Colludes, Lies, Poisons
from roundelay.attacks.roles import Roles
from roundelay.bookkeeping import ClientConfig
from roundelay.client.launch import ScriptLearner
from roundelay.components import build, describe, namespace, unknown_message
from roundelay.data.split import Split
from roundelay.epochs import Epoch
from roundelay.errors import ConfigError
from roundelay.federation import Plan, Workflow
from roundelay.guard import Guard
from roundelay.layout import Kind, Layout
from roundelay.learner import Learner
from roundelay.privacy import CentralDP
from roundelay.simulation.settings import Simulation
from roundelay.stages.uplink import POINT, Uplink
from roundelay.tracking.run_folder import Tracking
from roundelay.trainer import Work
from roundelay.workflows.buffered import Buffered
from roundelay.workflows.cross_site import CrossSite
from roundelay.workflows.rounds import Rounds
from roundelay.world import Deployment


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's parts, checked and built, ready to run. ``epoch`` is the first of clients that end theirs together."""

    work: Work
    plan: Plan
    workflow: Workflow
    simulation: Simulation
    deployment: Deployment
    guard: Guard
    tracking: Tracking | None
    client_config: ClientConfig | None
    privacy: CentralDP | None
    name: str
    resolved: str
    split: Split | None
    split_file: Path | None
    label_counts: Sequence[Sequence[int]] | None
    aggregator: Rule | None = None
    roles: Roles = field(default_factory=dict)
    epoch: Epoch | None = None


def check(job: Prepared, layout: Layout, rehearsal: Rehearsal, initial: Tensor) -> None:
    """Check the parts against each other; ``initial`` are the model's first parameters (D,).

    Raises:
        ConfigError: a combination cannot mean what its name says.
    """
    _check_learner(job.work, rehearsal)
    job.simulation.check(job.work.learner)
    if layout.local_names and isinstance(job.work.algorithm, Personalised):
        raise ConfigError(f"{type(job.work.algorithm).__name__} gives clients whole models of their own: "
                          "keep_local cannot keep a part of them")  # fmt: skip
    if job.aggregator is not None:
        _check_rule(job, job.aggregator, rehearsal, initial)
    _check_attacks(job, rehearsal, initial)
    if job.epoch is not None:
        _check_epoch(job, job.epoch)
    if job.work.uplink is not None:
        _check_uplink(job, job.work.uplink, rehearsal, initial)
    _check_readiness(job)
    downlink = job.work.downlink
    if downlink is not None and downlink.difference and not isinstance(job.workflow, Rounds):
        raise ConfigError("downlink difference goes on from round to round, of which each is broadcast to all; "
                          f"workflow {type(job.workflow).__name__} has others under way: leave it out")  # fmt: skip
    if job.privacy is not None:
        _check_privacy(job, job.privacy, layout, rehearsal, initial)


def watched_metric(job: Prepared) -> str:
    """Return the metric by which ``best.pt`` is chosen: the one that was asked for, else the one that may stop the run,
    or the loss where that is never measured.

    Raises:
        ConfigError: the run shall stop, or the best model be chosen, by a metric that nothing measures.
    """
    known, stopping = measured_metrics(job), job.plan.stopping
    said = ["train_"]  # what clients report bears names of their own choice
    if job.plan.client_eval_every and isinstance(job.work.learner, ScriptLearner):
        said.append("client_")
    best = job.tracking.best if job.tracking is not None else None
    asked = {"tracking best": best} if best is not None else {}
    if stopping.asked:
        asked["stopping metric"] = stopping.metric
    for what, metric in asked.items():
        if metric not in known and not metric.startswith(tuple(said)):
            raise ConfigError(unknown_message(f"{what} {metric!r}", metric, known))
    if best is not None:
        return best
    return stopping.metric if stopping.metric in known or stopping.metric.startswith(tuple(said)) else "loss"


def measured_metrics(job: Prepared) -> list[str]:
    """Return the metrics that evaluation will measure, in whatever rounds it does."""
    measures = job.work.measures
    known = measures.names if job.plan.eval_every and job.work.data.held_out is not None else []
    if job.plan.client_eval_every:
        parts = ("", "_variance", "_worst_decile")
        known += [f"client_{name}{part}" for name in measures.names for part in parts]
        known += [f"pooled_{name}" for name in measures.names_of_whole_sets]
    return known


def _check_learner(work: Work, rehearsal: Rehearsal) -> None:
    algorithm, learner = type(work.algorithm).__name__, type(work.learner).__name__
    if rehearsal.corrects and not work.learner.corrects:
        raise ConfigError(
            f"{algorithm} corrects every gradient, and {learner} applies no "
            "corrections: the run would silently be another algorithm; use LocalSGD, or an algorithm without one"
        )
    if isinstance(work.learner, ScriptLearner):
        if rehearsal.losses:
            raise ConfigError(f"{algorithm} asks clients for the losses of models, which a script cannot tell: use "
                              "LocalSGD or your own function, or another algorithm")  # fmt: skip
        _check_made_anew(work.algorithm)
    for name in sorted(rehearsal.needs - work.learner.reports):
        raise ConfigError(
            f"{algorithm} needs {name}, which {learner}, as it is set here, does not report: {NUMBERS[name]}"
        )


def _check_made_anew(algorithm: Algorithm) -> None:
    """Refuse an algorithm that a script's process could not make: it gets a name and fields, never code."""
    table, problem = describe(algorithm), "it is no dataclass whose fields describe it"
    if isinstance(table, Mapping):
        problem = "it is defined in __main__"
        if not str(table["use"]).startswith("__main__:"):
            try:
                build(table, namespace(algorithms), "algorithm")
            except ConfigError as error:
                problem = str(error)
            else:
                return
    raise ConfigError(
        f"the algorithm {type(algorithm).__name__} is made anew beside each script, from its name and its fields, and "
        f"cannot be: {problem}; make it a frozen dataclass in a module that the scripts can import, such as one beside "
        "them"
    )


def check_roles(learner: Learner, roles: Roles) -> None:
    """Refuse attacks on what a script has for itself.

    Raises:
        ConfigError: an attack changes data or code that only the script knows.
    """
    for role in {id(role): role for played in roles.values() for role in played}.values():
        if isinstance(role, Poisons | Crash) and isinstance(learner, ScriptLearner):
            raise ConfigError(f"attack {role} changes a client's data or its code, and scripts have their own; attacks "
                              "on what is sent, such as SignFlip, work")  # fmt: skip


def _check_rule(job: Prepared, rule: Rule, rehearsal: Rehearsal, initial: Tensor) -> None:
    clients = job.work.data.clients
    _check_steps(f"aggregator {rule}", job, rehearsal, initial)
    root = root_of(rule)
    if root is not None and root not in clients:
        raise ConfigError(unknown_message(f"aggregator {rule}: client {root!r}", root, clients[:50]))
    if not isinstance(job.workflow, Rounds):
        raise ConfigError(
            f"aggregator {rule} needs the updates of a round side by side, which only synchronous rounds have; "
            f"{type(job.workflow).__name__} folds by the mean: leave the aggregator out"
        )
    voters = len(clients) - (root is not None)
    short = shortfall(rule, min(voters, job.workflow.round_size(job.plan, len(clients))))
    if short is not None:
        raise ConfigError(f"aggregator {short}; raise clients_per_round, or lower f")


def _check_attacks(job: Prepared, rehearsal: Rehearsal, initial: Tensor) -> None:
    for role in {id(role): role for played in job.roles.values() for role in played}.values():
        if isinstance(role, Lies | Colludes):
            _check_steps(f"attack {role}", job, rehearsal, initial)
        if isinstance(role, Colludes) and not isinstance(job.workflow, Rounds):
            raise ConfigError(
                f"attack {role} looks at the honest updates of a round, which only synchronous rounds have together; "
                f"this job's workflow is {type(job.workflow).__name__}"
            )


def _check_privacy(job: Prepared, privacy: CentralDP, layout: Layout, rehearsal: Rehearsal, initial: Tensor) -> None:
    """Refuse what would release more than the accountant counts."""
    _check_steps("privacy", job, rehearsal, initial)
    clients, workflow = len(job.work.data.clients), job.workflow
    expected = job.plan.cohort_size(clients)
    privacy.sum_noise(expected)
    privacy.epsilon(expected / clients, 1)  # a missing accountant shows now, not after the first round
    if not isinstance(workflow, Rounds):
        raise ConfigError(f"privacy is reckoned for synchronous rounds; {type(workflow).__name__} has none")
    if workflow.goal is not None or workflow.over_selection or workflow.attempts > 1 or workflow.quorum > 1:
        raise ConfigError(
            "privacy needs rounds whose members are drawn by chance alone, and whose result is always released: goal, "
            "over_selection, attempts and quorum would let answers decide; leave them out"
        )
    if workflow.readiness is not None:
        raise ConfigError("privacy is reckoned for draws by chance alone, and readiness lets clients' loads decide who "
                          "takes part: leave it out")  # fmt: skip
    if job.aggregator is not None:
        raise ConfigError(f"privacy adds noise to a sum of clipped steps; the aggregator {job.aggregator} makes "
                          "something of unknown sensitivity: leave one of them out")  # fmt: skip
    if layout.length(Kind.FLOAT_BUFFER):
        raise ConfigError(
            "privacy releases parameters only, and this model's float buffers (BatchNorm statistics) are averaged "
            'without noise: keep them on the clients with keep_local = ["@batch_norm"], or use GroupNorm'
        )
    if job.plan.client_eval_every:
        raise ConfigError(
            "privacy does not cover what clients measure on their own data: set evaluation.clients_every = 0"
        )


def _check_uplink(job: Prepared, uplink: Uplink, rehearsal: Rehearsal, initial: Tensor) -> None:
    """Refuse what would mean another thing on one side than on the other."""
    algorithm = type(job.work.algorithm).__name__
    if uplink.difference and POINT in rehearsal.lengths:
        _check_steps("uplink difference", job, rehearsal, initial)
    if uplink.triggered:
        _check_trigger(job, uplink, rehearsal, initial)
    workflow = job.workflow.then if isinstance(job.workflow, CrossSite) else job.workflow
    if uplink.is_heard and isinstance(workflow, Buffered):
        raise ConfigError(
            "uplink: what the server last heard of a client moves with the rounds, and a buffered workflow's tasks "
            f"outlive them: feedback = {uplink.feedback!r} with on_silence = {uplink.on_silence!r} would go on from "
            'another vector than the client did; use feedback = "error", and on_silence = "zero"'
        )
    if uplink.is_heard and num_groups(job.work.algorithm) > 1:
        raise ConfigError(f"uplink feedback = {uplink.feedback!r} goes on from a client's last update, which under "
                          f"{algorithm} may be one of another model")  # fmt: skip


def _check_trigger(job: Prepared, uplink: Uplink, rehearsal: Rehearsal, initial: Tensor) -> None:
    algorithm = type(job.work.algorithm).__name__
    _check_steps("uplink trigger", job, rehearsal, initial)
    if rehearsal.lengths.keys() != {POINT}:
        raise ConfigError(f"uplink trigger speaks of a client's step, and {algorithm} sends "
                          f"{sorted(rehearsal.lengths)}: leave it out")  # fmt: skip
    if rehearsal.memory_bytes or rehearsal.private:
        raise ConfigError(f"uplink trigger: a client of {algorithm} would remember a step that the server has not "
                          "heard of: leave the trigger out")  # fmt: skip
    if job.privacy is not None:
        raise ConfigError("uplink trigger: who stays silent tells of its data, which privacy does not cover: leave the "
                          "trigger out")  # fmt: skip
    workflow = job.workflow.then if isinstance(job.workflow, CrossSite) else job.workflow
    if uplink.depth and not isinstance(workflow, Rounds):
        raise ConfigError("uplink trigger Lag compares with the model's steps from round to round, which "
                          f"{type(workflow).__name__} does not have: use SendOnDelta, or Rounds")  # fmt: skip
    if uplink.on_silence == "exclude" and isinstance(workflow, Buffered):
        raise ConfigError('uplink on_silence = "exclude": a buffer waits for updates, and would ask clients that have '
                          'none to send without end; use "zero"')  # fmt: skip


def _check_readiness(job: Prepared) -> None:
    """Refuse what would leave out somebody who is needed, and loads that nobody asks for."""
    workflow = job.workflow.then if isinstance(job.workflow, CrossSite) else job.workflow
    readiness = workflow.readiness if isinstance(workflow, Rounds) else None
    root = root_of(job.aggregator)
    if readiness is not None and readiness.busy == "skip" and root is not None:
        raise ConfigError(f"readiness leaves out whoever is busy, and the aggregator {job.aggregator} needs its root "
                          f'client {root!r} in every round: set readiness busy = "ask"')  # fmt: skip
    if readiness is None and job.simulation.load is not None:
        raise ConfigError("simulation.load says how busy clients are, and nothing asks for it: give the workflow a "
                          "readiness, such as Rounds(readiness=Readiness())")  # fmt: skip


def _check_epoch(job: Prepared, epoch: Epoch) -> None:
    """Refuse what lets clients train without the others, or looks for them where they wait."""
    who = f'learner when_exhausted = "{epoch.when_exhausted}"'
    workflow = job.workflow.then if isinstance(job.workflow, CrossSite) else job.workflow
    if not isinstance(workflow, Rounds):
        raise ConfigError(
            f"{who} speaks of an epoch that all clients end together, which only synchronous rounds have; "
            f'{type(workflow).__name__} has none: use "continue", where every client goes through its own epochs'
        )
    if job.privacy is not None:
        raise ConfigError(f"{who} lets clients' numbers of batches decide who takes part, and privacy is reckoned for "
                          'draws by chance alone: use "continue"')  # fmt: skip
    root = root_of(job.aggregator)
    if root is not None and epoch.when_exhausted == "skip":
        raise ConfigError(f"{who} would skip the root client {root!r} too, and the aggregator {job.aggregator} needs "
                          'it in every round: use "continue" or "stop"')  # fmt: skip


def _check_steps(who: str, job: Prepared, rehearsal: Rehearsal, initial: Tensor) -> None:
    """Refuse what speaks of a client's step where none can be told."""
    algorithm = job.work.algorithm
    sent = algorithm.broadcast(algorithm.init(initial, len(job.work.data.clients)))
    came, went = dict(rehearsal.lengths), {name: vector.numel() for name, vector in sent.items()}
    if "params" not in sent or rehearsal.lengths.get("params") != sent["params"].numel():
        raise ConfigError(
            f"{who} compares what clients send with what they received, as 'params'; {type(algorithm).__name__} sends "
            f"{came} for {went}: leave it out"
        )

"""``Job``: the pieces put together once. ``job.run()`` trains; ``for round in job.rounds()`` leaves the loop to the
caller.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor, nn

from roundelay.aggregators import Rule, root_of
from roundelay.algorithms import FedAvg
from roundelay.algorithms.protocol import Algorithm
from roundelay.attacks.protocol import Hostile
from roundelay.attacks.roles import assigned
from roundelay.attacks.work import armed
from roundelay.bookkeeping import ClientConfig
from roundelay.client.launch import ScriptLearner, arguments_of
from roundelay.components import describe
from roundelay.data.examples import Data
from roundelay.data.federated import FederatedData, read
from roundelay.data.ids import Without
from roundelay.data.partition import FromFile, Partitioner
from roundelay.data.split import Split
from roundelay.epochs import Epoch
from roundelay.errors import ConfigError, DataError, LayoutError
from roundelay.federation import Plan, Stopping, Workflow
from roundelay.guard import Guard
from roundelay.history import History, Round
from roundelay.layout import Layout, Scope
from roundelay.learner import (
    FunctionLearner,
    Learner,
    LocalFunction,
    LocalSGD,
    LossFunction,
    Measures,
    Metric,
    Whole,
    accuracy,
)
from roundelay.prepared import Prepared, check_roles
from roundelay.privacy import CentralDP
from roundelay.run import Run
from roundelay.simulation.settings import Simulation
from roundelay.stages.downlink import Downlink
from roundelay.stages.uplink import Uplink
from roundelay.standing import require_same_job
from roundelay.tracking.checkpoint import load_weights
from roundelay.tracking.run_folder import JOURNAL, Tracking
from roundelay.trainer import Work
from roundelay.workflows.own import OwnFunction, OwnObject, as_workflow
from roundelay.workflows.rounds import Rounds
from roundelay.world import Deployment


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured, and how often: on the server's held-out data every ``every`` rounds, on the clients' own data
    every ``clients_every`` rounds (0: never), in both cases after round ``num_rounds`` too.

    ``client_test_fraction`` of each client's examples are kept out of its training for that; without it, clients
    evaluate on what they train on. ``loss`` is the learner's own unless it is given. A measure is a function that
    gives one value per example, or a ``Whole`` such as ``MacroF1(num_classes=2)``; over clients, metrics of the latter
    are told of all their examples together too, as "pooled_macro_f1".
    """

    every: int = 1
    clients_every: int = 0
    measures: Sequence[Metric | Whole] = (accuracy,)
    loss: LossFunction | None = None
    batch_size: int = 256
    client_test_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A federated job; its fields are the keys and tables of a job file.

    ``model`` is a class or function that returns a module, or a module, whose weights then are the initial ones;
    ``init`` sets them from a file or a state dict. ``data`` is a ``Data`` that ``partition`` splits, or a
    ``FederatedData``, or a function that returns either. ``learner`` is a ``LocalSGD`` or your own ``function(model,
    data, task)``; ``workflow`` is a ``Rounds()`` or another, or your own ``async function(fed)`` of a ``Server``.
    ``client_config(round, client)`` gives settings for one task. Without an ``aggregator``, updates are averaged as
    they come; a rule such as ``Krum(f=2)``, or your own function of an ``Updates``, holds all those of a round at once.
    ``attacks`` say which clients do harm, and how. ``privacy`` clips every client's step and adds noise, with the
    epsilon of every round among its metrics. ``uplink`` and ``downlink`` say how vectors travel: through which codec,
    with which feedback, and when a client stays silent. Nothing is built or read before the job runs.

    With a ``script`` instead of a learner, every client is a run of that file, which uses ``roundelay.client`` and
    reads its own data; ``script_args`` are its command line. ``data`` then is what the server evaluates on, and a
    ``partition`` tells each script its part.

    ``keep_local`` names tensors that stay on each client and never travel: patterns such as "head.*" (FedPer), or
    "@batch_norm" for all of every BatchNorm layer (FedBN). The global model, ``last.pt`` and ``best.pt`` then hold what
    is shared; clients that evaluate on their own data use their own part.
    """

    model: Callable[[], nn.Module] | nn.Module
    data: Data | FederatedData | Callable[[], Data | FederatedData] | None = None
    num_rounds: int
    clients_per_round: int | float = 1.0
    learner: Learner | LocalFunction | None = None
    script: str | Path | None = None
    script_args: str | Sequence[str] = ()
    algorithm: Algorithm = FedAvg()
    partition: Partitioner | None = None
    seed: int = 0
    name: str = "job"
    init: str | Path | Mapping[str, Tensor] | None = None
    workflow: Workflow | OwnObject | OwnFunction = Rounds()
    evaluation: Evaluation = Evaluation()
    stopping: Stopping = Stopping()
    guard: Guard = Guard()
    simulation: Simulation = field(default_factory=Simulation)
    deployment: Deployment = Deployment()
    tracking: Tracking | None = field(default_factory=Tracking)
    client_config: ClientConfig | None = None
    aggregator: Rule | None = None
    attacks: Sequence[Hostile] = ()
    privacy: CentralDP | None = None
    uplink: Uplink | None = None
    downlink: Downlink | None = None
    keep_local: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._plan()
        for name in ("learner", "algorithm", "partition", "workflow", "aggregator"):
            value = getattr(self, name)
            if isinstance(value, type):
                raise ConfigError(f"{name} is the class {value.__name__}; give an instance: {value.__name__}(...)")
        if (self.learner is None) == (self.script is None):
            raise ConfigError("say what trains on a client: either a learner, such as LocalSGD(lr=0.1), or a script")
        if self.script is None and not (isinstance(self.learner, Learner) or callable(self.learner)):
            raise ConfigError(
                f"learner is a {type(self.learner).__name__}; expected a LocalSGD(...), your own function(model, data, "
                "task), or an object with fit, corrects and reports"
            )
        as_workflow(self.workflow)
        for attack in self.attacks:
            if not isinstance(attack, Hostile):
                raise ConfigError(f"attacks must be a list of attacks such as [SignFlip(fraction=0.2)], got {attack!r}")
        if self.aggregator is not None and not callable(self.aggregator):
            raise ConfigError(f"aggregator must be a rule such as Krum(f=2), or your own function(updates), got "
                              f"{self.aggregator!r}")  # fmt: skip

    def run(
        self, simulation: Simulation | None = None, resume: str | Path | None = None, replay: str | Path | None = None
    ) -> History:
        """Train to the end, or from the checkpoint in the run folder ``resume`` on.

        A ``simulation`` takes the place of the job's own. With ``replay``, the folder of a run on real devices, clients
        are in time, late or lost as they were there, for as many rounds as it finished.
        """
        job = self if simulation is None else replace(self, simulation=simulation)
        run = job.start(resume) if replay is None else job.replayed(replay)
        for _ in run:
            pass
        return run.history()

    def serve(
        self, clients: Sequence[str] | None = None, *, folder: str | Path = ".roundelay/server", host: str = "0.0.0.0",
        port: int | None = None, names: Sequence[str] = (), insecure: bool = False, say: Callable[[str], None] = print,
    ) -> History:  # fmt: skip
        """Train on real devices, which join over HTTPS; the line that they join with is said. Called again after a
        crash, the run goes on. ``clients`` are their ids, where the job's data does not say who there is; ``folder``
        keeps who is who, over all runs; ``names`` are what clients reach this machine under, and ``port``, 8443 unless
        the folder says otherwise.

        Raises:
            MissingExtra: the extra ``serve`` is not installed.
        """
        from roundelay.deployment.trust.place import Place
        from roundelay.serving import Serving  # its extra is for those who serve

        serving = Serving(self.prepared(clients), Place(Path(folder), host, port, names, insecure))
        say(serving.join_line)
        return serving.train()

    def rounds(self, resume: str | Path | None = None) -> Iterator[Round]:
        """Train round by round. Leaving the loop ends the run; it can be resumed."""
        return iter(self.start(resume))

    def start(self, resume: str | Path | None = None) -> Run:
        """Build and check everything, open the run folder, train nothing yet: iterate over the ``Run`` for that.

        Raises:
            ConfigError, DataError, LayoutError: parts are wrong or do not fit each other, or the run to go on with is
                one on real devices.
        """
        if resume is not None and (Path(resume) / JOURNAL).exists():
            raise ConfigError(f"{resume} is a run on real devices, and its journal knows what they were asked: go on "
                              "with it as it was begun, by roundelay serve or run --workers")  # fmt: skip
        return Run(self.prepared(), Path(resume) if resume is not None else None)

    def replayed(self, folder: str | Path) -> Run:
        """Return a run that simulates what happened on real devices, as their server's run folder tells.

        Raises:
            ConfigError: that was a run of another job, or of no devices.
        """
        from roundelay.replaying import course_of  # its extra is for those who serve

        course = course_of(Path(folder))
        job = replace(self, num_rounds=course.num_rounds)
        require_same_job(Path(folder), job.to_toml())
        return Run(job.prepared(), world=lambda run: run.simulated(course))

    def prepared(self, clients: Sequence[str] | None = None) -> Prepared:
        """Build the parts and check each of them. ``clients`` are those who have their data themselves, by id; without
        them, the job's data says who there is.
        """
        learner = self._trains()
        data, split, label_counts = self._federated_data(clients)
        stated = self.evaluation.loss or torch.nn.functional.cross_entropy
        train_loss = learner.loss if isinstance(learner, LocalSGD) else stated
        work = Work(
            make_model=self._model_factory(),
            data=data,
            algorithm=self.algorithm,
            learner=learner,
            loss=self.evaluation.loss or train_loss,
            train_loss=train_loss,
            measures=Measures.of(self.evaluation.measures),
            seed=self.seed,
            eval_batch_size=self.evaluation.batch_size,
            keep_local=self.keep_local,
            uplink=self.uplink,
            downlink=self.downlink,
        )
        number = self.simulation.num_clients
        if self.script is not None and clients is None and number not in (None, len(data.clients)):
            raise ConfigError(f"simulation.num_clients = {number}, but the data is split among {len(data.clients)} "
                              "clients: leave num_clients out")  # fmt: skip
        plan = self._plan()
        metric = plan.stopping.metric
        if self.script is not None and data.held_out is None and not metric.startswith(("train_", "client_")):
            plan = replace(plan, stopping=replace(plan.stopping, metric=f"train_{metric}"))  # only clients measure
        trusted = root_of(self.aggregator)
        others = data.clients if trusted is None else Without(data.clients, (trusted,))
        roles = assigned(self.attacks, others, self.seed)
        check_roles(learner, roles)
        return Prepared(
            work=armed(work, roles) if roles else work,
            plan=plan,
            workflow=as_workflow(self.workflow),
            simulation=self.simulation,
            deployment=self.deployment,
            guard=self.guard,
            tracking=self.tracking,
            client_config=self.client_config,
            privacy=self.privacy,
            name=self.name,
            resolved=self.to_toml(),
            split=split,
            split_file=Path(self.partition.path).resolve() if isinstance(self.partition, FromFile) else None,
            label_counts=label_counts,
            aggregator=self.aggregator,
            roles=roles,
            epoch=Epoch(learner.when_exhausted) if isinstance(learner, LocalSGD) and learner.ends_together else None,
        )

    def to_toml(self) -> str:
        """Return the job as a job file. Parts that only live in this process are named, and refused when the file is
        read.
        """
        top: dict[str, Any] = {}
        tables: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "script" and value is not None:
                value = Path(value).resolve()
            if value is None or (f.name == "attacks" and not value):
                continue
            written = describe(value)
            if f.name in (
                "evaluation",
                "stopping",
                "guard",
                "simulation",
                "deployment",
                "tracking",
                "privacy",
                "uplink",
                "downlink",
            ):
                del written["use"]
            if isinstance(written, Mapping):
                tables[f.name] = written
            elif f.name in ("model", "data", "partition", "algorithm", "learner", "aggregator", "workflow"):
                tables[f.name] = {"use": written}
            else:
                top[f.name] = written
        return tomli_w.dumps({**top, **tables})

    def _plan(self) -> Plan:
        evaluation = self.evaluation
        return Plan(self.num_rounds, self.clients_per_round, evaluation.every, evaluation.clients_every, self.stopping)

    def _model_factory(self) -> Callable[[], nn.Module]:
        make = partial(copy.deepcopy, self.model) if isinstance(self.model, nn.Module) else self.model
        if not callable(make):
            raise ConfigError(
                f"model must be a class, a function or a torch.nn.Module, got {type(self.model).__name__}"
            )
        if self.init is None:
            return make
        state = self.init if isinstance(self.init, Mapping) else load_weights(self.init)
        return partial(_initialised, make, state)

    def script_learner(self) -> ScriptLearner:
        """Return the script that trains, where one does."""
        assert self.script is not None
        args = arguments_of(self.script_args) if isinstance(self.script_args, str) else tuple(self.script_args)
        return ScriptLearner(Path(self.script).resolve(), args)

    def _trains(self) -> Learner:
        if self.script is not None:
            return self.script_learner()
        assert self.learner is not None
        return self.learner if isinstance(self.learner, Learner) else FunctionLearner(self.learner)

    def _federated_data(
        self, clients: Sequence[str] | None
    ) -> tuple[FederatedData, Split | None, list[list[int]] | None]:
        data = read(self.data, self.seed)
        if clients is not None:
            held_out = data.held_out if isinstance(data, FederatedData) else getattr(data, "test", None)
            return FederatedData.elsewhere(clients, held_out), None, None
        if self.script is not None and (data is None or (isinstance(data, Data) and self.partition is None)):
            return self._scripts_data(data)
        if isinstance(data, FederatedData):
            if self.partition is not None:
                raise ConfigError("this data is already split among clients; leave partition out")
            return data, None, data.label_counts()
        if data is None:
            raise ConfigError("data is missing: a Data, a FederatedData, or a function that returns one")
        if not isinstance(data, Data):
            raise ConfigError(
                f"data must be a Data, a FederatedData, or a function that returns one; got {type(data).__name__}"
            )
        if self.partition is None:
            raise ConfigError(
                "partition is missing: say who holds what, for example partition=Dirichlet(num_clients=100, alpha=0.3)"
            )
        split = self.partition.split(data, self.seed)
        federated = FederatedData.from_split(data, split, self.evaluation.client_test_fraction, self.seed)
        try:
            counts = split.label_counts(data.train.labels()).tolist()
        except DataError:  # regression, or text: nothing to count
            counts = None
        return federated, split, counts

    def _scripts_data(self, data: Data | None) -> tuple[FederatedData, Split | None, None]:
        """Return what the server knows where scripts read the data themselves."""
        held_out = None if data is None else data.test
        if isinstance(self.partition, FromFile):
            split = Split.load(self.partition.path)
            return FederatedData.elsewhere(split.clients, held_out), split, None
        if self.partition is not None:
            raise ConfigError("partition splits data, and this job has none: give data, or partition = FromFile(...)")
        number = self.simulation.num_clients
        if number is None:
            raise ConfigError("nothing says how many clients there are: give Simulation(num_clients=2), or a partition")
        return FederatedData.elsewhere([f"site-{i + 1}" for i in range(number)], held_out), None, None


def _initialised(make: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    module = make()
    layout = Layout.of(module)
    try:
        named = [layout.unflatten(layout.flatten(state, scope), scope) for scope in (Scope.SHARED, Scope.FROZEN)]
    except LayoutError as error:
        raise LayoutError(f"init: {error}") from error
    module.load_state_dict(named[0] | named[1])  # under every name: tied weights may have come under one
    return module

"""The server of a workflow that a user wrote: a round's steps one by one, and the values that they hand on.

Nothing here is a second way of doing what other workflows do: ``Server`` asks the same ``Federation``, folds by the
same ``Fold``, and ends in the same bits.
"""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm, num_groups
from roundelay.components import unknown_message
from roundelay.data.ids import place
from roundelay.errors import ConfigError, LayoutError
from roundelay.federation import Federation, Version
from roundelay.fold import Fold, Total
from roundelay.guard import all_finite
from roundelay.intake import ClientReport, Outcome
from roundelay.layout import Layout, Vectors
from roundelay.messages import Memory, Payload, Update
from roundelay.metrics import COLUMNS, reported, scalars
from roundelay.workflows.rounds import conclude, next_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class GlobalModel:
    """The server's model: what ``load_model`` and ``update`` return.

    ``number`` counts the rounds behind it, 0 for the initial model; that of an unsaved one is its own round's.
    """

    _version: Version
    _layout: Layout
    _pending: Mapping[str, Memory] = field(default_factory=dict)  # what clients remember once it is saved

    @property
    def number(self) -> int:
        return self._version.number

    @property
    def params(self) -> dict[str, Tensor]:
        """A state dict, buffers among it; copied at each call, so take it once."""
        return self._layout.unflatten(self._version.vectors)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One client's admitted answer. It holds a copy of what the client sent: a cohort's results take one model or more
    for each client, as long as you keep them.

    ``metrics`` bear the names that they have in the tables, "train_loss". ``num_examples`` is the client's weight in
    ``aggregate``, which ``dataclasses.replace(result, num_examples=...)`` changes.
    """

    client: str
    num_examples: float
    metrics: Mapping[str, float]
    _update: Update
    _memory: Memory
    _layout: Layout
    _heard: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Tensor]:
        """The client's model as a state dict, buffers among it; copied at each call, so take it once.

        Raises:
            ConfigError: the algorithm's clients send something else.
        """
        return _named(self._layout, self._update.payload, f"client {self.client!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """What ``aggregate`` made of results: every vector's mean under its own weight. ``count`` may be 0."""

    _outcome: Outcome
    _layout: Layout

    @property
    def count(self) -> int:
        return self._outcome.fold.count

    @property
    def params(self) -> dict[str, Tensor]:
        """The mean as a state dict, buffers among it; copied at each call, so take it once.

        Raises:
            EmptyRoundError: it is the mean of nothing.
            ConfigError: the algorithm's clients send something else, or train several models.
        """
        totals = self._outcome.fold.totals()
        if len(totals) > 1:
            raise ConfigError(f"the aggregate holds {len(totals)} models, one a group; fed.update takes it as it is")
        (total,) = totals.values()
        return _named(self._layout, Payload(total.means, *self._outcome.fold.buffers()), "the aggregate")


class Server:
    """What the server can do in a round, and what it knows of the job. A workflow of your own gets one.

    A round is everything between two calls of ``save``: any number of cohorts, trained after each other or side by
    side, and of updates. Nothing but the model is kept between rounds: an interrupted run that is resumed calls your
    function anew, which starts from ``load_model``; what your function held in variables is gone. So that it draws
    the same again, let it draw from ``generator``.
    """

    def __init__(self, fed: Federation, algorithm: Algorithm) -> None:
        self._fed, self._algorithm = fed, algorithm
        self._saved = GlobalModel(fed.restore() or fed.begin(algorithm), fed.layout)
        self._open_round()

    def _open_round(self) -> None:
        self._num_draws, self._num_trainings = 0, 0
        self._reports: list[ClientReport] = []
        self._memories: dict[str, Memory] = {}  # of all admitted clients, whatever becomes of their results
        self._heard: dict[str, Mapping[str, Tensor]] = {}  # and what was reconstructed of them
        self._quiet: dict[str, Memory] = {}  # of clients that had nothing to send, so that there is no result of theirs
        self._notes: dict[str, float] = {}
        self._measured: dict[GlobalModel, dict[str, float]] = {}

    # ---- what is known ----------------------------------------------------------------------------------------------

    @property
    def clients(self) -> Sequence[str]:
        """The ids of all clients, sorted."""
        return self._fed.clients

    @property
    def num_rounds(self) -> int:
        """How many rounds the job asks for."""
        return self._fed.plan.num_rounds

    @property
    def round(self) -> int:
        """The number of the round that ``save`` will finish, from 1."""
        return self._saved.number + 1

    @property
    def running(self) -> bool:
        """False once all rounds are saved, or the job's stopping rule holds: loop while it is true."""
        plan = self._fed.plan
        return self._saved.number < plan.num_rounds and plan.stopping.reason(self._fed.history) is None

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """One row of metrics per saved round, those before an interruption among them."""
        return self._fed.history

    def generator(self, purpose: str) -> torch.Generator:
        """Return a fresh generator, keyed by the job's seed, the round and ``purpose``."""
        return seeds.generator(self._fed.seed, self.round, 0, "", f"workflow: {purpose}")

    # ---- the steps of a round ---------------------------------------------------------------------------------------

    def load_model(self) -> GlobalModel:
        """Return the model that was saved last: the initial one, or where an interrupted run stood."""
        return self._saved

    def sample(self, count: int | float | None = None, among: Sequence[str] | None = None) -> tuple[str, ...]:
        """Draw clients uniformly without replacement; sorted by id. Each further draw of a round is another.

        ``count`` is a number (int) or a fraction of those drawn from (float); the job's ``clients_per_round`` unless
        it is given. ``among`` are the clients to draw from, all unless they are given.
        """
        pool = self.clients if among is None else self._known("sample", among)
        plan = self._fed.plan
        try:
            size = (plan if count is None else replace(plan, clients_per_round=count)).cohort_size(len(pool))
        except ConfigError as error:
            raise ConfigError(f"fed.sample({'' if count is None else repr(count)}): {error}") from error
        self._num_draws += 1
        return self._fed.sample(self.round, self._num_draws - 1, size, among=pool)

    async def train(
        self, model: GlobalModel, clients: Sequence[str], *, goal: int | None = None, deadline_s: float | None = None
    ) -> list[Result]:
        """Let clients train on a model; return the admitted answers, in order of client id.

        Who was refused, lost or late is in the tables, with the reason. Answers are waited for until all are there,
        ``goal`` of them are admitted, or ``deadline_s`` seconds are over. Each further training of a round is a new
        attempt, with draws of its own.
        """
        version = _version_of("train", model)
        cohort = self._known("train", clients)
        if goal is not None and goal < 1:
            raise ConfigError(f"fed.train: goal must be at least 1, got {goal!r}")
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"fed.train: deadline_s must be positive, got {deadline_s!r}")
        attempt, self._num_trainings = self._num_trainings, self._num_trainings + 1
        if attempt == len(self.clients):
            log.warning("round %d has trained more often than there are clients and is not saved: was await "
                        "fed.save(model) forgotten?", self.round)  # fmt: skip
        updates: list[Update] = []
        # whatever the model is, clients stand where they stood when the last one was saved
        version = replace(version, number=self._saved.number, heard=self._saved._version.heard)
        outcome = await self._fed.train(
            self._algorithm, version, cohort, attempt=attempt, goal=goal, deadline_s=deadline_s,
            fold=Fold({}, kept=updates),
        )  # fmt: skip
        self._reports.extend(outcome.reports)
        self._memories.update(outcome.memories)
        self._heard.update(outcome.heard)
        silent = {report.client for report in outcome.reports if report.status == "silent"}
        self._quiet.update({client: memory for client, memory in outcome.memories.items() if client in silent})
        return [
            Result(update.task.client, update.num_examples, reported(update.metrics), update,
                   outcome.memories.get(update.task.client, {}), self._fed.layout,
                   outcome.heard.get(update.task.client, {}))
            for update in updates
        ]  # fmt: skip

    def aggregate(self, results: Sequence[Result]) -> Aggregate:
        """Return the mean of results, each vector under the algorithm's weight for it.

        They are folded by client id and task number, in whatever order they come, as every workflow folds. Of no
        results it is an aggregate that leaves the model as it is.
        """
        given: object = results
        if inspect.iscoroutine(given):
            given.close()
            raise ConfigError("fed.aggregate got a coroutine: write results = await fed.train(model, clients)")
        fold, memories = Fold(self._algorithm.uplink), dict[str, Memory]()
        heard = dict[str, Mapping[str, Tensor]]()
        for result in sorted(results, key=_order):
            weight = result.num_examples
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(f"fed.aggregate: client {result.client!r} has num_examples = {weight!r}; expected a "
                                  "number above 0: leave a result out that shall not count")  # fmt: skip
            fold.add(replace(result._update, num_examples=weight))
            if result._memory:
                memories[result.client] = result._memory
            if result._heard:
                heard[result.client] = result._heard
        return Aggregate(Outcome(self.round, 0, fold, (), memories, 0, 0, heard), self._fed.layout)

    def update(self, model: GlobalModel, aggregate: Aggregate | Mapping[str, Tensor]) -> GlobalModel:
        """Let the job's algorithm make the server's step from a model; return a new one, which ``save`` makes the
        round's.

        A state dict of your own takes the place of the mean, as of all answers of this round. It holds every tensor
        of the model, buffers too.

        Raises:
            LayoutError: the state dict lacks a tensor, has an unknown one, or one of another shape.
            ConfigError: it is not finite, or the algorithm makes its step of more than one model's parameters.
        """
        version, pending = _version_of("update", model), model._pending
        if model.number != self.round:  # whatever it is, clients stand where the model stands that was saved last
            version, pending = replace(version, heard=self._saved._version.heard), {}
        if not isinstance(aggregate, Aggregate):
            return self._model(self._stepped(version, aggregate), {**pending, **self._memories})
        outcome = aggregate._outcome
        short = outcome.fold.shortfall()
        if short is not None:
            log.warning("round %d: the model stays as it was: %s", self.round, short)
            return self._model(version, pending)
        return self._model(next_version(self._algorithm, version, outcome), {**pending, **outcome.memories})

    async def evaluate(self, model: GlobalModel) -> dict[str, float]:
        """Return a model's metrics on the server's held-out data. Those of the model that is saved join the round's
        row.
        """
        self._measured[model] = await self._fed.evaluate(replace(_version_of("evaluate", model), number=self.round))
        return dict(self._measured[model])

    def log(self, **numbers: object) -> None:
        """Note numbers that join this round's row, under their names.

        Raises:
            MetricError: one is not a number.
            ConfigError: a name is taken by what the framework writes itself.
        """
        for name in numbers:
            if name in COLUMNS or name.startswith(("train_", "client_")):
                raise ConfigError(f"fed.log: {name!r} is a column that the framework writes; choose another")
        self._notes.update(scalars(numbers))

    async def save(self, model: GlobalModel) -> None:
        """Finish the round with a model that ``update`` made in it: its row and tables, what its clients remember, the
        checkpoint; then the caller of the job gets the ``Round``.

        Where the job's ``evaluation`` asks for it and you have not evaluated, that happens first.

        Raises:
            ConfigError: the model was saved before or is none of this round's, or all rounds are saved.
        """
        version, number = _version_of("save", model), self.round
        if version.number != number:
            raise ConfigError(f"fed.save: model {version.number} is of a round that is saved, and round {number} is "
                              "open; expected a model that fed.update made since the last fed.save")  # fmt: skip
        if number > self.num_rounds:
            raise ConfigError(f"fed.save: all {self.num_rounds} rounds of the job are saved; loop while fed.running, "
                              "or raise num_rounds")  # fmt: skip
        reports = tuple(sorted(self._reports, key=lambda report: (report.client, report.attempt)))
        attempt = max(0, self._num_trainings - 1)  # its bytes are counted already
        outcome = Outcome(number, attempt, Fold({}), reports, {**self._quiet, **model._pending}, 0, 0)
        self._fed.commit(outcome)
        measured, notes = self._measured.get(model), self._notes
        self._saved = GlobalModel(version, self._fed.layout)
        self._open_round()
        await conclude(self._fed, version, outcome, measured, notes)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _ended(self) -> Version:
        if self._num_trainings:
            log.warning("the workflow ended with round %d trained and not saved", self.round)
        return self._saved._version

    def _model(self, version: Version, pending: Mapping[str, Memory]) -> GlobalModel:
        """However many updates a round makes, they are of its number."""
        return GlobalModel(replace(version, number=self.round), self._fed.layout, pending)

    def _stepped(self, version: Version, state_dict: Mapping[str, Tensor]) -> Version:
        if not isinstance(state_dict, Mapping):
            raise ConfigError(f"fed.update takes an aggregate or a state dict, got {type(state_dict).__name__}")
        algorithm = self._algorithm
        if algorithm.uplink.keys() != {"params"} or num_groups(algorithm) > 1:
            raise ConfigError(
                f"fed.update: {type(algorithm).__name__} makes its step of {', '.join(sorted(algorithm.uplink))} by "
                "group, and a state dict is one model's parameters; hand it what fed.aggregate(results) returns"
            )
        try:
            vectors = self._fed.layout.flatten(state_dict)
        except LayoutError as error:
            raise LayoutError(f"fed.update: {error}") from error
        if not (all_finite(vectors.params) and all_finite(vectors.buffers)):
            raise ConfigError("fed.update: the state dict has values that are NaN or infinite")
        # as under an aggregation rule, every client weighs one
        count = max(1, sum(report.status == "admitted" for report in self._reports))
        total = Total({"params": vectors.params}, {"params": float(count)}, count)
        return Version(self.round, algorithm.apply(version.state, {0: total}), vectors.buffers, vectors.integers,
                       heard={**version.heard, **self._heard})  # fmt: skip

    def _known(self, verb: str, clients: Sequence[str]) -> list[str]:
        """Return clients sorted by id."""
        if isinstance(clients, str):
            raise ConfigError(f"fed.{verb} takes a list of client ids, got the string {clients!r}")
        listed = sorted(clients)
        for client, following in zip(listed, [*listed[1:], None], strict=True):
            if place(self.clients, client) is None:
                raise ConfigError(unknown_message(f"fed.{verb}: client {client!r}", client, self.clients[:50]))
            if client == following:
                raise ConfigError(f"fed.{verb}: client {client!r} is named twice; a second call lets it train again")
        return listed


def _version_of(verb: str, model: object) -> Version:
    if not isinstance(model, GlobalModel):
        raise ConfigError(f"fed.{verb}: expected a model of fed.load_model or fed.update, got {type(model).__name__}")
    return model._version


def _order(result: Result) -> tuple[str, int]:
    if not isinstance(result, Result):
        raise ConfigError(f"fed.aggregate takes results of fed.train, got {type(result).__name__}")
    return result.client, result._update.task.id


def _named(layout: Layout, payload: Payload, who: str) -> dict[str, Tensor]:
    params = payload.vectors.get("params")
    if params is None:
        raise ConfigError(f"{who} has no parameters to show: this algorithm's clients send "
                          f"{', '.join(sorted(payload.vectors))}; fed.aggregate takes results as they are")  # fmt: skip
    return layout.unflatten(Vectors(params, payload.buffers, payload.integers))

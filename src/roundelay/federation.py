"""What a workflow may ask for. A federation is simulated in virtual time, or real; the workflow cannot tell which."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from roundelay.algorithms.protocol import Algorithm, State
from roundelay.epochs import Epoch
from roundelay.errors import ConfigError
from roundelay.fold import Folding
from roundelay.guard import Refusal
from roundelay.intake import ClientReport, Outcome
from roundelay.layout import Layout, Vectors
from roundelay.load import Load
from roundelay.messages import Lost, Payload, Task, TaskKind
from roundelay.metrics import higher_is_better
from roundelay.stages.decoding import Heard
from roundelay.stages.downlink import Told
from roundelay.trainer import Answer


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the model on the server: the algorithm's state ("params" among it) and the buffers beside it.

    ``number`` counts the rounds behind it, 0 for the initial model. ``last`` is the step that the round's aggregate
    made, of all uplink vectors end to end, where an aggregation rule was used; ``clip_norm`` is the next round's where
    updates are clipped; ``epoch`` is the next round's where clients end their epochs together. ``heard`` is what was
    last reconstructed of each client, where the uplink goes on from that; ``told`` is what clients have decoded of the
    last broadcast that counted, where the downlink does.
    """

    number: int
    state: State
    buffers: Tensor
    integers: Tensor
    last: Tensor | None = None
    clip_norm: float | None = None
    epoch: Epoch | None = None
    heard: Heard = field(default_factory=dict)
    told: Told | None = None
    steps: tuple[float, ...] = ()

    @property
    def vectors(self) -> Vectors:
        return Vectors(self.state["params"], self.buffers, self.integers)


@dataclass(frozen=True, slots=True)
class Stopping:
    """End a job early: when ``metric`` reaches ``target``, or has not improved for ``patience`` evaluations, by more
    than ``min_delta`` over the best one.

    ``better`` is "higher" or "lower"; without it, the metric's name says so (losses and errors fall, the rest rises).
    """

    metric: str = "accuracy"
    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    better: str | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least 1, got {self.patience!r}")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigError(f"stopping min_delta must be at least 0, got {self.min_delta!r}")
        if self.better not in (None, "higher", "lower"):
            raise ConfigError(f'stopping better must be "higher" or "lower", got {self.better!r}')

    @property
    def asked(self) -> bool:
        """Whether anything stops the job before its last round."""
        return self.target is not None or self.patience is not None

    def reason(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Return why to stop after these rows, oldest first, or None. Rows without the metric do not count."""
        if not self.asked:
            return None
        sign = 1 if higher_is_better(self.metric, self.better) else -1
        kept = (row.get(self.metric) for row in history)  # None: what was not finite, read back from a run folder
        values = [sign * value for value in kept if value is not None and math.isfinite(value)]
        if not values:
            return None
        if self.target is not None and values[-1] >= sign * self.target:
            return f"{self.metric} reached {sign * values[-1]:.6g} (target {self.target:g})"
        best, since_best = -math.inf, 0
        for value in values:
            best, since_best = (value, 0) if value > best + self.min_delta else (best, since_best + 1)
        if self.patience is not None and since_best >= self.patience:
            return f"{self.metric} has not improved for {since_best} evaluations"
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many, how often: what every workflow needs to know of a job.

    ``clients_per_round`` is a number of clients (int) or a fraction of the population (float in (0, 1]). Evaluation on
    the server's held-out data happens every ``eval_every`` rounds and after the last, on the clients' own data every
    ``client_eval_every`` rounds; 0 means never.
    """

    num_rounds: int
    clients_per_round: int | float
    eval_every: int = 1
    client_eval_every: int = 0
    stopping: Stopping = field(default_factory=Stopping)

    def __post_init__(self) -> None:
        for name, least in (("num_rounds", 1), ("eval_every", 0), ("client_eval_every", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        share = self.clients_per_round
        if isinstance(share, bool) or not (share >= 1 if isinstance(share, int) else 0 < share <= 1):
            raise ConfigError(
                f"clients_per_round must be a whole number (10) or a fraction in (0, 1] (0.1), got {share!r}"
            )

    def cohort_size(self, num_clients: int) -> int:
        """Return how many clients a round counts on.

        Raises:
            ConfigError: more clients are asked for than there are.
        """
        share = self.clients_per_round
        if isinstance(share, float):
            return max(1, round(share * num_clients))
        if share > num_clients:
            raise ConfigError(
                f"clients_per_round = {share} but there are only {num_clients} clients; lower it or add clients"
            )
        return share

    def evaluates(self, number: int, every: int) -> bool:
        return every > 0 and (number % every == 0 or number == self.num_rounds)


@dataclass(frozen=True, slots=True)
class Flight:
    """A task under way: what was sent with it, as its client knows it, the number of the version that was, and how many
    bytes travelled for it.
    """

    task: Task
    sent: Payload
    version: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """An answer to a task that was under way, decoded, and the guard's refusal where it is not admitted. ``num_bytes``
    are those that travelled.

    Its tensors are valid until the federation is asked for the next one.
    """

    flight: Flight
    answer: Answer | Lost
    refusal: Refusal | None
    num_bytes: int = 0


@runtime_checkable
class Workflow(Protocol):
    """What the server does from the first round to the last."""

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        """Raise a ConfigError where this workflow cannot come true with the rest of the job; called before it runs."""

    async def run(self, fed: "Federation", algorithm: Algorithm) -> Version:
        """Run the job, plain sequential code over a ``Federation``; return the last version."""


class Federation(Protocol):
    @property
    def clients(self) -> Sequence[str]:
        """The ids of all clients, sorted."""

    @property
    def plan(self) -> Plan: ...

    @property
    def layout(self) -> Layout:
        """The model's tensors, by name."""

    @property
    def seed(self) -> int:
        """The job's seed, for draws of the workflow's own."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """One row of metrics per finished round."""

    def restore(self) -> Version | None:
        """Return the version that an interrupted run had reached, or None."""

    def begin(self, algorithm: Algorithm) -> Version:
        """Return version 0: the initial model."""

    def sample(self, number: int, attempt: int, count: int, among: Sequence[str] | None = None) -> tuple[str, ...]:
        """Draw ``count`` clients uniformly without replacement, keyed by round and attempt; sorted by id.

        ``among`` is in order of id too; without it, all clients are drawn from.
        """

    async def train(
        self,
        algorithm: Algorithm,
        version: Version,
        cohort: Sequence[str],
        *,
        attempt: int,
        goal: int | None,
        deadline_s: float | None,
        fold: Folding | None = None,
    ) -> Outcome:
        """Let a cohort train on a version. The round closes when ``goal`` updates were admitted, at the deadline, or
        when nobody is left to answer. ``fold`` takes the updates in; without it, what the job says does. Calls for one
        round and ``attempt`` ask different clients.
        """

    async def loads(self, number: int, attempt: int, clients: Sequence[str], within_s: float) -> Mapping[str, Load]:
        """Ask clients how busy they are, now, before they are asked for an attempt at a round. Who does not answer
        within so many seconds is missing.
        """

    async def rest(self, seconds: float, why: str) -> None:
        """Let time pass before the same clients are asked again; ``why`` is for those who look on."""

    async def stalled(self, number: int, why: str, quorum: int) -> bool:
        """Say that all attempts at a round have failed, which needs so many updates. Return whether to try once more:
        real clients may come back.
        """

    @property
    def flying(self) -> Sequence[Flight]:
        """The tasks under way, one a client; they outlive rounds, and an interruption of the run."""

    @property
    def arrived(self) -> bool:
        """Whether an answer waits that arrived at this very moment."""

    def dispatch(
        self, algorithm: Algorithm, version: Version, clients: Sequence[str], attempt: int, kind: TaskKind = "train"
    ) -> None:
        """Let clients train on a version, each by itself; the next call on the same version has a new ``attempt``.

        ``kind`` "submit" asks for the model that each would show to others.
        """

    async def arrival(self) -> Arrived:
        """Wait for the next answer of a dispatched task."""

    def account(self, outcome: Outcome) -> Outcome:
        """Count the bytes and reports of a round that the workflow closed itself; ``train`` does so for its own."""

    def commit(self, outcome: Outcome) -> None:
        """Make final what the admitted clients will remember. Without it, their memory stays as it was."""

    async def evaluate(self, version: Version) -> dict[str, float]:
        """Return the metrics on the server's held-out data; empty where it has none."""

    async def evaluate_clients(self, version: Version, clients: Sequence[str]) -> dict[str, float]:
        """Return metrics over clients' own data: per metric "client_NAME" (weighted by examples), its variance over
        clients and its worst decile. Each client measures its own model where the algorithm gives it one."""

    async def haul(self, edge: str, payload: Payload, *, up: bool) -> None:
        """Carry a model from an edge to the cloud, or down from there: time passes where the way is modelled."""

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        """Return the metrics of a model on each client's own data; ``number`` keys what evaluation draws."""

    def record(self, name: str, content: Mapping[str, object]) -> None:
        """Keep a result beside the run's tables, as a file of this name."""

    async def finish_round(self, version: Version, outcome: Outcome, metrics: Mapping[str, float]) -> None:
        """Record a round: track, checkpoint, and hand it to whoever iterates over the job."""

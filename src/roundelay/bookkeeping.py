"""What every federation does alike, wherever its clients are: it draws cohorts, chooses how updates are folded,
measures the model on the server's data, and accounts for what became of each client until a round is finished.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from roundelay import seeds
from roundelay.aggregators import Rule, root_of
from roundelay.algorithms.protocol import Algorithm, Personalised, State, num_groups
from roundelay.data.ids import Without
from roundelay.epochs import Epoch
from roundelay.errors import ClientFailed, WireError
from roundelay.federation import Arrived, Flight, Plan, Version
from roundelay.fold import Fold, Folding
from roundelay.gather import Gathered
from roundelay.guard import Expected, Guard, Reason, Refusal
from roundelay.intake import WINDOW_BYTES, ClientReport, InMemory, Intake, Outcome, Window
from roundelay.layout.travel import opened, packed
from roundelay.learner.cursor import EPOCH
from roundelay.messages import Config, Payload, Task, TaskKind
from roundelay.metrics import ClientTable, higher_is_better, weighted_means
from roundelay.privacy import CentralDP, Noised, noise_key
from roundelay.stages.decoding import Decoder, Heard
from roundelay.stages.downlink import Broadcast
from roundelay.stages.uplink import with_steps
from roundelay.stopwatch import real_s
from roundelay.trainer import Answer, Trainer

log = logging.getLogger(__name__)

HOPELESS = 3
"""When whole cohorts fail, and so many clients in a row, the code is at fault: going on would only look like work."""

ClientConfig = Callable[[int, str], Config]
"""``client_config(round, client)`` gives settings that override the learner's for one task."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What a modelled network has to tell of a round: numbers for its row, the rows of its ledger, the hash of all of
    them so far, and what a resumed run's network goes on from.
    """

    numbers: Mapping[str, float]
    ledger: Sequence[Mapping[str, Any]]  # Any: text and numbers
    trace_hash: str
    state: Mapping[str, Any]  # Any: numbers, text, and lists of them


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished round as the federation saw it; ``at_s`` is the federation's own time at its end.

    ``reports`` tells of every client of every attempt, and then of those that evaluated, by id, whoever was done first;
    ``flights`` are under way, each with its nanosecond of arrival.
    """

    version: Version
    outcome: Outcome
    reports: Sequence[ClientReport]
    flights: Sequence[tuple[Flight, int]]
    metrics: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float
    at_s: float
    network: Traced | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a federation is given of a run. ``lengths`` are those of the uplink vectors; ``on_round`` records a finished
    round and returns its row of metrics for ``history``; without a ``rule``, updates are averaged as they come. An
    ``epoch`` is the first one of clients that end theirs together.
    """

    plan: Plan
    clients: Sequence[str]
    trainer: Trainer
    guard: Guard
    lengths: Mapping[str, int]
    restored: Version | None
    history: Sequence[Mapping[str, float]]
    on_round: Callable[[Finished], Mapping[str, float]]
    on_record: Callable[[str, Mapping[str, object]], None]
    client_config: ClientConfig | None = None
    rule: Rule | None = None
    privacy: CentralDP | None = None
    epoch: Epoch | None = None


class Bookkeeping(ABC):
    """The part of a ``Federation`` that does not depend on where clients are."""

    def __init__(self, given: Given) -> None:
        self.plan, self.clients, self.seed = given.plan, given.clients, given.trainer.work.seed
        self.history, self.layout = list(given.history), given.trainer.layout
        self._given, self._trainer, self._guard = given, given.trainer, given.guard
        groups, uplink = num_groups(given.trainer.work.algorithm), given.trainer.work.uplink
        self._expected = Expected.of(self.layout, given.lengths, groups, encoded=uplink is not None)
        self._shown = Expected.of(self.layout, given.lengths, groups)  # of what is sent as it is, whatever the uplink
        self._root = root_of(given.rule)
        self._drawn = self.clients if self._root is None else Without(self.clients, (self._root,))
        self._last_task, self._failed_in_a_row, self._bytes_down, self._bytes_up = 0, 0, 0, 0
        self._logged: set[str] = set()  # tracebacks that were logged in full
        self._reports: list[ClientReport] = []  # of the round that is not finished
        self._started = real_s()
        self._cast: tuple[State, int, Broadcast] | None = None  # what was broadcast last, where it was made for that

    @abstractmethod
    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]: ...

    @abstractmethod
    async def gather(self) -> None: ...

    @abstractmethod
    def _now_s(self) -> float:
        """Return the federation's own time."""

    @abstractmethod
    def _under_way(self) -> Sequence[tuple[Flight, int]]:
        """Return the tasks under way, each with its nanosecond of arrival."""

    def _traced(self, number: int) -> Traced | None:
        """Close a modelled network's account of a round; None where there is none."""
        return None

    async def haul(self, edge: str, payload: Payload, *, up: bool) -> None:  # noqa: B027 - real links need no model
        """Carry a model between an edge and the cloud, where that takes time."""

    def begin(self, algorithm: Algorithm) -> Version:
        first = self._initial()
        self._trainer.rest()
        state = algorithm.init(first.state["params"], len(self.clients))
        return Version(0, state, first.buffers, first.integers, epoch=self._given.epoch)

    def _reached(self) -> Version | None:
        if self._given.restored is not None:
            self._trainer.rest()
        return self._given.restored

    def _initial(self) -> Version:
        """Return the model as it is before anything was trained, which is now. Kept, it would be one copy too many."""
        bound = self._trainer.bound
        return Version(0, {"params": bound.params().clone()}, bound.buffers().clone(), bound.integers().clone())

    def sample(self, number: int, attempt: int, count: int, among: Sequence[str] | None = None) -> tuple[str, ...]:
        if self._given.privacy is not None:  # a draw of its own for every client, as the accountant reckons
            rate = count / len(self.clients)
            keyed = partial(seeds.uniform, self.seed, number, attempt)
            return tuple(client for client in self.clients if keyed(client, "cohort") < rate)
        draw = seeds.rng(self.seed, number, attempt, "", "cohort")
        pool = self._drawn if among is None else among
        if self._root is not None:  # beside those drawn, and maybe one of the ``count`` that were there to draw from
            count = min(count, len(pool))
        drawn = [pool[i] for i in draw.sample(range(len(pool)), count)]
        return tuple(sorted(drawn if self._root is None else [*drawn, self._root]))

    async def evaluate(self, version: Version) -> dict[str, float]:
        return self._trainer.evaluate_held_out(version.vectors, version.number)

    async def evaluate_clients(self, version: Version, clients: Sequence[str]) -> dict[str, float]:
        algorithm = self._trainer.work.algorithm
        vectors: Mapping[str, Tensor] = {"params": version.state["params"]}
        if isinstance(algorithm, Personalised):
            vectors = algorithm.broadcast(version.state)
        came = await self.measure(Payload(vectors, version.buffers, version.integers), version.number, clients)
        self._reports.extend(replace(report, rows={}) for report in came)
        table = ClientTable([r.client for r in came], [r.num_examples for r in came], [r.metrics for r in came])
        metrics = {}
        for name in table.names():
            metrics[f"client_{name}"] = table.weighted_mean(name)
            metrics[f"client_{name}_variance"] = table.variance(name)
            metrics[f"client_{name}_worst_decile"] = table.worst_decile(name, higher_is_better(name))
        pooled = self._trainer.work.measures.pooled([report.rows for report in came])
        return metrics | {f"pooled_{name}": value for name, value in pooled.items()}

    def record(self, name: str, content: Mapping[str, object]) -> None:
        self._given.on_record(name, content)

    async def finish_round(self, version: Version, outcome: Outcome, metrics: Mapping[str, float]) -> None:
        admitted = ((r.num_examples, r.metrics) for r in outcome.reports if r.status == "admitted")
        table = {**weighted_means(admitted), **metrics}
        reports = sorted(self._reports, key=lambda one: (one.status == "evaluated", one.attempt, one.client))
        finished = Finished(
            version, outcome, tuple(reports), tuple(self._under_way()), table, self._bytes_down,
            self._bytes_up, real_s() - self._started, self._now_s(), self._traced(version.number),
        )  # fmt: skip
        self._reports = []
        self.history.append(self._given.on_round(finished))
        self._bytes_down, self._bytes_up, self._started = 0, 0, real_s()

    def account(self, outcome: Outcome) -> Outcome:
        if self._given.privacy is not None:  # epsilon speaks of the models: nothing else that clients say is kept
            kept = tuple(replace(report, num_examples=0.0, metrics={}) for report in outcome.reports)
            outcome = replace(outcome, reports=kept)
        uplink = self._trainer.work.uplink
        if uplink is not None and uplink.depth:
            outcome = replace(outcome, depth=uplink.depth)
        if outcome.attempt:
            outcome = replace(outcome, reports=tuple(replace(r, attempt=outcome.attempt) for r in outcome.reports))
        self._reports.extend(outcome.reports)
        self._bytes_down += outcome.bytes_down
        self._bytes_up += outcome.bytes_up
        for report in outcome.reports:
            if report.status in ("refused", "lost"):
                new = report.traceback not in self._logged  # many clients fail alike: one traceback tells
                self._logged.add(report.traceback)
                log.warning("round %d: %s: %s%s", outcome.number, report.status, report.reason,
                            f"\n{report.traceback}" if new and report.traceback else "",
                            extra={"round": outcome.number, "client": report.client, "status": report.status,
                                   "attempt": outcome.attempt})  # fmt: skip
        return outcome

    def _despair_of(self, failures: Sequence[tuple[str, str]]) -> None:
        """Take (reason, traceback) of a whole cohort, or of one dispatched task; no traceback is no failure.

        Raises:
            ClientFailed: everybody has failed for a while.
        """
        if not failures or not all(trace for _, trace in failures):
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += len(failures)
        if self._failed_in_a_row >= min(HOPELESS, len(self.clients)):
            reason, trace = failures[0]
            raise ClientFailed(f"the last {self._failed_in_a_row} clients all failed. {reason}\n{trace}")

    def _tasks(
        self, clients: Sequence[str], number: int, attempt: int, sent: Payload, kind: TaskKind = "train",
        told: Config | None = None,
    ) -> list[Task]:  # fmt: skip
        """Make a task for each client; all of them begin from ``sent``, and are ``told`` more than their settings."""
        tasks, tell = [], self._given.client_config
        for client in clients:
            self._last_task += 1
            own = tell(number, client) if tell and kind in ("train", "submit") else {}
            config = {**own, **(told or {})}
            tasks.append(Task(self._last_task, client, number, attempt, kind, config))
        return tasks

    def _window(self) -> Window:
        """Return where a round's updates wait for their turn."""
        return InMemory(WINDOW_BYTES)

    def _opened(
        self, algorithm: Algorithm, version: Version, cohort: Sequence[str], *, attempt: int, goal: int | None,
        fold: Folding | None, release: Callable[[int], None],
    ) -> tuple[list[Task], Broadcast, Intake]:  # fmt: skip
        """Return a round's tasks, what is sent with them, and what takes the answers in."""
        number, cast = version.number + 1, self._broadcast(algorithm, version)
        sent = cast.received
        told = {} if version.epoch is None else {EPOCH: version.epoch.number}
        tasks = self._tasks(cohort, number, attempt, cast.travels, told={**told, **with_steps(version.steps)})
        intake = Intake(
            tasks, sent, uplink=algorithm.uplink, expected=self._expected, guard=self._guard, goal=goal,
            release=release, window=self._window(),
            fold=self._folding(algorithm, version, sent, len(tasks), attempt) if fold is None else fold,
            decoder=self._decoder(sent, version.heard), bytes_each=cast.travels.num_bytes,
            opened=partial(opened, self.layout),
        )  # fmt: skip
        return tasks, cast, intake

    def _broadcast(self, algorithm: Algorithm, version: Version) -> Broadcast:
        """Return what is sent to those who train on a version: made once, however many of them are asked one by one."""
        kept = self._cast
        if kept is not None and kept[0] is version.state and kept[1] == version.number:
            return kept[2]
        sent = Payload(algorithm.broadcast(version.state), version.buffers, version.integers)
        downlink = self._trainer.work.downlink
        if downlink is None:
            cast = Broadcast.plain(packed(self.layout, sent))
        else:
            cast = downlink.broadcast(self.seed, version.number + 1, sent, version.told)
        if cast.travels is sent:
            return cast
        self._cast = (version.state, version.number, cast)
        return cast

    def _with_told(self, outcome: Outcome, cast: Broadcast) -> Outcome:
        downlink = self._trainer.work.downlink
        return replace(outcome, told=cast.received.vectors) if downlink and downlink.difference else outcome

    def _decoder(self, sent: Payload, heard: Heard) -> Decoder | None:
        uplink = self._trainer.work.uplink
        if uplink is None:
            return None
        return Decoder(uplink, self._given.lengths, self.layout.dtype, opened(self.layout, sent), heard)

    def _arrived(self, flight: Flight, answer: Answer) -> Arrived:
        """Return an answer that belongs to no round yet, decoded and checked."""
        update, trained = answer.update, flight.task.kind == "train"
        decoder = self._decoder(flight.sent, {}) if trained else None
        num_bytes = update.payload.num_bytes if decoder is None else decoder.num_bytes(update)
        try:
            decoded = update if decoder is None else decoder.decode(update).update
        except WireError as error:
            what = f"client {flight.task.client!r} sent what cannot be decoded: {error}"
            return Arrived(flight, answer, Refusal(Reason.MALFORMED, what), num_bytes)
        expected = self._expected if trained else self._shown
        refusal = self._guard.check(decoded, flight.task, expected, answered=False)
        if refusal is None:
            decoded = replace(decoded, payload=opened(self.layout, decoded.payload))
            flight = replace(flight, sent=opened(self.layout, flight.sent))
        return Arrived(flight, replace(answer, update=decoded), refusal, num_bytes)

    def _folding(self, algorithm: Algorithm, version: Version, sent: Payload, num_tasks: int, attempt: int) -> Folding:
        given, number = self._given, version.number + 1
        if given.privacy is not None or given.rule is not None:
            sent = opened(self.layout, sent)
        if given.privacy is not None:
            return Noised.begin(
                given.privacy, algorithm.uplink, given.lengths, sent, version.clip_norm,
                self.plan.cohort_size(len(self.clients)), noise_key(self.seed, number, attempt),
            )  # fmt: skip
        if given.rule is not None:
            return Gathered.begin(
                given.rule, algorithm.uplink, given.lengths, sent, version.last, num_tasks, self.seed, number, attempt
            )
        return Fold(algorithm.uplink)

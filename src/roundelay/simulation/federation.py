"""The simulated federation: clients that live in this process's memory, over a network that is a model.

A task's moment of arrival is modelled when it is dispatched. When that moment comes, the loop blocks, in real time, on
the real result. So who belongs to a round depends on modelled time only.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from roundelay import seeds
from roundelay.aggregators import Rule, root_of
from roundelay.algorithms.protocol import Algorithm, Personalised, num_groups
from roundelay.client.launch import ScriptLearner
from roundelay.errors import ClientFailed, ConfigError
from roundelay.federation import Arrived, Flight, Plan, Version
from roundelay.fold import Fold, Folding
from roundelay.gather import Gathered
from roundelay.guard import Expected, Guard
from roundelay.intake import ClientReport, Intake, Outcome
from roundelay.messages import Config, Lost, Memory, Payload, Task, TaskKind
from roundelay.metrics import ClientTable, higher_is_better, weighted_means
from roundelay.privacy import CentralDP, Noised, noise_key
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.loop import NS, Order, VirtualLoop
from roundelay.simulation.memory import ClientMemory
from roundelay.trainer import Evaluated, Trainer

log = logging.getLogger(__name__)

HOPELESS = 3
"""When whole cohorts fail, and so many clients in a row, the code is at fault: going on would only look like work."""

Duration = Callable[[str, Task], float]
"""``duration(client, task)`` gives the simulated seconds from a task's dispatch to its answer's arrival."""

ClientConfig = Callable[[int, str], Config]
"""``client_config(round, client)`` gives settings that override the learner's for one task."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished round as the federation saw it; ``virtual_s`` is the simulated time at its end.

    ``reports`` tells of every client of every attempt, and of those that evaluated; ``flights`` are under way, each
    with its nanosecond of arrival.
    """

    version: Version
    outcome: Outcome
    reports: Sequence[ClientReport]
    flights: Sequence[tuple[Flight, int]]
    metrics: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    seconds: float
    virtual_s: float


class SimulatedFederation:
    def __init__(
        self,
        *,
        plan: Plan,
        clients: Sequence[str],
        trainer: Trainer,
        executor: Executor,
        loop: VirtualLoop,
        guard: Guard,
        lengths: Mapping[str, int],
        memory: ClientMemory,
        restored: Version | None,
        flights: Sequence[tuple[Flight, int]],
        history: Sequence[Mapping[str, float]],
        on_round: Callable[[Finished], Mapping[str, float]],
        on_record: Callable[[str, Mapping[str, object]], None],
        duration: Duration | None = None,
        client_config: ClientConfig | None = None,
        rule: Rule | None = None,
        privacy: CentralDP | None = None,
    ) -> None:
        """``lengths`` are those of the uplink vectors; ``flights`` were under way when the restored version was kept,
        with their nanoseconds of arrival; ``on_round`` records a finished round and returns its row of metrics for
        ``history``; without a ``rule``, updates are averaged as they come.
        """
        self.plan, self.clients, self.history, self.seed = plan, clients, list(history), trainer.work.seed
        self._trainer, self._executor, self._loop, self._guard = trainer, executor, loop, guard
        self.layout = trainer.layout
        self._expected = Expected.of(trainer.layout, lengths, num_groups(trainer.work.algorithm))
        self._lengths, self._rule, self._privacy = lengths, rule, privacy
        self._root = root_of(rule)
        self._drawn = clients if self._root is None else [client for client in clients if client != self._root]
        self._memory, self._restored, self._restored_flights = memory, restored, flights
        self._on_round, self._on_record = on_round, on_record
        self._duration, self._client_config = duration, client_config
        self._next_task, self._failed_in_a_row, self._bytes_down, self._bytes_up = 0, 0, 0, 0
        self._shown: set[str] = set()  # tracebacks that were logged in full
        self._initial = Version(0, {"params": trainer.bound.params().clone()}, trainer.bound.buffers().clone(),
                                trainer.bound.integers().clone())  # fmt: skip
        self._flights: dict[int, tuple[Flight, int]] = {}  # by task id, with the nanosecond of arrival
        self._landed: deque[int] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_arrival: int | None = None
        self._reports: list[ClientReport] = []  # of the round that is not finished
        self._started = time.perf_counter()

    def restore(self) -> Version | None:
        if self._restored_flights:
            for flight, due_ns in self._restored_flights:
                self._next_task = max(self._next_task, flight.task.id)
                if due_ns <= self._loop.now_ns:
                    self._landed.append(flight.task.id)
            self._launch(self._restored_flights)
        return self._restored

    def begin(self, algorithm: Algorithm) -> Version:
        first = self._initial
        return Version(0, algorithm.init(first.state["params"], len(self.clients)), first.buffers, first.integers)

    def sample(self, number: int, attempt: int, count: int, among: Sequence[str] | None = None) -> tuple[str, ...]:
        if self._privacy is not None:  # a draw of its own for every client, as the accountant reckons
            rate = count / len(self.clients)
            keyed = partial(seeds.uniform, self.seed, number, attempt)
            return tuple(client for client in self.clients if keyed(client, "cohort") < rate)
        draw = seeds.rng(self.seed, number, attempt, "", "cohort")
        pool = self._drawn if among is None else among
        if self._root is not None:  # beside those drawn, and maybe one of the ``count`` that were there to draw from
            count = min(count, len(pool))
        drawn = [pool[i] for i in draw.sample(range(len(pool)), count)]
        return tuple(sorted(drawn if self._root is None else [*drawn, self._root]))

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
        number = version.number + 1
        tasks = [self._task(client, number, attempt) for client in cohort]
        sent = Payload(algorithm.broadcast(version.state), version.buffers, version.integers)
        intake = Intake(
            tasks, sent, uplink=algorithm.uplink, expected=self._expected, guard=self._guard, goal=goal,
            release=self._executor.release,
            fold=self._folding(algorithm, version, sent, len(tasks), attempt) if fold is None else fold,
        )  # fmt: skip
        closed = self._loop.create_future()
        if intake.closed:  # nobody was drawn
            closed.set_result(None)

        def arrive(together: Sequence[Task]) -> None:
            for task in together:
                if intake.closed:
                    break
                result = self._executor.result(task.id)
                assert not isinstance(result, Evaluated)
                intake.arrive(result)
            if intake.closed and not closed.done():
                closed.set_result(None)

        def expire() -> None:
            if not closed.done():
                log.info("round %d closed at its deadline of %g s", number, deadline_s)
                closed.set_result(None)

        due: dict[int, list[Task]] = {}  # what arrives at the same nanosecond arrives in the order of client ids,
        if goal is not None:  # unless the round closes before all are there: then a draw decides who is in time
            key = partial(seeds.key, self.seed, number, attempt)
            tasks.sort(key=lambda task: key(task.client, "arrival"))
        for task in tasks:
            due.setdefault(self._loop.now_ns + self._duration_ns(task), []).append(task)
        in_order = sorted(due.items())
        self._executor.submit(
            [task for _, together in in_order for task in together], sent,
            {client: memory for client in cohort if (memory := self._memory.of(client))},
        )  # fmt: skip
        events = [self._loop.at(ns, arrive, together) for ns, together in in_order]
        if deadline_s is not None:  # in whole nanoseconds like the arrivals, which asyncio.timeout is not
            events.append(self._loop.at(self._loop.now_ns + round(deadline_s * NS), expire, order=Order.TIMER))
        try:
            await closed
        finally:
            for event in events:
                event.cancel()
            self._executor.cancel(intake.open_tasks)
        outcome = self.account(intake.close())
        self._despair_of([(report.reason, report.traceback) for report in outcome.reports])
        return outcome

    @property
    def flying(self) -> Sequence[Flight]:
        return [flight for flight, _ in self._flights.values()]

    @property
    def arrived(self) -> bool:
        return bool(self._landed)

    def dispatch(
        self, algorithm: Algorithm, version: Version, clients: Sequence[str], attempt: int, kind: TaskKind = "train"
    ) -> None:
        sent = Payload(algorithm.broadcast(version.state), version.buffers, version.integers)
        tasks = [self._task(client, version.number + 1, attempt, kind) for client in clients]
        self._launch([(Flight(task, sent, version.number), self._loop.now_ns + self._duration_ns(task))
                      for task in tasks])  # fmt: skip

    async def arrival(self) -> Arrived:
        if not self._landed:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._last_arrival is not None:
            self._executor.release(self._last_arrival)
        task_id = self._landed.popleft()
        flight, _ = self._flights.pop(task_id)
        self._last_arrival = task_id
        answer = self._executor.result(task_id)
        assert not isinstance(answer, Evaluated)
        refusal = None
        if isinstance(answer, Lost):
            self._despair_of([(answer.reason, answer.traceback)])
        else:
            self._failed_in_a_row = 0
            refusal = self._guard.check(answer.update, flight.task, self._expected, answered=False)
        return Arrived(flight, answer, refusal)

    def _launch(self, flights: Sequence[tuple[Flight, int]]) -> None:
        """Submit tasks, those of one broadcast together, and let each land at its nanosecond."""
        for flight, due_ns in flights:
            self._flights[flight.task.id] = (flight, due_ns)
        in_order = sorted(flights, key=lambda pair: (pair[1], pair[0].task.id))
        by_sent: dict[int, list[Flight]] = {}
        for flight, _ in in_order:
            by_sent.setdefault(id(flight.sent), []).append(flight)
        for together in by_sent.values():
            memories = {f.task.client: m for f in together if (m := self._memory.of(f.task.client))}
            self._executor.submit([f.task for f in together], together[0].sent, memories)
        for flight, due_ns in in_order:
            if flight.task.id not in self._landed:
                self._loop.at(due_ns, self._land, flight.task.id)

    def _land(self, task_id: int) -> None:
        self._landed.append(task_id)
        if self._waiter is not None and not self._waiter.done():  # woken when all of this nanosecond have landed
            self._loop.at(self._loop.now_ns, self._wake, order=Order.AFTER_ALL)

    def _wake(self) -> None:
        if self._landed and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _folding(self, algorithm: Algorithm, version: Version, sent: Payload, num_tasks: int, attempt: int) -> Folding:
        number = version.number + 1
        if self._privacy is not None:
            return Noised.begin(
                self._privacy, algorithm.uplink, self._lengths, sent, version.clip_norm,
                self.plan.cohort_size(len(self.clients)), noise_key(self.seed, number, attempt),
            )  # fmt: skip
        if self._rule is not None:
            return Gathered.begin(
                self._rule, algorithm.uplink, self._lengths, sent, version.last, num_tasks, self.seed, number, attempt
            )
        return Fold(algorithm.uplink)

    def commit(self, outcome: Outcome) -> None:
        self._memory.commit(outcome.memories)

    async def evaluate(self, version: Version) -> dict[str, float]:
        return self._trainer.evaluate_held_out(version.vectors, version.number).means()

    async def evaluate_clients(self, version: Version, clients: Sequence[str]) -> dict[str, float]:
        algorithm = self._trainer.work.algorithm
        vectors: Mapping[str, Tensor] = {"params": version.state["params"]}
        if isinstance(algorithm, Personalised):
            vectors = algorithm.broadcast(version.state)
        came = await self.measure(Payload(vectors, version.buffers, version.integers), version.number, clients)
        self._reports.extend(came)
        table = ClientTable([r.client for r in came], [r.num_examples for r in came], [r.metrics for r in came])
        metrics = {}
        for name in table.names():
            metrics[f"client_{name}"] = table.weighted_mean(name)
            metrics[f"client_{name}_variance"] = table.variance(name)
            metrics[f"client_{name}_worst_decile"] = table.worst_decile(name, higher_is_better(name))
        return metrics

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        tasks = [self._task(client, number, 0, "evaluate") for client in clients]
        memories: dict[str, Memory] = {}
        work = self._trainer.work
        own_state = isinstance(work.algorithm, Personalised) or isinstance(work.learner, ScriptLearner)
        if own_state or self._trainer.layout.local_names:
            memories = {client: memory for client in clients if (memory := self._memory.of(client))}
        self._executor.submit(tasks, model, memories)
        came: list[ClientReport] = []
        for task in tasks:
            result = self._executor.result(task.id)
            if isinstance(result, Evaluated):
                sums = result.sums
                came.append(ClientReport(task.client, "evaluated", "", float(sums.count), sums.means()))
            elif isinstance(result, Lost):
                log.warning("client %s could not evaluate: %s\n%s", task.client, result.reason, result.traceback)
            self._executor.release(task.id)
        return came

    def record(self, name: str, content: Mapping[str, object]) -> None:
        self._on_record(name, content)

    async def finish_round(self, version: Version, outcome: Outcome, metrics: Mapping[str, float]) -> None:
        admitted = ((r.num_examples, r.metrics) for r in outcome.reports if r.status == "admitted")
        table = {**weighted_means(admitted), **metrics}
        finished = Finished(
            version, outcome, tuple(self._reports), tuple(self._flights.values()), table, self._bytes_down,
            self._bytes_up, time.perf_counter() - self._started, self._loop.time(),
        )  # fmt: skip
        self._reports = []
        self.history.append(self._on_round(finished))
        self._bytes_down, self._bytes_up, self._started = 0, 0, time.perf_counter()

    def account(self, outcome: Outcome) -> Outcome:
        if self._privacy is not None:  # epsilon speaks of the models: nothing else that clients say is kept
            kept = tuple(replace(report, num_examples=0.0, metrics={}) for report in outcome.reports)
            outcome = replace(outcome, reports=kept)
        if outcome.attempt:
            outcome = replace(outcome, reports=tuple(replace(r, attempt=outcome.attempt) for r in outcome.reports))
        self._reports.extend(outcome.reports)
        self._bytes_down += outcome.bytes_down
        self._bytes_up += outcome.bytes_up
        for report in outcome.reports:
            if report.status in ("refused", "lost"):
                new = report.traceback not in self._shown  # many clients fail alike: one traceback tells
                self._shown.add(report.traceback)
                log.warning("round %d: %s: %s%s", outcome.number, report.status, report.reason,
                            f"\n{report.traceback}" if new and report.traceback else "")  # fmt: skip
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

    def _task(self, client: str, number: int, attempt: int, kind: TaskKind = "train") -> Task:
        self._next_task += 1
        config = self._client_config(number, client) if self._client_config and kind != "evaluate" else {}
        return Task(self._next_task, client, number, attempt, kind, config)

    def _duration_ns(self, task: Task) -> int:
        if self._duration is None:
            return 0
        seconds = float(self._duration(task.client, task))
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"duration of client {task.client!r} is {seconds!r}; expected seconds, at least 0")
        return round(seconds * NS)

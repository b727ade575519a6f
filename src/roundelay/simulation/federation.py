"""The simulated federation: clients that live in this process's memory, over a network that is a model.

A task's moment of arrival is modelled when it is dispatched. When that moment comes, the loop blocks, in real time, on
the real result. So who belongs to a round depends on modelled time only.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm, Personalised
from roundelay.bookkeeping import Bookkeeping, Given
from roundelay.client.launch import ScriptLearner
from roundelay.errors import ConfigError
from roundelay.federation import Arrived, Flight, Version
from roundelay.fold import Folding
from roundelay.intake import ClientReport, Outcome
from roundelay.messages import Lost, Memory, Payload, Task, TaskKind
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.loop import NS, Order, VirtualLoop
from roundelay.simulation.memory import ClientMemory
from roundelay.trainer import Evaluated

log = logging.getLogger(__name__)

Duration = Callable[[str, Task], float]
"""``duration(client, task)`` gives the simulated seconds from a task's dispatch to its answer's arrival."""


class SimulatedFederation(Bookkeeping):
    def __init__(
        self,
        given: Given,
        *,
        executor: Executor,
        loop: VirtualLoop,
        memory: ClientMemory,
        flights: Sequence[tuple[Flight, int]],
        duration: Duration | None = None,
    ) -> None:
        """``flights`` were under way when the restored version was kept, with their nanoseconds of arrival."""
        super().__init__(given)
        self._executor, self._loop, self._memory, self._duration = executor, loop, memory, duration
        self._restored_flights = flights
        self._flights: dict[int, tuple[Flight, int]] = {}  # by task id, with the nanosecond of arrival
        self._landed: deque[int] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_arrival: int | None = None

    def _now_s(self) -> float:
        return self._loop.time()

    def _under_way(self) -> Sequence[tuple[Flight, int]]:
        return tuple(self._flights.values())

    async def gather(self) -> None:
        """Simulated clients are there."""

    def restore(self) -> Version | None:
        if self._restored_flights:
            for flight, due_ns in self._restored_flights:
                self._last_task = max(self._last_task, flight.task.id)
                if due_ns <= self._loop.now_ns:
                    self._landed.append(flight.task.id)
            self._launch(self._restored_flights)
        return self._given.restored

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
        tasks, cast, intake = self._opened(
            algorithm, version, cohort, attempt=attempt, goal=goal, fold=fold, release=self._executor.release
        )
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
            [task for _, together in in_order for task in together], cast.received,
            self._memories(cohort),
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
        outcome = self.account(self._with_told(intake.close(), cast))
        self._despair_of([(report.reason, report.traceback) for report in outcome.reports])
        return outcome

    async def stalled(self, number: int, why: str, quorum: int) -> bool:
        """A simulated client that is lost does not come back: the round is over."""
        return False

    @property
    def flying(self) -> Sequence[Flight]:
        return [flight for flight, _ in self._flights.values()]

    @property
    def arrived(self) -> bool:
        return bool(self._landed)

    def dispatch(
        self, algorithm: Algorithm, version: Version, clients: Sequence[str], attempt: int, kind: TaskKind = "train"
    ) -> None:
        cast = self._broadcast(algorithm, version)
        tasks, num_bytes = self._tasks(clients, version.number + 1, attempt, cast.travels, kind), cast.travels.num_bytes
        self._launch([(Flight(task, cast.received, version.number, num_bytes),
                       self._loop.now_ns + self._duration_ns(task)) for task in tasks])  # fmt: skip

    async def arrival(self) -> Arrived:
        if not self._landed:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._arrival_of(self._landed.popleft())

    def _arrival_of(self, task_id: int) -> Arrived:
        if self._last_arrival is not None:
            self._executor.release(self._last_arrival)
        flight, _ = self._flights.pop(task_id)
        self._last_arrival = task_id
        answer = self._executor.result(task_id)
        assert not isinstance(answer, Evaluated)
        if isinstance(answer, Lost):
            self._despair_of([(answer.reason, answer.traceback)])
            return Arrived(flight, answer, None)
        self._failed_in_a_row = 0
        return self._arrived(flight, answer)

    def _launch(self, flights: Sequence[tuple[Flight, int]]) -> None:
        """Submit tasks, those of one broadcast together, and let each land at its nanosecond."""
        for flight, due_ns in flights:
            self._flights[flight.task.id] = (flight, due_ns)
        in_order = sorted(flights, key=lambda pair: (pair[1], pair[0].task.id))
        by_sent: dict[int, list[Flight]] = {}
        for flight, _ in in_order:
            by_sent.setdefault(id(flight.sent), []).append(flight)
        for together in by_sent.values():
            tasks = [flight.task for flight in together]
            self._executor.submit(tasks, together[0].sent, self._memories([task.client for task in tasks]))
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

    def commit(self, outcome: Outcome) -> None:
        self._memory.commit(outcome.memories)

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        tasks = self._tasks(clients, number, 0, model, "evaluate")
        memories: dict[str, Memory] = {}
        work = self._trainer.work
        own_state = isinstance(work.algorithm, Personalised) or isinstance(work.learner, ScriptLearner)
        if own_state or self._trainer.layout.local_names:
            memories = self._memories(clients)
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

    def _memories(self, clients: Sequence[str]) -> dict[str, Memory]:
        return {client: memory for client in clients if (memory := self._memory.of(client))}

    def _duration_ns(self, task: Task) -> int:
        if self._duration is None:
            return 0
        seconds = float(self._duration(task.client, task))
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"duration of client {task.client!r} is {seconds!r}; expected seconds, at least 0")
        return round(seconds * NS)

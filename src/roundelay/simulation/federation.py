"""The simulated federation: clients that live in this process's memory, over a network that is a model.

When things happen, the delivery models. When a client's moment has come, the loop blocks, in real time, on the real
result. So who belongs to a round depends on modelled time only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm, Personalised
from roundelay.bookkeeping import Bookkeeping, Given, Traced
from roundelay.client.launch import ScriptLearner
from roundelay.errors import ConfigError, VirtualDeadlock
from roundelay.federation import Arrived, Flight, Version
from roundelay.fold import Folding
from roundelay.intake import ClientReport, Outcome
from roundelay.layout.travel import packed
from roundelay.load import Load
from roundelay.messages import Lost, Memory, Payload, Task, TaskKind
from roundelay.simulation.delivery import Delivery, Sent
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.kept import Kept
from roundelay.simulation.loads import LoadModel, When, idle
from roundelay.simulation.loop import NS, Order, VirtualLoop
from roundelay.simulation.memory import ClientMemory
from roundelay.trainer import Answer, Evaluated

log = logging.getLogger(__name__)

MAX_RESTS = 100_000
"""After so many in a row, nothing that is modelled will ever end them."""


class SimulatedFederation(Bookkeeping):
    def __init__(
        self,
        given: Given,
        *,
        executor: Executor,
        loop: VirtualLoop,
        memory: ClientMemory,
        flights: Sequence[tuple[Flight, int]],
        delivery: Delivery,
        load: LoadModel = idle,
        traced: Mapping[str, Any] | None = None,
    ) -> None:
        """``flights`` were under way when the restored version was kept, with their nanoseconds of arrival; ``traced``
        is what the delivery then kept of them.
        """
        super().__init__(given)
        self._executor, self._loop, self._memory, self._delivery = executor, loop, memory, delivery
        self._restored_flights, self._restored = flights, traced
        self._load, self._num_rests = load, 0
        self._flights: dict[int, Flight] = {}  # by task id
        self._landed: deque[int] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_arrival: int | None = None
        self._kept, self._done = Kept(), set[int]()  # what is on its way, and what the executor is done with
        delivery.attend(self)

    def _now_s(self) -> float:
        return self._loop.time()

    def _under_way(self) -> Sequence[tuple[Flight, int]]:
        return tuple((flight, self._delivery.due_ns(task_id)) for task_id, flight in self._flights.items())

    def _traced(self, number: int) -> Traced | None:
        traced = self._delivery.traced(number)
        if traced is None:
            return None
        mine = {"landed": list(self._landed), "lost": self._kept.lost(), "last_task": self._last_task}
        return replace(traced, state={**traced.state, **mine, "trace_hash": traced.trace_hash})

    async def gather(self) -> None:
        """Simulated clients are there."""

    def restore(self) -> Version | None:
        if self._restored_flights or self._restored is not None:
            kept = self._restored or {}
            self._last_task = kept.get("last_task", 0)
            for flight, _ in self._restored_flights:
                self._last_task = max(self._last_task, flight.task.id)
                self._flights[flight.task.id] = flight
            self._landed.extend(kept.get("landed", ()))
            for task_id, reason in kept.get("lost", ()):
                self.lost(self._flights[task_id].task, reason)
            travelling = [(f.task, due_ns) for f, due_ns in self._restored_flights if f.task.id not in self._landed]
            waiting = [self._flights[task_id].task for task_id in self._landed if task_id not in self._done]
            self._submit([*waiting, *self._delivery.restore(travelling, self._restored, self._land)])
        return self._reached()

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
        number, self._num_rests = version.number + 1, 0
        tasks, cast, intake = self._opened(
            algorithm, version, cohort, attempt=attempt, goal=goal, fold=fold, release=self._release
        )
        closed = self._loop.create_future()
        if intake.closed:  # nobody was drawn
            closed.set_result(None)

        def arrive(together: Sequence[int]) -> None:
            for task_id in together:
                if intake.closed:
                    break
                intake.arrive(self._answer(task_id))
            if intake.closed and not closed.done():
                closed.set_result(None)

        def expire() -> None:
            if not closed.done():
                log.info("round %d closed at its deadline of %g s", number, deadline_s)
                closed.set_result(None)

        if goal is not None:  # what arrives at the same nanosecond arrives in the order of client ids, unless the round
            key = partial(seeds.key, self.seed, number, attempt)  # closes before all are there: then by a draw
            tasks.sort(key=lambda task: key(task.client, "arrival"))
        in_order = self._delivery.dispatch(tasks, 8 * cast.travels.num_bytes, arrive)
        needed = goal is None and deadline_s is None
        self._executor.submit(in_order, cast.received, self._memories(cohort), all_needed=needed)
        timer = None
        if deadline_s is not None:  # in whole nanoseconds like the arrivals, which asyncio.timeout is not
            timer = self._loop.at(self._loop.now_ns + round(deadline_s * NS), expire, order=Order.TIMER)
        try:
            await closed
        finally:
            if timer is not None:
                timer.cancel()
            self._delivery.end([task.id for task in tasks])
            self._kept.drop([task.id for task in tasks])
            self._executor.cancel([task_id for task_id in intake.open_tasks if task_id not in self._done])
            self._done.difference_update(task.id for task in tasks)
        outcome = self.account(self._with_told(intake.close(), cast))
        self._despair_of([(report.reason, report.traceback) for report in outcome.reports])
        return outcome

    async def loads(self, number: int, attempt: int, clients: Sequence[str], within_s: float) -> Mapping[str, Load]:
        """A simulated client answers at once, or not at all; what it says is not counted among what travels.

        Raises:
            ConfigError: a model of loads gives something else.
        """
        when, said = When(self.seed, number, attempt, self._now_s()), dict[str, Load]()
        for client in clients:
            load = self._load(client, when)
            if isinstance(load, Load):
                said[client] = load
            elif load is not None:
                raise ConfigError(f"simulation.load of client {client!r} is {load!r}; expected a Load, or None where "
                                  "the client does not answer")  # fmt: skip
        if len(said) < len(clients):
            await asyncio.sleep(within_s)
        return said

    async def rest(self, seconds: float, why: str) -> None:
        """Raises:
        VirtualDeadlock: clients are busy for ever, as far as can be told.
        """
        self._num_rests += 1
        if self._num_rests > MAX_RESTS:
            raise VirtualDeadlock(f"{why}; it is now {self._now_s():.6g} s, after {MAX_RESTS} waits: does the load "
                                  "that simulation.load models ever fall?")  # fmt: skip
        await asyncio.sleep(seconds)

    async def stalled(self, number: int, why: str, quorum: int) -> bool:
        """A simulated client that is lost does not come back: the round is over."""
        return False

    @property
    def flying(self) -> Sequence[Flight]:
        return list(self._flights.values())

    @property
    def arrived(self) -> bool:
        return bool(self._landed)

    def dispatch(
        self, algorithm: Algorithm, version: Version, clients: Sequence[str], attempt: int, kind: TaskKind = "train"
    ) -> None:
        cast = self._broadcast(algorithm, version)
        tasks, num_bytes = self._tasks(clients, version.number + 1, attempt, cast.travels, kind), cast.travels.num_bytes
        self._flights |= {task.id: Flight(task, cast.received, version.number, num_bytes) for task in tasks}
        self._submit(self._delivery.dispatch(tasks, 8 * num_bytes, self._land))

    async def arrival(self) -> Arrived:
        if not self._landed:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._arrival_of(self._landed.popleft())

    def _arrival_of(self, task_id: int) -> Arrived:
        if self._last_arrival is not None:
            self._release(self._last_arrival)
        flight = self._flights.pop(task_id)
        self._last_arrival = task_id
        answer = self._answer(task_id)
        self._delivery.end([task_id])
        if isinstance(answer, Lost):
            self._despair_of([(answer.reason, answer.traceback)])
            return Arrived(flight, answer, None)
        self._failed_in_a_row = 0
        return self._arrived(flight, answer)

    def _submit(self, tasks: Sequence[Task]) -> None:
        """Submit tasks under way, those of one broadcast together."""
        by_sent: dict[int, list[Task]] = {}
        for task in tasks:
            by_sent.setdefault(id(self._flights[task.id].sent), []).append(task)
        for together in by_sent.values():
            sent = self._flights[together[0].id].sent
            self._executor.submit(together, sent, self._memories([task.client for task in together]))

    def _land(self, together: Sequence[int]) -> None:
        self._landed.extend(together)
        if self._waiter is not None and not self._waiter.done():  # woken when all of this nanosecond have landed
            self._loop.at(self._loop.now_ns, self._wake, order=Order.AFTER_ALL)

    def _wake(self) -> None:
        if self._landed and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def commit(self, outcome: Outcome) -> None:
        self._memory.commit(outcome.memories)
        self._delivery.counted([report.client for report in outcome.reports if report.status == "admitted"])

    def sample(self, number: int, attempt: int, count: int, among: Sequence[str] | None = None) -> tuple[str, ...]:
        there = self._delivery.there(number, attempt, count, self._drawn if among is None else among)
        chosen = self._delivery.choose(number, attempt, count, there)
        if chosen is None:
            return super().sample(number, attempt, min(count, len(there)), there)
        return tuple(sorted(chosen if self._root is None else {*chosen, self._root}))

    async def haul(self, edge: str, payload: Payload, *, up: bool) -> None:
        await self._delivery.haul(edge, 8 * payload.num_bytes, up)

    # ---- what the delivery asks of its clients ----

    def computed(self, task: Task) -> Sent | None:
        result = self._executor.result(task.id)
        assert not isinstance(result, Evaluated)
        if isinstance(result, Lost):
            self._kept.put(result)
            return None
        answer, sent = self._delivery.carried(result)
        self._kept.put(answer)
        self._executor.release(task.id)
        self._done.add(task.id)
        return sent

    def lost(self, task: Task, reason: str) -> None:
        if self._kept.take(task.id) is None:
            self._executor.cancel([task.id])
        self._done.add(task.id)
        self._kept.put(Lost(task, reason))

    def _release(self, task_id: int) -> None:
        if task_id in self._done:
            self._done.remove(task_id)
        else:
            self._executor.release(task_id)

    def _answer(self, task_id: int) -> Answer | Lost:
        """Return what has landed: an answer that was on its way, or one that nobody has asked for yet."""
        kept = self._kept.take(task_id)
        if kept is not None:
            return kept
        result = self._executor.result(task_id)
        assert not isinstance(result, Evaluated)
        return result if isinstance(result, Lost) else self._delivery.carried(result)[0]

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        model = packed(self.layout, model)
        tasks = self._tasks(clients, number, 0, model, "evaluate")
        memories: dict[str, Memory] = {}
        work = self._trainer.work
        own_state = isinstance(work.algorithm, Personalised) or isinstance(work.learner, ScriptLearner)
        if own_state or self._trainer.layout.local_names:
            memories = self._memories(clients)
        self._executor.submit(tasks, model, memories, all_needed=True)
        came: list[ClientReport] = []
        for task in tasks:
            result = self._executor.result(task.id)
            if isinstance(result, Evaluated):
                came.append(ClientReport(task.client, "evaluated", "", result.num_examples, result.metrics,
                                         rows=result.rows))  # fmt: skip
            elif isinstance(result, Lost):
                log.warning("client %s could not evaluate: %s\n%s", task.client, result.reason, result.traceback)
            self._executor.release(task.id)
        return came

    def _memories(self, clients: Sequence[str]) -> dict[str, Memory]:
        return {client: memory for client in clients if (memory := self._memory.of(client))}

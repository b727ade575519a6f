"""The federation of real devices: tasks hang on the board until somebody does them; what comes in is in the journal.

Who belongs to a round is decided here and noted in the journal before anything follows from it. After a crash the same
workflow runs again from the last checkpoint: what the journal knows is not asked a second time, and a round that was
closed is folded from the updates that were its members.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

import torch

from roundelay.algorithms.protocol import Algorithm
from roundelay.bookkeeping import Bookkeeping, Given
from roundelay.deployment.board import Board, Phase
from roundelay.deployment.journal.records import Fate, Opening, RoundState, TaskState
from roundelay.deployment.running.answers import CLAIM, Answers, Shelf, limits_of
from roundelay.deployment.running.asking import Asking
from roundelay.deployment.running.calls import Calls
from roundelay.deployment.running.told import ARRIVAL, FINISHED, LOADS, Told, read_loads, written
from roundelay.errors import MetricError, WireError
from roundelay.federation import Arrived, Flight, Version
from roundelay.fold import Folding
from roundelay.guard import Reason, Refusal
from roundelay.intake import ClientReport, Intake, Outcome
from roundelay.layout.travel import packed
from roundelay.load import Load
from roundelay.messages import Config, Lost, Payload, Task, TaskKind
from roundelay.trainer import Answer

log = logging.getLogger(__name__)

NO_MODEL = Payload({}, torch.empty(0), torch.empty(0, dtype=torch.int64))
"""What is sent with a task that asks for numbers of the device itself."""

TICK_S = 1.0
"""How often the time of a round with a deadline is noted: so much of it may a crash give back."""


class DeployedFederation(Bookkeeping):
    def __init__(
        self,
        given: Given,
        *,
        board: Board,
        calls: Calls,
        flights: Sequence[tuple[Flight, int]],
        wait_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """``flights`` were under way when the restored version was kept; ``wait_s`` is how long to wait for clients at
        the start; ``now_s`` is the time of the run, over all restarts.
        """
        super().__init__(given)
        self._run_s = now_s
        self._board, self._calls, self._journal, self._wait_s = board, calls, board.journal, wait_s
        self._answers, self._asking = (
            Answers(board.journal, limits_of(self._expected, given.trainer.work)),
            Asking(board),
        )
        self._restored_flights = flights
        self._last_task = self._asking.last_id
        self._attempt = 0  # the last one at the round that is trained
        self._flights: dict[int, Flight] = {}
        self._landed: deque[int] = deque()
        self._asked: list[tuple[int, int]] = []  # what was dispatched since a round was accounted for
        self._taken: list[Task] = []  # what was admitted of the arrivals since then
        self._told = Told(board.journal, given.restored.number if given.restored else 0)

    # ---- who is there -----------------------------------------------------------------------------------------------

    async def gather(self) -> None:
        self._calls.begin()
        self._asking.take_back("load")  # asked before a crash: what is answered now would be told as news of then
        if not self._asking.last_id:
            await self._calls.gathered(self.clients, self._wait_s)
        self._board.turn(Phase.RUNNING)

    async def loads(self, number: int, attempt: int, clients: Sequence[str], within_s: float) -> Mapping[str, Load]:
        """After a crash, what was told is told again; what was only asked is asked anew, since it may not be so any
        more.
        """
        if self._told.goes_on:
            return read_loads(self._told.again(LOADS))
        tasks = super()._tasks(clients, number, attempt, NO_MODEL, "load")
        self._asking.post(tasks, NO_MODEL)
        self._asking.lose_strangers(tasks)
        async with aclosing(self._calls.answers(tasks, self._calls.now_s() + within_s, None)) as answers:
            async for _ in answers:
                pass
        said = {task.client: load for task in tasks if (load := self._said_load(task)) is not None}
        self._asking.take_back("load")
        self._told.note(LOADS, written(said))
        return said

    def _said_load(self, task: Task) -> Load | None:
        """Return what a client has said of its load, as far as that may be believed; None: nothing."""
        if self._journal.update(task.id) is None:
            return None
        try:
            return Load.of(self._answers.read(task).metrics)
        except WireError as error:
            log.warning("client %s sent what is no load: %s", task.client, error, extra=_about(task))
            return None

    async def rest(self, seconds: float, why: str) -> None:
        if self._told.goes_on:  # what came next was told before a crash: this is over
            return
        self._board.turn(Phase.PAUSED, why)
        await self._calls.rest(seconds)
        self._board.turn(Phase.RUNNING)

    async def stalled(self, number: int, why: str, quorum: int) -> bool:
        """Pause until as many clients are there as a round needs, and somebody is back, or a while has passed."""
        if self._journal.rounds.last_attempt(number) == self._attempt:  # else it went on before a crash
            await self._calls.pause(f"round {number}: {why}", self.clients, quorum)
            self._board.turn(Phase.RUNNING)
        return True

    def _now_s(self) -> float:
        return self._run_s()

    def _under_way(self) -> Sequence[tuple[Flight, int]]:
        return [(flight, 0) for flight in self._flights.values()]

    def restore(self) -> Version | None:
        self._asking.post([flight.task for flight, _ in self._restored_flights])
        self._fly([flight for flight, _ in self._restored_flights])
        return self._reached()

    # ---- synchronous rounds -----------------------------------------------------------------------------------------

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
            algorithm, version, cohort, attempt=attempt, goal=goal, fold=fold, release=_is_on_disk
        )
        self._attempt, group = attempt, min(cohort, default="")  # cohorts side by side have no client in common
        opening = Opening(number, attempt, tuple(cohort), goal, deadline_s, group)
        known = self._journal.rounds.get(number, attempt, group)
        if known is not None and known.state is RoundState.CLOSED:
            self._fold_again(tasks, known.members, intake)
        else:
            elapsed_s = self._journal.rounds.open(opening).elapsed_s
            self._asking.post(tasks, cast.travels, group)
            self._asking.lose_strangers(tasks)
            await self._answered(tasks, intake, opening, elapsed_s)
            self._journal.rounds.close(number, attempt, intake.members, group)
            self._take_losses_in(tasks, intake)
        return self.account(intake.close())

    async def _answered(self, tasks: Sequence[Task], intake: Intake, opening: Opening, elapsed_s: float) -> None:
        """Take answers in until the round is closed."""
        began = self._calls.now_s() - elapsed_s
        deadline_s = opening.deadline_s
        until = None if deadline_s is None else began + deadline_s
        by_id = {task.id: task for task in tasks}
        async with aclosing(self._calls.answers(tasks, until, TICK_S if until else None)) as answers:
            async for task_id in answers:
                if task_id is not None:
                    self._take_in(by_id[task_id], intake)
                elif deadline_s is not None:
                    passed_s = min(self._calls.now_s() - began, deadline_s)
                    self._journal.rounds.tick(opening.number, opening.attempt, passed_s, opening.group)
                if intake.closed:
                    return
        if not intake.closed:
            log.info("round %d closed at its deadline of %g s", opening.number, deadline_s,
                     extra={"round": opening.number})  # fmt: skip

    def _fold_again(self, tasks: Sequence[Task], members: Sequence[int], intake: Intake) -> None:
        """Bring a round that was closed before a crash to the same end."""
        for task in tasks:
            update = self._journal.update(task.id)
            if task.id in members or (update is not None and update.fate is Fate.REFUSED):
                self._take_in(task, intake)
        self._take_losses_in(tasks, intake)

    def _take_losses_in(self, tasks: Sequence[Task], intake: Intake) -> None:
        """Whoever was lost while its round was being closed is lost, not late: so it will be read in the journal."""
        for task in tasks:
            lost = self._lost(task) if intake.report(task.id) is None else None
            if lost is not None:
                intake.arrive(lost)

    def _take_in(self, task: Task, intake: Intake) -> None:
        came = self._came(task)
        if isinstance(came, Refusal):
            intake.refuse(task.id, f"{came.reason.value}: {came.message}")
        else:
            intake.arrive(came)
        report = intake.report(task.id)
        if report is not None and report.status == "refused":
            self._journal.settle(task.id, Fate.REFUSED, report.reason)

    # ---- answers outside of rounds ----------------------------------------------------------------------------------

    @property
    def flying(self) -> Sequence[Flight]:
        return list(self._flights.values())

    @property
    def arrived(self) -> bool:
        """In real time no two answers come at one moment. What has landed by now is chance, and after a crash another
        one: a workflow that went by it would go another way.
        """
        return False

    def dispatch(
        self, algorithm: Algorithm, version: Version, clients: Sequence[str], attempt: int, kind: TaskKind = "train"
    ) -> None:
        number = version.number + 1
        cast = self._broadcast(algorithm, version)
        tasks = self._tasks(clients, number, attempt, cast.travels, kind)
        if kind == "train":
            self._asked.append((number, attempt))
            if self._journal.rounds.get(number, attempt) is None:
                self._journal.rounds.open(Opening(number, attempt, tuple(clients)))
        self._asking.post(tasks, cast.travels)
        num_bytes = cast.travels.num_bytes
        self._fly([Flight(task, cast.received, version.number, num_bytes) for task in tasks])

    async def arrival(self) -> Arrived:
        task_id = await self._next_arrival()
        flight = self._flights.pop(task_id)
        came = self._came(flight.task)
        if isinstance(came, Answer):
            arrived = self._arrived(flight, came)
        elif isinstance(came, Lost):
            arrived = Arrived(flight, came, None)
        else:
            arrived = Arrived(flight, Lost(flight.task, came.message), came)
        refusal = arrived.refusal
        if refusal is not None:
            self._journal.settle(task_id, Fate.REFUSED, f"{refusal.reason.value}: {refusal.message}")
        elif isinstance(came, Answer) and flight.task.kind == "train":
            self._taken.append(flight.task)
        return arrived

    def account(self, outcome: Outcome) -> Outcome:
        if self._asked or self._taken:  # a round that the workflow has closed itself
            members = [task.id for task in sorted(self._taken, key=lambda task: (task.client, task.id))]
            closing = (outcome.number, 0)
            if self._journal.rounds.get(*closing) is None:
                self._journal.rounds.open(Opening(*closing, ()))
            for drawn in dict.fromkeys([*self._asked, closing]):
                self._journal.rounds.close(*drawn, members if drawn == closing else [], under_way=True)
            self._asked, self._taken = [], []
        return super().account(outcome)

    def _fly(self, flights: Sequence[Flight]) -> None:
        self._flights |= {flight.task.id: flight for flight in flights}
        self._calls.expect([flight.task for flight in flights], self._landed.append, patient=True)

    async def _next_arrival(self) -> int:
        """Return whose answer the workflow hears of next."""
        if self._told.goes_on:
            task_id: int = self._told.again(ARRIVAL)
            if task_id not in self._landed:
                raise self._told.astray()
            self._landed.remove(task_id)
            return task_id
        await self._calls.until(lambda: bool(self._landed))
        task_id = self._landed.popleft()
        self._told.note(ARRIVAL, task_id)
        return task_id

    async def finish_round(self, version: Version, outcome: Outcome, metrics: Mapping[str, float]) -> None:
        if not self._told.goes_on:
            self._told.note(FINISHED, version.number)
        elif self._told.again(FINISHED) != version.number:
            raise self._told.astray()
        await super().finish_round(version, outcome, metrics)

    # ---- evaluation on clients' own data ----------------------------------------------------------------------------

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        model = packed(self.layout, model)
        tasks = self._tasks(clients, number, 0, model, "evaluate")
        self._asking.post(tasks, model)
        self._asking.lose_strangers(tasks)
        async for _ in self._calls.answers(tasks, None, None):
            pass
        return [report for task in tasks if (report := self._measured(task)) is not None]

    def _measured(self, task: Task) -> ClientReport | None:
        lost = self._lost(task)
        if lost is not None:
            log.warning("client %s could not evaluate: %s\n%s", task.client, lost.reason, lost.traceback,
                        extra=_about(task))  # fmt: skip
            return None
        try:
            answered = self._answers.read(task)
            rows = self._trainer.work.measures.checked(answered.rows) if answered.rows else {}
        except (WireError, MetricError) as error:
            log.warning("client %s sent what is no evaluation: %s", task.client, error, extra=_about(task))
            return None
        if not 0 <= answered.num_examples <= self._guard.max_num_examples:  # as NaN is not
            log.warning("client %s claims to have evaluated %r examples; expected up to %g: left out", task.client,
                        answered.num_examples, self._guard.max_num_examples, extra=_about(task))  # fmt: skip
            return None
        return ClientReport(task.client, "evaluated", "", answered.num_examples, answered.metrics,
                            rows={name: found.clone() for name, found in rows.items()})  # fmt: skip

    # ---- steps ------------------------------------------------------------------------------------------------------

    def commit(self, outcome: Outcome) -> None:
        self._asking.commit({client: int(memory[CLAIM]) for client, memory in outcome.memories.items()})

    def _window(self) -> Shelf:
        return Shelf(self._answers)

    def _tasks(
        self, clients: Sequence[str], number: int, attempt: int, sent: Payload, kind: TaskKind = "train",
        told: Config | None = None,
    ) -> list[Task]:  # fmt: skip
        """Return the tasks that the journal knows for just this, or new ones."""
        known = self._asking.again(clients, number, attempt, sent, kind)
        return super()._tasks(clients, number, attempt, sent, kind, told) if known is None else known

    def _came(self, task: Task) -> Answer | Lost | Refusal:
        """Return what a task that is settled came to."""
        lost = self._lost(task)
        if lost is not None:
            return lost
        try:
            return self._answers.update(task)
        except WireError as error:
            return Refusal(Reason.MALFORMED, f"client {task.client!r} sent what is no answer: {error}")

    def _lost(self, task: Task) -> Lost | None:
        kept = self._journal.tasks.get(task.id)
        if kept is None or kept.state is not TaskState.LOST:
            return None
        return Lost(task, kept.reason, kept.traceback)


def _about(task: Task) -> dict[str, object]:
    """Return what a structured log says beside a message about a task."""
    return {"client": task.client, "round": task.round, "task": task.id}


def _is_on_disk(_: int) -> None:
    """There is nothing to give back: an answer's tensors are pages of a file."""

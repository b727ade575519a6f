"""A run on real devices once more, simulated: whoever was in time there is in time here, and nobody else."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from roundelay.algorithms.protocol import Algorithm
from roundelay.bookkeeping import Given
from roundelay.course import ADMITTED, Course, End, ask_of
from roundelay.errors import ConfigError
from roundelay.federation import Arrived, Version
from roundelay.fold import Folding
from roundelay.intake import ClientReport, Outcome
from roundelay.load import Load
from roundelay.messages import Lost, Payload, Task
from roundelay.simulation.federation import SimulatedFederation
from roundelay.trainer import Evaluated


class ReplayedFederation(SimulatedFederation):
    """Nothing is modelled: how long things took is not asked again."""

    def __init__(self, given: Given, course: Course, **world: Any) -> None:  # Any: see SimulatedFederation
        super().__init__(given, **world)
        self._course, self._told, self._attempt = course, deque(course.told), 0
        self._loads = deque(course.loads)

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
        tasks, cast, intake = self._opened(
            algorithm, version, cohort, attempt=attempt, goal=goal, fold=fold, release=self._release
        )
        ends = {task.id: self._end(task) for task in tasks}
        self._attempt = attempt
        self._executor.submit(
            [task for task in tasks if ends[task.id] == ADMITTED], cast.received, self._memories(cohort)
        )
        for task in tasks:
            end = ends[task.id]
            if end == ADMITTED:
                result = self._executor.result(task.id)
                assert not isinstance(result, Evaluated)
                intake.arrive(result)
            elif end.status == "lost":
                intake.arrive(Lost(task, end.reason, end.traceback))
            elif end.status == "refused":
                intake.refuse(task.id, end.reason)
        return self.account(intake.close())

    async def loads(self, number: int, attempt: int, clients: Sequence[str], within_s: float) -> Mapping[str, Load]:
        """Who was busy there is busy here."""
        if not self._loads:
            raise _astray((number, attempt, "load"))
        return self._loads.popleft()

    async def rest(self, seconds: float, why: str) -> None:
        """What they waited for has come."""

    async def stalled(self, number: int, why: str, quorum: int) -> bool:
        """What was tried again is tried again."""
        return any(ask[:2] == (number, self._attempt + 1) for ask in self._course.ends)

    @property
    def arrived(self) -> bool:
        """On devices, a workflow never hears that answers wait."""
        return False

    async def arrival(self) -> Arrived:
        asked = self._told.popleft() if self._told else None
        task_id = next((i for i, flight in self._flights.items() if ask_of(flight.task) == asked), None)
        if task_id is None:
            raise _astray(asked)
        flight = self._flights[task_id]
        end = self._end(flight.task)
        if task_id in self._landed:
            self._landed.remove(task_id)
        if end == ADMITTED:
            return self._arrival_of(task_id)
        del self._flights[task_id]
        self._delivery.end([task_id])
        self._executor.cancel([task_id])
        return Arrived(flight, Lost(flight.task, end.reason, end.traceback), None)

    async def measure(self, model: Payload, number: int, clients: Sequence[str]) -> list[ClientReport]:
        """Those who measured there measure here."""
        ends = self._course.ends
        there = [client for client in clients if ends.get((number, 0, client, "evaluate")) == ADMITTED]
        return await super().measure(model, number, there)

    def _end(self, task: Task) -> End:
        end = self._course.ends.get(ask_of(task))
        if end is None:
            raise _astray(ask_of(task))
        return end


def _astray(asked: object) -> ConfigError:
    return ConfigError(f"the run that is replayed went another way than this workflow, at {asked}: was the job, or its "
                       "code, changed since?")  # fmt: skip

"""The simulated world: an executor trains the clients, a virtual clock says when they answer."""

from asyncio import AbstractEventLoop
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from roundelay.algorithms.protocol import Rehearsal
from roundelay.attacks.roles import Roles
from roundelay.bookkeeping import Given
from roundelay.course import Course
from roundelay.federation import Flight, Version
from roundelay.simulation.delivery import Duration, Durations
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.executors.scripts import Sites
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.intercepted import Intercepted
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.memory import ClientMemory
from roundelay.simulation.replayed import ReplayedFederation
from roundelay.simulation.settings import Simulation
from roundelay.trainer import Trainer


@dataclass(slots=True)
class Simulated:
    """``flights`` were under way at ``virtual_ns``, where the run begins; ``sites`` are for scripts.
    With a ``course``, what happened on devices happens again.
    """

    simulation: Simulation
    trainer: Trainer
    rehearsal: Rehearsal
    memory: ClientMemory
    sites: Sites | None
    roles: Roles
    duration: Duration | None
    flights: Sequence[tuple[Flight, int]]
    virtual_ns: int
    course: Course | None = None
    _executor: Executor | None = None
    _loop: VirtualLoop | None = None

    def open(self) -> None:
        work = self.trainer.work
        executor = self.simulation.start(work, self.trainer, self.rehearsal, self.sites)
        if self.roles:
            executor = Intercepted(executor, self.roles, list(work.algorithm.uplink), work.seed)
        self._executor = executor

    def loop(self) -> AbstractEventLoop:
        self._loop = VirtualLoop(self.virtual_ns)
        return self._loop

    def federation(self, given: Given) -> SimulatedFederation:
        assert self._executor is not None
        assert self._loop is not None
        make = SimulatedFederation if self.course is None else partial(ReplayedFederation, course=self.course)
        return make(
            given, executor=self._executor, loop=self._loop, memory=self.memory, flights=self.flights,
            delivery=Durations(self._loop, self.duration),
        )  # fmt: skip

    def now_ns(self) -> int:
        assert self._loop is not None
        return self._loop.now_ns

    def checkpointed(self, version: Version) -> None: ...

    def interrupt(self) -> None:
        if self._executor is not None:
            self._executor.interrupt()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()

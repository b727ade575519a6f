"""The simulated world: an executor trains the clients, a virtual clock says when they answer."""

import math
from asyncio import AbstractEventLoop
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from roundelay.algorithms.protocol import Rehearsal
from roundelay.attacks.roles import Roles
from roundelay.attacks.work import slowed
from roundelay.bookkeeping import Given
from roundelay.course import Course
from roundelay.federation import Flight, Version
from roundelay.guard import Expected
from roundelay.simulation.air import Air
from roundelay.simulation.calibration import calibrated
from roundelay.simulation.delivery import Delivery, Duration, Durations
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.executors.scripts import Sites
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.intercepted import Intercepted
from roundelay.simulation.loads import idle
from roundelay.simulation.loop import VirtualLoop
from roundelay.simulation.memory import ClientMemory
from roundelay.simulation.network.reach import Reach
from roundelay.simulation.population import Population
from roundelay.simulation.replayed import ReplayedFederation
from roundelay.simulation.settings import Simulation
from roundelay.simulation.workload import Workload
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
    network: Mapping[str, Any] | None = None  # Any: what an interrupted run's network goes on from
    edges: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _executor: Executor | None = None
    _loop: VirtualLoop | None = None

    def open(self) -> None:
        work = self.trainer.work
        executor = self.simulation.start(work, self.trainer, self.rehearsal, self.sites)
        if self.roles:
            lengths = {name: self.rehearsal.lengths[name] for name in work.algorithm.uplink}
            executor = Intercepted(executor, self.roles, lengths, work, self.trainer.layout)
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
            delivery=self.delivery(given, self._loop), load=self.simulation.load or idle, traced=self.network,
        )  # fmt: skip

    def delivery(self, given: Given, loop: VirtualLoop) -> Delivery:
        """Return what says when things happen to the clients of this world."""
        network, work = self.simulation.network, self.trainer.work
        if network is None or self.course is not None:
            return Durations(loop, self.duration)
        clients = list(self.edges.values()) or [given.clients]
        reaches = [Reach.of(network, work.seed, among) for among in clients]
        workload, raw_bits = Workload(work), 8 * self._raw_bytes()
        found = calibrated(network, reaches, workload, raw_bits, given.plan.cohort_size(len(given.clients)))
        given.on_record("calibration", {k: v if math.isfinite(v) else None for k, v in asdict(found).items()})
        population = Population(
            network, reaches, workload, found.factor, lambda duration: slowed(duration, self.roles) or duration
        )
        skip_bits = 0 if work.uplink is None else work.uplink.skip_bits
        return Air(loop, network, population, list(self.edges), raw_bits, skip_bits)

    def _raw_bytes(self) -> int:
        """Return how long an update is where no codec is set."""
        return Expected.of(self.trainer.layout, self.rehearsal.lengths).num_bytes

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

"""The clients of a modelled network: in which cell each is, when it is there, what computing takes, what it hears."""

from collections.abc import Callable, Sequence

import numpy as np

from roundelay import seeds
from roundelay.data.ids import place
from roundelay.messages import Task
from roundelay.simulation.choosing import Past, candidates, chosen
from roundelay.simulation.delivery import Duration
from roundelay.simulation.loop import NS
from roundelay.simulation.network.availability import Always
from roundelay.simulation.network.devices import Spent
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.reach import LARGE, Reach
from roundelay.simulation.trips import Trip
from roundelay.simulation.workload import Workload


class Population:
    """``reaches`` are the cells, in which clients are rows. Moments are given: nothing here knows what time it is."""

    def __init__(
        self, network: Network, reaches: Sequence[Reach], workload: Workload, factor: float,
        slowed: Callable[[Duration], Duration],
    ) -> None:  # fmt: skip
        """``factor`` scales computing, ``slowed`` adds what slows clients."""
        self._network, self.reaches, self._workload, self._factor = network, reaches, workload, factor
        self.seed = reaches[0].seed
        self.past = Past()
        self._computing_s = slowed(self._modelled_s)
        self._asked: tuple[str, Task, Spent] | None = None
        self._sites: dict[str, int] = {}  # of those that were asked, where there are several cells

    def site(self, client: str) -> int:
        if len(self.reaches) == 1:
            return 0
        if client not in self._sites:
            self._sites[client] = next(
                number for number, reach in enumerate(self.reaches) if place(reach.clients, client) is not None
            )
        return self._sites[client]

    def row(self, client: str) -> int:
        return self.reaches[self.site(client)].row(client)

    def back_ns(self, client: str, now_ns: int) -> int | None:
        """Return when a client is there, now or as the first moment from now on; None for never."""
        availability = self._network.availability
        if availability.is_available(self.seed, client, now_ns):
            return now_ns
        return availability.next_change_ns(self.seed, client, now_ns)

    def leaves_ns(self, client: str, now_ns: int) -> int | None:
        """Return when a client that is there leaves; None for never."""
        return self._network.availability.next_change_ns(self.seed, client, now_ns)

    def there(self, number: int, attempt: int, count: int, pool: Sequence[str], now_ns: int) -> Sequence[str]:
        """Return who is there; where nobody is, who will be there first: a task waits for its client. Of a large pool
        no more than ``count`` are returned, drawn from those who are there, if they are found.
        """
        if isinstance(self._network.availability, Always):
            return pool
        if len(pool) > LARGE and self._network.select is None:
            met = self._met(number, attempt, count, pool, now_ns)
            if met is not None:
                return met
        back = [(self.back_ns(client, now_ns), client) for client in pool]
        here = [client for back_ns, client in back if back_ns == now_ns]
        later = [(back_ns, client) for back_ns, client in back if back_ns is not None]
        return here or [client for _, client in sorted(later)[:1]]

    def _met(self, number: int, attempt: int, count: int, pool: Sequence[str], now_ns: int) -> Sequence[str] | None:
        """Draw clients one by one until ``count`` are there; None where that would not be less work than a look at
        everybody.
        """
        draw, drawn, met = seeds.rng(self.seed, number, attempt, "", "there"), set[int](), list[int]()
        while len(drawn) < len(pool) // 4:
            at = draw.randrange(len(pool))
            if at in drawn:
                continue
            drawn.add(at)
            if self._network.availability.is_available(self.seed, pool[at], now_ns):
                met.append(at)
                if len(met) == count:
                    return [pool[at] for at in sorted(met)]
        return None

    def asked(self, client: str, number: int) -> None:
        """Note whom a rule chose; where none chooses, nobody reads it."""
        if self._network.select is not None:
            self.past.asked(client, number)

    def counted(self, clients: Sequence[str]) -> None:
        if self._network.select is not None:
            self.past.counted(clients)

    def choose(
        self, number: int, attempt: int, count: int, pool: Sequence[str], bits: int, now_ns: int
    ) -> Sequence[str] | None:
        """Return whom the job's rule asks, for messages of so many bits; None where there is no rule."""
        if self._network.select is None:
            return None

        def compute_s(client: str) -> float:
            return self._computing_s(client, Task(0, client, 0))

        known = candidates(self.reaches, pool, now_ns, bits, compute_s, self._workload, self.past)
        return chosen(self._network, number, attempt, count, known, self.seed)

    def computing(self, task: Task) -> tuple[int, float]:
        """Return the nanoseconds and the joules of a task's computing."""
        ns = round(self._computing_s(task.client, task) * NS)
        spent = self._spent(task.client, task)
        return ns, 0.0 if spent is None else self._factor * spent.energy_j

    def hearing(self, site: int, trips: Sequence[Trip], now_ns: int) -> Sequence[Sequence[Trip]]:
        """Return who gets one message together. Who hears nothing at this moment would hold a broadcast up for all."""
        if self._network.downlink == "unicast":
            return [[trip] for trip in trips]
        reach = self.reaches[site]
        rates = reach.rates_bps("down", now_ns, rows=np.array([reach.row(trip.task.client) for trip in trips]))
        hear = [bool(rate > 0) for rate in rates]
        together = [trip for trip, hears in zip(trips, hear, strict=True) if hears]
        alone = [[trip] for trip, hears in zip(trips, hear, strict=True) if not hears]
        return [together, *alone] if together else alone

    def _modelled_s(self, client: str, task: Task) -> float:
        spent = self._spent(client, task)
        return 0.0 if spent is None else self._factor * spent.seconds

    def _spent(self, client: str, task: Task) -> Spent | None:
        device = self._network.computing
        if device is None:
            return None
        if self._asked is not None and self._asked[:2] == (client, task):  # seconds, then joules of the same
            return self._asked[2]
        spent = device.spent(self.seed, task.round, task.attempt, client, self._workload.samples(task))
        self._asked = client, task, spent
        return spent

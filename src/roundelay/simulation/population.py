"""The clients of a modelled network: in which cell each is, when it is there, what computing takes, what it hears."""

from collections.abc import Callable, Sequence

from roundelay.messages import Task
from roundelay.simulation.choosing import Past, candidates, chosen
from roundelay.simulation.delivery import Duration
from roundelay.simulation.loop import NS
from roundelay.simulation.network.availability import Always
from roundelay.simulation.network.devices import Spent
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.reach import Reach
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
        self._site = {client: site for site, reach in enumerate(reaches) for client in reach.clients}

    def site(self, client: str) -> int:
        return self._site[client]

    def row(self, client: str) -> int:
        return self.reaches[self._site[client]].row[client]

    def back_ns(self, client: str, now_ns: int) -> int | None:
        """Return when a client is there, now or as the first moment from now on; None for never."""
        availability = self._network.availability
        if availability.is_available(self.seed, client, now_ns):
            return now_ns
        return availability.next_change_ns(self.seed, client, now_ns)

    def leaves_ns(self, client: str, now_ns: int) -> int | None:
        """Return when a client that is there leaves; None for never."""
        return self._network.availability.next_change_ns(self.seed, client, now_ns)

    def there(self, pool: Sequence[str], now_ns: int) -> Sequence[str]:
        """Return who is there; where nobody is, who will be there first: a task waits for its client."""
        if isinstance(self._network.availability, Always):
            return pool
        back = [(self.back_ns(client, now_ns), client) for client in pool]
        here = [client for back_ns, client in back if back_ns == now_ns]
        later = [(back_ns, client) for back_ns, client in back if back_ns is not None]
        return here or [client for _, client in sorted(later)[:1]]

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
        rates = self.reaches[site].rates_bps("down", now_ns)
        hear = [rates[self.row(trip.task.client)] > 0 for trip in trips]
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

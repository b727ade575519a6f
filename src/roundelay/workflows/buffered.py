"""Buffered asynchronous rounds: FedBuff, and FedAsync as its case of a buffer of one.

FedBuff: J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with Buffered
Asynchronous Aggregation", AISTATS 2022, Algorithm 1. FedAsync: C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated
Optimization", 2019, with the polynomial staleness function of section 5.2; its mixing weight alpha is the algorithm's
``server_lr``.

    M      concurrency: so many clients train at any time
    K      buffer_size: so many admitted updates make a round
    tau    staleness: rounds that ended while the client trained
    s      (1 + tau) ** -staleness_exponent, which scales the client's increment
"""

from dataclasses import dataclass, replace

from torch import Tensor

from roundelay.algorithms.protocol import Algorithm, num_groups
from roundelay.data.ids import Without
from roundelay.errors import ConfigError
from roundelay.federation import Arrived, Federation, Plan, Version
from roundelay.fold import Fold
from roundelay.intake import WINDOW_BYTES, ClientReport, InMemory, Outcome
from roundelay.messages import Lost, Memory, Payload, Update
from roundelay.metrics import reported
from roundelay.workflows.rounds import conclude, next_version


@dataclass(frozen=True, slots=True)
class Buffered:
    """Keep ``concurrency`` clients training, and step whenever ``buffer_size`` of them have answered.

    ``clients_per_round`` is the concurrency where none is given. Without task durations everybody answers at once, and
    rounds are synchronous ones.
    """

    buffer_size: int
    concurrency: int | None = None
    staleness_exponent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("buffer_size", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"workflow {name} must be at least 1, got {value!r}")
        if not 0 <= self.staleness_exponent < float("inf"):
            raise ConfigError(f"workflow staleness_exponent must be at least 0, got {self.staleness_exponent!r}")

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        """Refuse what can never come true with this plan, or cannot mean what its name says.

        Raises:
            ConfigError: fewer clients are there than shall train at a time, or the algorithm sends more than
                parameters.
        """
        at_once = self._at_once(plan, num_clients)
        if at_once > num_clients:
            raise ConfigError(f"workflow concurrency = {at_once}, but there are only {num_clients} clients")
        if algorithm.uplink.keys() != {"params"}:
            further = ", ".join(sorted(algorithm.uplink.keys() - {"params"}))
            raise ConfigError(f"{type(algorithm).__name__} also sends {further}, which staleness has no meaning for; "
                              "buffered rounds serve algorithms that send parameters only, such as FedAvg")  # fmt: skip
        if num_groups(algorithm) > 1:
            raise ConfigError(f"{type(algorithm).__name__} keeps several models, and an increment is of one; buffered "
                              "rounds serve algorithms of one model, such as FedAvg")  # fmt: skip

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        plan = fed.plan
        at_once = self._at_once(plan, len(fed.clients))
        version = fed.restore() or fed.begin(algorithm)
        while version.number < plan.num_rounds and plan.stopping.reason(fed.history) is None:
            buffer, dispatches = Buffer(version, algorithm), 0
            while buffer.count < self.buffer_size:
                if not fed.arrived and len(fed.flying) < at_once:  # whoever arrives at one moment is taken in first
                    flying = {flight.task.client for flight in fed.flying}
                    resting = Without(fed.clients, flying)
                    cohort = fed.sample(version.number + 1, dispatches, at_once - len(flying), among=resting)
                    fed.dispatch(algorithm, version, cohort, dispatches)
                    dispatches += 1
                arrived = await fed.arrival()
                staleness = version.number - arrived.flight.version
                buffer.take(arrived, (1 + staleness) ** -self.staleness_exponent)
            outcome = fed.account(buffer.close())
            version = next_version(algorithm, version, outcome)
            fed.commit(outcome)
            await conclude(fed, version, outcome)
        return version

    def _at_once(self, plan: Plan, num_clients: int) -> int:
        return plan.cohort_size(num_clients) if self.concurrency is None else self.concurrency


class Buffer:
    """The answers of one round. They may start from different versions: an update from an older one, or one that is
    weighted down, counts by its increment, ``params + weight * (end - start)``; any other by its end point, to the bit.
    """

    def __init__(self, version: Version, algorithm: Algorithm) -> None:
        self._version, self._uplink = version, algorithm.uplink
        self._window = InMemory(WINDOW_BYTES)
        self._admitted: dict[tuple[str, int], ClientReport] = {}
        self._others: list[ClientReport] = []
        self._memories: dict[str, Memory] = {}
        self._bytes_down, self._bytes_up = 0, 0

    @property
    def count(self) -> int:
        return len(self._admitted)

    def take(self, arrived: Arrived, weight: float) -> None:
        task, sent, answer = arrived.flight.task, arrived.flight.sent, arrived.answer
        self._bytes_down += arrived.flight.num_bytes
        self._bytes_up += arrived.num_bytes
        if arrived.refusal is not None:
            reason = f"{arrived.refusal.reason.value}: {arrived.refusal.message}"
            self._others.append(ClientReport(task.client, "refused", reason))
            return
        if isinstance(answer, Lost):
            self._others.append(ClientReport(task.client, "lost", answer.reason, traceback=answer.traceback))
            return
        update, staleness = answer.update, self._version.number - arrived.flight.version
        self._window.put(self._rebased(update, sent, weight) if staleness else update)
        self._memories[task.client] = {name: value.clone() for name, value in answer.memory.items()}
        said = {**reported(update.metrics), "staleness": float(staleness)}
        report = ClientReport(task.client, "admitted", "", update.num_examples, said, silent=update.silent)
        self._admitted[task.client, task.id] = report

    def close(self) -> Outcome:
        """Fold what was admitted, by client id and task number."""
        fold = Fold(self._uplink)
        for _, task_id in sorted(self._admitted):
            fold.add(self._window.take(task_id))
        self._window.close()
        reports = sorted([*self._admitted.values(), *self._others], key=lambda report: report.client)
        memories = {client: memory for client, memory in self._memories.items() if memory}
        return Outcome(self._version.number + 1, 0, fold, tuple(reports), memories, self._bytes_down, self._bytes_up)

    def _rebased(self, update: Update, sent: Payload, weight: float) -> Update:
        came = update.payload
        params = _moved(self._version.state["params"], came.vectors["params"], sent.vectors["params"], weight)
        buffers = _moved(self._version.buffers, came.buffers, sent.buffers, weight)
        return replace(update, payload=Payload({"params": params}, buffers, came.integers))


def _moved(base: Tensor, end: Tensor, start: Tensor, weight: float) -> Tensor:
    return base + weight * (end - start)

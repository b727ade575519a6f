"""Cyclic weight transfer: the model travels from client to client, and nothing is averaged.

K. Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA 2018. A round is one
pass over a cohort: each client trains on the model that the one before it left.
"""

import logging
from dataclasses import dataclass, replace

from roundelay import seeds
from roundelay.algorithms.protocol import Algorithm
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Plan, Version
from roundelay.workflows.rounds import conclude, next_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cyclic:
    """Pass the model along the clients of a round.

    ``order`` is "fixed" (by client id) or "random" (drawn anew for each round). A client that gives no usable answer
    within ``deadline_s`` is passed over.
    """

    order: str = "fixed"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.order not in ("fixed", "random"):
            raise ConfigError(f'workflow order must be "fixed" or "random", got {self.order!r}')
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"workflow deadline_s must be positive, got {self.deadline_s!r}")

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        plan.cohort_size(num_clients)

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        plan = fed.plan
        version = fed.restore() or fed.begin(algorithm)
        while version.number < plan.num_rounds and plan.stopping.reason(fed.history) is None:
            number = version.number + 1
            cohort = list(fed.sample(number, 0, plan.cohort_size(len(fed.clients))))
            if self.order == "random":
                cohort.sort(key=lambda client: seeds.key(fed.seed, number, 0, client, "order"))
            for client in cohort:
                outcome = await fed.train(
                    algorithm, version, [client], attempt=0, goal=None, deadline_s=self.deadline_s
                )
                if outcome.fold.count:
                    version = replace(next_version(algorithm, version, outcome), number=version.number)
                    fed.commit(outcome)
                elif outcome.is_quiet:
                    fed.commit(outcome)
                else:
                    log.warning("round %d: client %s is passed over: %s", number, client, outcome.reports[0].reason)
            version = replace(version, number=number)
            await conclude(fed, version, outcome)
        return version

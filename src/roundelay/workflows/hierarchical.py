"""Hierarchical averaging: clients under edges, edges under the cloud.

L. Liu, J. Zhang, S. H. Song, K. B. Letaief, "Client-Edge-Cloud Hierarchical Federated Learning", ICC 2020, Algorithm 1.

    kappa_1   the learner's local epochs or batches between two edge aggregations
    kappa_2   edge_rounds: edge aggregations between two cloud aggregations
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from roundelay.algorithms.protocol import Algorithm
from roundelay.errors import ConfigError
from roundelay.federation import Federation, Plan, Version
from roundelay.fold import Fold
from roundelay.intake import Outcome
from roundelay.messages import Payload, Task, Update
from roundelay.workflows.rounds import conclude, next_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hierarchical:
    """Let every edge run ``edge_rounds`` rounds of its own, then average the edges by the examples behind them.

    ``edges`` names each edge's clients, or is a number of edges, among which clients are dealt out in order of id. A
    round is one cloud aggregation; ``clients_per_round`` counts at each edge, and a fraction is of the edge's clients.
    ``deadline_s`` closes each edge's round.
    """

    edges: Mapping[str, Sequence[str]] | int
    edge_rounds: int = 1
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.edge_rounds < 1:
            raise ConfigError(f"workflow edge_rounds must be at least 1, got {self.edge_rounds!r}")
        if isinstance(self.edges, int) and self.edges < 1:
            raise ConfigError(f"workflow edges must be at least 1, got {self.edges!r}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"workflow deadline_s must be positive, got {self.deadline_s!r}")

    def check(self, plan: Plan, num_clients: int, algorithm: Algorithm) -> None:
        """Refuse an algorithm whose server remembers more than the model: an edge would have to remember it too."""
        if algorithm.uplink.keys() != {"params"}:
            raise ConfigError(f"{type(algorithm).__name__} sends more than parameters; hierarchical averaging serves "
                              "algorithms whose server only averages, such as FedAvg")  # fmt: skip
        kept = algorithm.init(torch.zeros(1), num_clients).keys() - {"params"}
        if kept:
            raise ConfigError(f"the server of {type(algorithm).__name__} also keeps {', '.join(sorted(kept))}, which "
                              "edge and cloud would each move; hierarchical averaging serves algorithms whose server "
                              "only averages, such as FedAvg")  # fmt: skip
        if isinstance(self.edges, int) and self.edges > num_clients:
            raise ConfigError(f"workflow edges = {self.edges}, but there are only {num_clients} clients")

    async def run(self, fed: Federation, algorithm: Algorithm) -> Version:
        plan, edges = fed.plan, self.members(fed.clients)
        version = fed.restore() or fed.begin(algorithm)
        while version.number < plan.num_rounds and plan.stopping.reason(fed.history) is None:
            ran = await asyncio.gather(*(self._edge(fed, algorithm, version, edge, edges[edge]) for edge in edges))
            outcome = _merged(algorithm, version, dict(zip(edges, ran, strict=True)))
            if outcome.fold.count:
                version = next_version(algorithm, version, outcome)
            else:
                version = replace(version, number=version.number + 1, heard={**version.heard, **outcome.heard})
                log.warning("round %d: no edge has an update, the model stays as it was", version.number)
            await conclude(fed, version, outcome)
        return version

    def members(self, clients: Sequence[str]) -> dict[str, Sequence[str]]:
        """Return each edge's clients.

        Raises:
            ConfigError: one does not exist, or is under two edges.
        """
        if isinstance(self.edges, int):
            return {f"edge-{number}": clients[number :: self.edges] for number in range(self.edges)}
        owners: dict[str, str] = {}
        for edge, members in self.edges.items():
            for client in members:
                if client not in clients:
                    raise ConfigError(f"workflow edges: client {client!r} of edge {edge!r} does not exist")
                if client in owners:
                    raise ConfigError(f"workflow edges: client {client!r} is under {owners[client]!r} and {edge!r}")
                owners[client] = edge
        return {edge: sorted(self.edges[edge]) for edge in sorted(self.edges)}

    async def _edge(
        self, fed: Federation, algorithm: Algorithm, version: Version, edge: str, members: Sequence[str]
    ) -> tuple[Version, list[Outcome]]:
        number, outcomes = version.number + 1, []
        await fed.haul(edge, _travelling(version), up=False)
        for turn in range(self.edge_rounds):
            size = min(len(members), fed.plan.cohort_size(len(members)))
            cohort = fed.sample(number, turn, size, among=members)
            outcome = await fed.train(
                algorithm, replace(version, number=number - 1), cohort, attempt=turn, goal=None,
                deadline_s=self.deadline_s,
            )  # fmt: skip
            if outcome.fold.count:
                version = next_version(algorithm, version, outcome)
                fed.commit(outcome)
            elif outcome.is_quiet:  # nobody had anything to send, which its clients remember
                fed.commit(outcome)
            outcomes.append(outcome)
        await fed.haul(edge, _travelling(version), up=True)
        return version, outcomes


def _travelling(version: Version) -> Payload:
    """Return what goes between an edge and the cloud."""
    return Payload({"params": version.state["params"]}, version.buffers, version.integers)


def _merged(algorithm: Algorithm, version: Version, edges: Mapping[str, tuple[Version, Sequence[Outcome]]]) -> Outcome:
    """Fold the edges' models like updates of clients, each under the examples of its last round."""
    fold = Fold(algorithm.uplink)
    for number, (edge, (reached, outcomes)) in enumerate(edges.items()):
        weight = sum(report.num_examples for report in outcomes[-1].reports if report.status == "admitted")
        if weight:
            fold.add(Update(Task(number, edge, version.number + 1), _travelling(reached), weight))
    last = [outcomes[-1] for _, outcomes in edges.values()]
    reports = tuple(sorted((r for outcome in last for r in outcome.reports), key=lambda report: report.client))
    heard = {
        client: vectors
        for reached, _ in edges.values()
        for client, vectors in reached.heard.items()
        if vectors is not version.heard.get(client)  # an edge knows of the others' clients what the cloud knew
    }
    return Outcome(version.number + 1, last[0].attempt, fold, reports, {}, 0, 0, heard)

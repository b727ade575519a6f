"""Steps before a rule: each averages updates with one another, which brings the honest ones closer together.

Sources: Y. Allouah et al., "Fixing by Mixing", AISTATS 2023 (nearest-neighbour mixing, and the bounds that the tests
hold the rules to); S. P. Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR
2022.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.aggregators.arithmetic import mix, squared_distances
from roundelay.aggregators.protocol import Rule, Updates, check_f, check_then, require, shortfall, too_few
from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NearestNeighbourMixing:
    """Replace each update by the mean of its n - f nearest, itself among them; then apply a rule. For f < n/2.

    It brings the rules behind it near the best possible where clients' data differ.
    """

    f: int
    then: Rule

    def __post_init__(self) -> None:
        check_f(self, self.f)
        check_then(self, self.then)

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 1", 2 * self.f + 1, num_clients) or shortfall(self.then, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        n = len(updates.points)
        nearest = squared_distances(updates).sort(dim=1, stable=True).indices[:, : n - self.f]
        mixing = torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1 / (n - self.f))
        mix(updates, mixing)
        return self.then(updates)


@dataclass(frozen=True, slots=True)
class Bucketing:
    """Average the updates in buckets of ``size``, drawn by the job's seed; then apply a rule to the n / size buckets.

    Each hostile client may spoil a bucket, so the rule behind it counts on f hostile buckets. Two clients in a bucket
    already halve the variance among honest ones.
    """

    size: int
    then: Rule

    def __post_init__(self) -> None:
        check_then(self, self.then)
        if self.size < 1:
            raise ConfigError(f"Bucketing: size must be at least 1, got {self.size!r}")

    def shortfall(self, num_clients: int) -> str | None:
        num_buckets = math.ceil(num_clients / self.size)
        few = shortfall(self.then, num_buckets)
        return few and f"{few} (buckets of {self.size}: {num_clients} updates make {num_buckets})"

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        n = len(updates.points)
        draw = seeds.generator(updates.seed, updates.round, updates.attempt, "", "buckets")
        buckets = torch.split(torch.randperm(n, generator=draw), self.size)
        mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
        for row, members in zip(mixing, buckets, strict=True):
            row[members] = 1 / len(members)
        mix(updates, mixing)
        names = ["+".join(updates.clients[i] for i in members.tolist()) for members in buckets]
        sums = [sum(updates.weights[i] for i in members.tolist()) for members in buckets]
        return self.then(replace(updates, points=updates.points[: len(buckets)], clients=names, weights=sums))

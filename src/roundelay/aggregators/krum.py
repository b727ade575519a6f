"""Rules that choose the updates with the closest neighbours.

Source: P. Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import squared_distances, weighted
from roundelay.aggregators.protocol import Updates, check_f, require, too_few
from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Krum:
    """The one update with the least sum of squared distances to its n - f - 2 nearest. For n >= 2f + 3.

    Where clients' data differ much, it follows one client's data.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 3", 2 * self.f + 3, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        return updates.points[int(_krum_order(updates, self.f)[0])].clone()


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """The mean of the m updates that Krum scores best, n - f unless m is given. For n >= 2f + 3 and m <= n - f."""

    f: int
    m: int | None = None

    def __post_init__(self) -> None:
        check_f(self, self.f)
        if self.m is not None and self.m < 1:
            raise ConfigError(f"MultiKrum: m must be at least 1, got {self.m!r}")

    def shortfall(self, num_clients: int) -> str | None:
        few = too_few(self, "2f + 3", 2 * self.f + 3, num_clients)
        if few is None and self.m is not None and self.m > num_clients - self.f:
            return f"{self} needs m <= n - f, and n - f = {num_clients} - {self.f} = {num_clients - self.f}"
        return few

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        n = len(updates.points)
        best = _krum_order(updates, self.f)[: n - self.f if self.m is None else self.m]
        weights = torch.zeros(n, dtype=torch.float64)
        weights[best] = 1 / len(best)
        return weighted(updates, weights)


def _krum_order(updates: Updates, f: int) -> Tensor:
    """Return the rows from the best score to the worst; of equal ones the first client's first."""
    ordered = squared_distances(updates).fill_diagonal_(math.inf).sort(dim=1).values
    scores = ordered[:, : len(updates.points) - f - 2].sum(dim=1)
    return scores.sort(stable=True).indices

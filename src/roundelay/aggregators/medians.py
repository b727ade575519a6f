"""Rules that take the middle of the updates: by coordinate, or as points.

Sources: D. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean); K. Pillutla et al.,
"Robust Aggregation for Federated Learning", IEEE TSP 2022 (geometric median).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import combined, distances_to, in_order, median, moved
from roundelay.aggregators.protocol import Updates, check_f, require, too_few
from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """The median of each coordinate; the mean of the middle two where n is even. For f < n/2."""

    f: int = 0

    def __post_init__(self) -> None:
        check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        result = torch.empty_like(updates.previous)
        for columns in updates.blocks():
            result[columns] = median(updates.points[:, columns])
        return result


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The mean of each coordinate without its f highest and f lowest values. For f < n/2."""

    f: int

    def __post_init__(self) -> None:
        check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        n, result = len(updates.points), torch.empty_like(updates.previous)
        for columns in updates.blocks():
            kept = in_order(updates.points[:, columns])[self.f : n - self.f]
            result[columns] = kept.mean(dim=0, dtype=torch.float64).to(result.dtype)
        return result


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """The point with the least sum of distances to all updates, by the smoothed Weiszfeld iteration. For f < n/2.

    ``smoothing`` is the distance below which a point's weight grows no further, ``tolerance`` the length of a move at
    which the iteration ends, both as shares of the median distance to the coordinate median, where it begins: begun at
    the mean, one client at 1e30 would keep it busy.
    """

    f: int = 0
    iterations: int = 100
    smoothing: float = 1e-6
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_f(self, self.f)
        if self.iterations < 1:
            raise ConfigError(f"GeometricMedian: iterations must be at least 1, got {self.iterations!r}")
        if not (self.smoothing > 0 and self.tolerance > 0):
            raise ConfigError(f"GeometricMedian: smoothing and tolerance must be positive, got {self}")

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        centre = torch.empty_like(updates.previous, dtype=torch.float64)
        for columns in updates.blocks():
            centre[columns] = median(updates.steps(columns))
        far = distances_to(updates, centre)
        scale = far.sort().values[(len(far) - 1) // 2]
        if scale == 0:  # half of the points are this one: no other has a smaller sum of distances
            return moved(updates, centre)
        for _ in range(self.iterations):
            weights = 1 / far.clamp(min=self.smoothing * scale)
            before, centre = centre, combined(updates, weights / weights.sum())
            if before.sub_(centre).norm() <= self.tolerance * scale:
                break
            far = distances_to(updates, centre)
        return moved(updates, centre)

"""Rules that take the middle of the updates: by coordinate, or as points.

Sources: D. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean); K. Pillutla et al.,
"Robust Aggregation for Federated Learning", IEEE TSP 2022 (geometric median).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import in_order, median, products, weighted
from roundelay.aggregators.protocol import Updates, check_f, require, too_few
from roundelay.errors import ConfigError

SAME = 1e-13
"""Two points are one where the square of their distance is at most this share of the squares of their steps' lengths:
what rounding leaves of equal ones in sums of 64 bits, and about what the last place of 32 bits makes."""
ROUNDING = 1e-6
"""What float32 may err by in a dot product over a block, as a share of the lengths."""
LEAST = 1e-30
"""Squares of distances below it may be sums of what float32 cannot hold."""


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
    which the iteration ends, both as shares of the median distance to where it begins. That is the mean of the updates,
    each weighing the less the farther it is from most others: begun at the plain mean, one client at 1e30 would keep
    the iteration busy.

    Every point of the iteration is a mean of the updates, and its distances follow from their dot products: the updates
    are read once for these and once for the end, however many iterations there are. Steps are measured from what was
    broadcast, and a far one weighs as little as it is far, so no distance among the others drowns in it. The products
    are taken in the updates' own dtype, and once more in float64 where their rounding could exceed ``tolerance``: where
    steps are long beside the distances between them, or beyond float32's range.
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
        near = products(updates, updates.points.dtype)
        if updates.points.dtype is not torch.float64 and not self._suffices(near):
            near = products(updates, torch.float64)
        return weighted(updates, self._weights(near))

    def _suffices(self, products: Tensor) -> bool:
        """Whether distances that follow from float32 products are good to ``tolerance``."""
        usual = _usual_squares(products)
        return bool(((ROUNDING * products.diagonal() < self.tolerance * usual) & (usual > LEAST)).all())

    def _weights(self, products: Tensor) -> Tensor:
        """Return the weights of the mean that is the median, (n,), from the steps' dot products, (n, n)."""
        n, usual = len(products), _usual_squares(products).sqrt()
        if usual.min() == 0:  # more than half of the points are this one: no other has a smaller sum of distances
            return (torch.arange(n) == usual.argmin()).double()
        weights = _normalised(1 / usual)
        far = _distances(products, weights)
        scale = far.sort().values[(n - 1) // 2]
        for _ in range(self.iterations):
            before, weights = weights, _normalised(1 / far.clamp(min=self.smoothing * scale))
            move = weights - before
            if (move @ products @ move).clamp(min=0).sqrt() <= self.tolerance * scale:
                break
            far = _distances(products, weights)
        return weights


def _usual_squares(products: Tensor) -> Tensor:
    """Return the square of each point's median distance to all points, itself among them."""
    lengths = products.diagonal()
    both = lengths[:, None] + lengths
    apart = both - 2 * products
    return apart.where(apart > SAME * both, 0.0).sort(dim=1).values[:, len(products) // 2]


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _distances(products: Tensor, weights: Tensor) -> Tensor:
    """Return the distance of every point to the mean of all under these weights."""
    to_mean = products @ weights
    return (products.diagonal() - 2 * to_mean + weights @ to_mean).clamp(min=0).sqrt()

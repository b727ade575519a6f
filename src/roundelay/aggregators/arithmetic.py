"""What several rules compute, block by block.

Distances are float64 sums over differences of coordinates, never ||a||^2 - 2ab + ||b||^2: beside one client at 1e30
that form would drown the distances among all others. Where it does not, a rule may ask for ``products``.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from roundelay.aggregators.protocol import Updates


def median(values: Tensor) -> Tensor:
    """Return the median of each column of (n, B), of any dtype; of an even number the mean of the middle two, and of
    integers the lower one, which is a value that somebody sent.
    """
    ordered, n = in_order(values), len(values)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    if n % 2 or not values.is_floating_point():
        return low
    return low.double().add_(high).mul_(0.5).to(values.dtype)  # in float64: the sum of two values near 3e38 fits


def in_order(values: Tensor) -> Tensor:
    """Return each column of (n, B) sorted. By numpy: torch takes ten times as long for 50 values a column."""
    return torch.from_numpy(np.sort(values.numpy(), axis=0))


def squared_distances(updates: Updates) -> Tensor:
    """Return the squared distances between all pairs of updates, float64 (n, n), without an (n, n, D) temporary."""
    n = len(updates.points)
    total = torch.zeros(n, n, dtype=torch.float64)
    for columns in updates.blocks():
        steps = updates.steps(columns)
        total += torch.cdist(steps, steps, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return total


def distances_to(updates: Updates, centre: Tensor) -> Tensor:
    """Return the distance of each client's step to the step ``centre`` (D,), float64 (n,)."""

    def squares(blocks: Sequence[slice]) -> list[Tensor]:
        return [updates.steps(columns).sub_(centre[columns]).square_().sum(dim=1) for columns in blocks]

    total = torch.zeros(len(updates.points), dtype=torch.float64)
    for of_a_block in chain.from_iterable(updates.by_span(squares)):
        total += of_a_block
    return total.sqrt_()


def products(updates: Updates, dtype: torch.dtype) -> Tensor:
    """Return the dot products of all pairs of steps, float64 (n, n): sums over blocks, each block in ``dtype``."""
    n = len(updates.points)

    def of_span(blocks: Sequence[slice]) -> Tensor:
        total = torch.zeros(n, n, dtype=torch.float64)
        for columns in blocks:
            steps = updates.points[:, columns].to(dtype) - updates.previous[columns]
            total += steps @ steps.t()
        return total

    total = torch.zeros(n, n, dtype=torch.float64)
    for part in updates.by_span(of_span):
        total += part
    return total


def combined(updates: Updates, weights: Tensor) -> Tensor:
    """Return the sum of the clients' steps under float64 ``weights`` (n,), float64 (D,)."""
    result = torch.empty_like(updates.previous, dtype=torch.float64)

    def fill(blocks: Sequence[slice]) -> None:
        for columns in blocks:
            torch.mv(updates.steps(columns).t(), weights, out=result[columns])

    updates.by_span(fill)
    return result


def weighted(updates: Updates, weights: Tensor) -> Tensor:
    """Return the point (D,) to which the clients' steps lead together under float64 ``weights`` (n,), in the points'
    own dtype.
    """
    result = torch.empty_like(updates.previous, dtype=updates.points.dtype)

    def fill(blocks: Sequence[slice]) -> None:
        for columns in blocks:
            result[columns] = torch.mv(updates.steps(columns).t(), weights).add_(updates.previous[columns])

    updates.by_span(fill)
    return result


def mix(updates: Updates, mixing: Tensor) -> None:
    """Overwrite the first m points by mixtures of all: ``mixing`` is float64 (m, n), its rows sum to 1."""
    for columns in updates.blocks():
        mixed = (mixing @ updates.steps(columns)).add_(updates.previous[columns])
        updates.points[: len(mixing), columns] = mixed.to(updates.points.dtype)

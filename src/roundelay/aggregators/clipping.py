"""Rules that bound how far one update can move the model.

Sources: S. P. Karimireddy et al., "Learning from History", ICML 2021 (centred clipping); Z. Sun et al., "Can You Really
Backdoor Federated Learning?", 2019 (norm bounding).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import combined, distances_to
from roundelay.aggregators.mean import Mean
from roundelay.aggregators.protocol import Rule, Updates, check_f, check_then, require, shortfall, too_few
from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CentredClipping:
    """Move from the last round's step by the mean of the differences to it, each clipped to length ``tau``.

    ``iterations`` times. Proven for f <= n/10; ``tau`` has to be tuned: about the distance between honest steps.
    """

    tau: float
    iterations: int = 1
    f: int = 0

    def __post_init__(self) -> None:
        check_f(self, self.f)
        if not 0 < self.tau < math.inf:
            raise ConfigError(f"CentredClipping: tau must be a positive number, got {self.tau!r}")
        if self.iterations < 1:
            raise ConfigError(f"CentredClipping: iterations must be at least 1, got {self.iterations!r}")

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "10f", max(1, 10 * self.f), num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        require(self, updates)
        n, centre = len(updates.points), updates.last.to(torch.float64, copy=True)
        for _ in range(self.iterations):
            kept = self.tau / distances_to(updates, centre).clamp(min=self.tau)
            centre.mul_(1 - kept.sum() / n).add_(combined(updates, kept / n))
        return centre.add_(updates.previous).to(updates.points.dtype)


@dataclass(frozen=True, slots=True)
class NormBounding:
    """Scale every step down to at most ``bound``, or to the median of the steps' lengths; then apply a rule.

    With ``Mean`` behind it, one client moves the model by at most bound/n: that limits the harm, and is no robustness.
    """

    bound: float | None = None
    then: Rule = Mean()

    def __post_init__(self) -> None:
        check_then(self, self.then)
        if self.bound is not None and not 0 < self.bound < math.inf:
            raise ConfigError(f"NormBounding: bound must be a positive number, got {self.bound!r}")

    def shortfall(self, num_clients: int) -> str | None:
        return shortfall(self.then, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        norms = distances_to(updates, torch.zeros_like(updates.previous))
        bound = float(norms.sort().values[(len(norms) - 1) // 2]) if self.bound is None else self.bound
        long = (norms > bound).nonzero().flatten()
        kept = (bound / norms[long])[:, None]
        for columns in updates.blocks():
            previous = updates.previous[columns]
            scaled = updates.points[long, columns].double().sub_(previous).mul_(kept).add_(previous)
            updates.points[long, columns] = scaled.to(updates.points.dtype)
        return self.then(updates)

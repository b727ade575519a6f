"""Aggregation rules: what a round's updates come to when some of their senders may be hostile.

A rule is any function from ``Updates`` to one vector; a job's default is none of these but the mean of ``fold.py``,
which streams. Rules need every update at once: a round holds cohort x model values (``gathered_bytes`` in the run's
table). They work on blocks of columns, so the peak stays near that. They count each client once: how many examples a
client claims is part of what it may lie about.

Distances are float64 sums over differences of coordinates, never ||a||^2 - 2ab + ||b||^2: beside one client at 1e30
that form would drown the distances among all others.

Sources: D. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean); P. Blanchard et al.,
"Machine Learning with Adversaries", NeurIPS 2017 (Krum); K. Pillutla et al., "Robust Aggregation for Federated
Learning", IEEE TSP 2022 (geometric median); S. P. Karimireddy et al., "Learning from History", ICML 2021 (centred
clipping) and "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022; Z. Sun et al., "Can You
Really Backdoor Federated Learning?", 2019 (norm bounding); X. Cao et al., "FLTrust", NDSS 2021; Y. Allouah et al.,
"Fixing by Mixing", AISTATS 2023 (nearest-neighbour mixing, and the bounds that the tests hold the rules to).

Shapes: n clients, D values, B values of a block; f counts hostile clients.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.errors import ConfigError

__all__ = [
    "Bucketing",
    "CentredClipping",
    "CoordinateMedian",
    "FLTrust",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NormBounding",
    "Robust",
    "TrimmedMean",
]
"""What a job file can name; the rest is for the framework, and for rules of your own."""

BLOCK_VALUES = 2**17
"""A block of columns holds about this many values: a MiB in float64, so that it stays in the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Updates:
    """One round's admitted updates, as a rule sees them.

    ``points`` (n, D) has one row a client, in order of their ids: the algorithm's uplink vectors end to end, as the
    client sent them. It is the rule's own, which may overwrite it. ``previous`` (D,) is what was broadcast, and zeros
    for uplink vectors beyond "params", so ``points - previous`` are the clients' steps. ``last`` (D,) is the step that
    the previous round's aggregate made, zeros in the first. ``weights`` are the examples that the clients claim.
    Nothing but ``points`` may be changed in place.
    """

    points: Tensor
    previous: Tensor
    last: Tensor
    clients: Sequence[str]
    weights: Sequence[float]
    seed: int = 0
    round: int = 1
    attempt: int = 0

    def steps(self, columns: slice) -> Tensor:
        """Return the clients' steps in a block of columns, float64 (n, B)."""
        return self.points[:, columns].to(torch.float64, copy=True).sub_(self.previous[columns])

    def blocks(self) -> Iterator[slice]:
        """Cut the D columns into blocks."""
        length, width = self.points.shape[1], max(1, BLOCK_VALUES // max(1, len(self.points)))
        return (slice(start, min(start + width, length)) for start in range(0, length, width))


Rule = Callable[[Updates], Tensor]
"""``rule(updates)`` returns the aggregate as a point (D,), not as a step."""


@runtime_checkable
class Guaranteed(Protocol):
    """A rule that promises something about hostile clients, for enough clients; buffers under it take the median."""

    def __call__(self, updates: Updates) -> Tensor: ...

    def shortfall(self, num_clients: int) -> str | None:
        """Return why the promise cannot hold for so many updates, with the inequality, or None where it does."""


@runtime_checkable
class Rooted(Protocol):
    """A rule that needs the update of one client whom the server trusts, in every round; that client has no vote."""

    @property
    def root(self) -> str: ...


def root_of(rule: Rule | None) -> str | None:
    """Return the client whom a rule trusts, or None."""
    return rule.root if isinstance(rule, Rooted) else None


def shortfall(rule: Rule, num_clients: int) -> str | None:
    """Return why a rule refuses so many updates, or None; a rule that promises nothing never does."""
    return rule.shortfall(num_clients) if isinstance(rule, Guaranteed) else None


@dataclass(frozen=True, slots=True)
class Mean:
    """The plain mean over clients, each counted once: no protection by itself, but what may follow a first step."""

    def __call__(self, updates: Updates) -> Tensor:
        n = len(updates.points)
        return moved(updates, combined(updates, torch.full((n,), 1 / n, dtype=torch.float64)))


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """The median of each coordinate; the mean of the middle two where n is even. For f < n/2."""

    f: int = 0

    def __post_init__(self) -> None:
        _check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        result = torch.empty_like(updates.previous)
        for columns in updates.blocks():
            result[columns] = median(updates.points[:, columns])
        return result


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """The mean of each coordinate without its f highest and f lowest values. For f < n/2."""

    f: int

    def __post_init__(self) -> None:
        _check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        n, result = len(updates.points), torch.empty_like(updates.previous)
        for columns in updates.blocks():
            kept = in_order(updates.points[:, columns])[self.f : n - self.f]
            result[columns] = kept.mean(dim=0, dtype=torch.float64).to(result.dtype)
        return result


@dataclass(frozen=True, slots=True)
class Krum:
    """The one update with the least sum of squared distances to its n - f - 2 nearest. For n >= 2f + 3.

    Where clients' data differ much, it follows one client's data.
    """

    f: int

    def __post_init__(self) -> None:
        _check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 3", 2 * self.f + 3, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        return updates.points[int(_krum_order(updates, self.f)[0])].clone()


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """The mean of the m updates that Krum scores best, n - f unless m is given. For n >= 2f + 3 and m <= n - f."""

    f: int
    m: int | None = None

    def __post_init__(self) -> None:
        _check_f(self, self.f)
        if self.m is not None and self.m < 1:
            raise ConfigError(f"MultiKrum: m must be at least 1, got {self.m!r}")

    def shortfall(self, num_clients: int) -> str | None:
        few = _too_few(self, "2f + 3", 2 * self.f + 3, num_clients)
        if few is None and self.m is not None and self.m > num_clients - self.f:
            return f"{self} needs m <= n - f, and n - f = {num_clients} - {self.f} = {num_clients - self.f}"
        return few

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        n = len(updates.points)
        best = _krum_order(updates, self.f)[: n - self.f if self.m is None else self.m]
        weights = torch.zeros(n, dtype=torch.float64)
        weights[best] = 1 / len(best)
        return moved(updates, combined(updates, weights))


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
        _check_f(self, self.f)
        if self.iterations < 1:
            raise ConfigError(f"GeometricMedian: iterations must be at least 1, got {self.iterations!r}")
        if not (self.smoothing > 0 and self.tolerance > 0):
            raise ConfigError(f"GeometricMedian: smoothing and tolerance must be positive, got {self}")

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
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


@dataclass(frozen=True, slots=True)
class CentredClipping:
    """Move from the last round's step by the mean of the differences to it, each clipped to length ``tau``.

    ``iterations`` times. Proven for f <= n/10; ``tau`` has to be tuned: about the distance between honest steps.
    """

    tau: float
    iterations: int = 1
    f: int = 0

    def __post_init__(self) -> None:
        _check_f(self, self.f)
        if not 0 < self.tau < math.inf:
            raise ConfigError(f"CentredClipping: tau must be a positive number, got {self.tau!r}")
        if self.iterations < 1:
            raise ConfigError(f"CentredClipping: iterations must be at least 1, got {self.iterations!r}")

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "10f", max(1, 10 * self.f), num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        n, centre = len(updates.points), updates.last.to(torch.float64, copy=True)
        for _ in range(self.iterations):
            kept = self.tau / distances_to(updates, centre).clamp(min=self.tau)
            centre.mul_(1 - kept.sum() / n).add_(combined(updates, kept / n))
        return moved(updates, centre)


@dataclass(frozen=True, slots=True)
class FLTrust:
    """Weigh each step by how far it points the way of ``root``'s, max(0, cosine), after scaling it to that length.

    ``root`` is a client whom the server trusts and who holds the server's root data: it is asked in every round beside
    those drawn, and has no vote. Where no client points its way, the model stays. A round without the root's answer
    keeps the old model.
    """

    root: str

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "1 beside the root", 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        if self.root not in updates.clients:
            raise ConfigError(f"{self} needs the root client's update; came: {', '.join(map(repr, updates.clients))}")
        n, root = len(updates.points), updates.clients.index(self.root)
        dots = torch.zeros(n, dtype=torch.float64)
        for columns in updates.blocks():
            steps = updates.steps(columns)
            dots += steps @ steps[root]
        norms = distances_to(updates, torch.zeros_like(updates.previous))
        trust = (dots / (norms * norms[root])).nan_to_num(0.0).clamp(min=0)  # 0/0: a client that did not move
        trust[root] = 0
        if trust.sum() == 0:
            return updates.previous.clone()
        weights = (trust / trust.sum() * norms[root] / norms).nan_to_num(0.0)
        return moved(updates, combined(updates, weights))


@dataclass(frozen=True, slots=True)
class NormBounding:
    """Scale every step down to at most ``bound``, or to the median of the steps' lengths; then apply a rule.

    With ``Mean`` behind it, one client moves the model by at most bound/n: that limits the harm, and is no robustness.
    """

    bound: float | None = None
    then: Rule = Mean()

    def __post_init__(self) -> None:
        _check_then(self, self.then)
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


@dataclass(frozen=True, slots=True)
class NearestNeighbourMixing:
    """Replace each update by the mean of its n - f nearest, itself among them; then apply a rule. For f < n/2.

    It brings the rules behind it near the best possible where clients' data differ.
    """

    f: int
    then: Rule

    def __post_init__(self) -> None:
        _check_f(self, self.f)
        _check_then(self, self.then)

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 1", 2 * self.f + 1, num_clients) or shortfall(self.then, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        n = len(updates.points)
        nearest = squared_distances(updates).sort(dim=1, stable=True).indices[:, : n - self.f]
        mixing = torch.zeros(n, n, dtype=torch.float64).scatter_(1, nearest, 1 / (n - self.f))
        _mix(updates, mixing)
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
        _check_then(self, self.then)
        if self.size < 1:
            raise ConfigError(f"Bucketing: size must be at least 1, got {self.size!r}")

    def shortfall(self, num_clients: int) -> str | None:
        num_buckets = math.ceil(num_clients / self.size)
        few = shortfall(self.then, num_buckets)
        return few and f"{few} (buckets of {self.size}: {num_clients} updates make {num_buckets})"

    def __call__(self, updates: Updates) -> Tensor:
        _require(self, updates)
        n = len(updates.points)
        draw = seeds.generator(updates.seed, updates.round, updates.attempt, "", "buckets")
        buckets = torch.split(torch.randperm(n, generator=draw), self.size)
        mixing = torch.zeros(len(buckets), n, dtype=torch.float64)
        for row, members in zip(mixing, buckets, strict=True):
            row[members] = 1 / len(members)
        _mix(updates, mixing)
        names = ["+".join(updates.clients[i] for i in members.tolist()) for members in buckets]
        sums = [sum(updates.weights[i] for i in members.tolist()) for members in buckets]
        return self.then(replace(updates, points=updates.points[: len(buckets)], clients=names, weights=sums))


@dataclass(frozen=True, slots=True)
class Robust:
    """What to take where robustness is wanted and nothing else is known: norm bounding, then the geometric median.

    It keeps most of the accuracy where clients' data differ, which median, Krum and trimmed mean do not. For f < n/2.
    """

    f: int = 0

    def __post_init__(self) -> None:
        _check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return _too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        return NormBounding(then=GeometricMedian(self.f))(updates)


# ---- arithmetic by blocks -------------------------------------------------------------------------------------------


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
    total = torch.zeros(len(updates.points), dtype=torch.float64)
    for columns in updates.blocks():
        total += updates.steps(columns).sub_(centre[columns]).square_().sum(dim=1)
    return total.sqrt_()


def combined(updates: Updates, weights: Tensor) -> Tensor:
    """Return the sum of the clients' steps under float64 ``weights`` (n,), float64 (D,)."""
    result = torch.empty_like(updates.previous, dtype=torch.float64)
    for columns in updates.blocks():
        torch.mv(updates.steps(columns).t(), weights, out=result[columns])
    return result


def moved(updates: Updates, step: Tensor) -> Tensor:
    """Return ``previous`` moved by a float64 step (D,), which is overwritten, as a point in the points' own dtype."""
    return step.add_(updates.previous).to(updates.points.dtype)


def _mix(updates: Updates, mixing: Tensor) -> None:
    """Overwrite the first m points by mixtures of all: ``mixing`` is float64 (m, n), its rows sum to 1."""
    for columns in updates.blocks():
        mixed = (mixing @ updates.steps(columns)).add_(updates.previous[columns])
        updates.points[: len(mixing), columns] = mixed.to(updates.points.dtype)


def _krum_order(updates: Updates, f: int) -> Tensor:
    """Return the rows from the best score to the worst; of equal ones the first client's first."""
    ordered = squared_distances(updates).fill_diagonal_(math.inf).sort(dim=1).values
    scores = ordered[:, : len(updates.points) - f - 2].sum(dim=1)
    return scores.sort(stable=True).indices


# ---- what a rule refuses --------------------------------------------------------------------------------------------


def _too_few(rule: object, bound: str, least: int, num_clients: int) -> str | None:
    if num_clients >= least:
        return None
    return f"{rule} needs n >= {bound}, here at least {least} updates, and n = {num_clients}"


def _require(rule: Guaranteed, updates: Updates) -> None:
    short = rule.shortfall(len(updates.points))
    if short is not None:
        raise ConfigError(short)


def _check_f(rule: object, f: object) -> None:
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ConfigError(f"{type(rule).__name__}: f is a number of hostile clients, at least 0; got {f!r}")


def _check_then(rule: object, then: Rule) -> None:
    name = type(rule).__name__
    if isinstance(then, type) or not callable(then):
        got = f"the class {then.__name__}" if isinstance(then, type) else repr(then)
        raise ConfigError(f"{name}: then must be a rule such as GeometricMedian(), got {got}")
    if isinstance(then, Rooted):
        raise ConfigError(f"{name}: {then} compares clients with the root's own step, so nothing comes before it")

"""The form of a rule: what it sees of a round, what it may promise, and what it refuses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.spans import on_cores

BLOCK_VALUES = 2**17
"""A block of columns holds about this many values: a MiB in float64, so that it stays in the processor's cache."""
SPAN_BLOCKS = 64
"""So many blocks are one thread's at a time."""

Part = TypeVar("Part")


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

    def by_span(self, work: Callable[[Sequence[slice]], Part]) -> list[Part]:
        """Call ``work`` with the blocks of one span after another, a thread for each core; return what it returned.

        The spans follow from the shape of ``points`` alone, and the parts come in order of the columns: what is made
        of them has the same bits on any number of cores. Few columns are one span, and the caller's own thread's.
        """
        blocks = list(self.blocks())
        return on_cores(work, [blocks[start : start + SPAN_BLOCKS] for start in range(0, len(blocks), SPAN_BLOCKS)])


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


# ---- what a rule refuses --------------------------------------------------------------------------------------------


def require(rule: Guaranteed, updates: Updates) -> None:
    short = rule.shortfall(len(updates.points))
    if short is not None:
        raise ConfigError(short)


def too_few(rule: object, bound: str, least: int, num_clients: int) -> str | None:
    if num_clients >= least:
        return None
    return f"{rule} needs n >= {bound}, here at least {least} updates, and n = {num_clients}"


def check_f(rule: object, f: object) -> None:
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ConfigError(f"{type(rule).__name__}: f is a number of hostile clients, at least 0; got {f!r}")


def check_then(rule: object, then: Rule) -> None:
    name = type(rule).__name__
    if isinstance(then, type) or not callable(then):
        got = f"the class {then.__name__}" if isinstance(then, type) else repr(then)
        raise ConfigError(f"{name}: then must be a rule such as GeometricMedian(), got {got}")
    if isinstance(then, Rooted):
        raise ConfigError(f"{name}: {then} compares clients with the root's own step, so nothing comes before it")

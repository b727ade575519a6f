"""Folding admitted updates into one. The mean streams: it holds one running vector, however many clients there are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from roundelay.errors import EmptyRoundError
from roundelay.messages import Payload, Update
from roundelay.spans import in_spans

Weighting = Mapping[str, Literal["examples", "one"]]
"""Each vector that a client sends, and its averaging weight: the number of examples, or one."""


def starting_point(names: Iterable[str], lengths: Mapping[str, int], sent: Payload) -> Tensor:
    """Return what steps are measured from, of all uplink vectors end to end.

    These are the parameters as they were sent, not a copy, and zeros for any other vector.
    """
    params = sent.vectors["params"]
    parts = [params if name == "params" else params.new_zeros(lengths[name]) for name in names]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@dataclass(slots=True)
class RunningMean:
    """A weighted mean that needs no weights in advance: ``mean += (value - mean) * weight / weight_so_far``.

    Exact, to the bit, for one value and for identical values; ``sum(weight * value) / sum(weight)`` is not.
    """

    mean: Tensor | None = None
    weight: float = 0.0

    def add(self, value: Tensor, weight: float) -> None:
        self.weight += weight
        if self.mean is None:
            self.mean = torch.empty_like(value)
            in_spans(Tensor.copy_, self.mean, value)  # a copy, not 0 + value: keeps the sign of zero
        else:
            share = weight / self.weight
            in_spans(lambda mean, other: mean.lerp_(other, share), self.mean, value)


@dataclass(frozen=True, slots=True)
class Total:
    """What a round's updates of one group come to: per vector its mean and the weight behind it, and their number."""

    means: Mapping[str, Tensor]
    weights: Mapping[str, float]
    count: int

    def mean(self, name: str) -> Tensor:
        """Return the weighted mean of one uplink vector, of shape (length,). The caller may keep it, not change it."""
        return self.means[name]

    def sum(self, name: str) -> Tensor:
        """Return the plain weighted sum of one uplink vector, of shape (length,)."""
        return self.means[name] * self.weights[name]


class Folding(Protocol):
    """What takes in a round's admitted updates, in order of client id, and says what they come to."""

    def add(self, update: Update) -> None:
        """Take one update in. Its tensors stay the caller's."""

    @property
    def count(self) -> int: ...

    @property
    def gathered_bytes(self) -> int:
        """How many bytes are held because every update is needed at once; 0 where they stream."""

    def shortfall(self) -> str | None:
        """Return why these updates cannot become a new model, or None where they can."""

    def totals(self) -> dict[int, Total]:
        """Return one ``Total`` per group; raises EmptyRoundError where there is a shortfall."""

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return what the float and the integer buffers come to; raises as ``totals`` does."""

    def step(self) -> Tensor | None:
        """Return the step that the aggregate makes where the next round's fold needs it, else None."""

    @property
    def clip_norm(self) -> float | None:
        """The clip norm of the next round, where updates are clipped, else None."""


@dataclass(slots=True)
class Fold:
    """The running fold of one round. Whoever calls ``add`` keeps the order: float sums depend on it.

    Parameters and an algorithm's further vectors are averaged by group, each under its own weight; float buffers are a
    plain mean weighted by examples; integer buffers take the element-wise maximum, since a counter has no mean.
    ``kept``, where it is given, gets a copy of every update.
    """

    uplink: Weighting
    kept: list[Update] | None = None
    _groups: dict[int, dict[str, RunningMean]] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)
    _buffers: RunningMean = field(default_factory=RunningMean)
    _integers: Tensor | None = None

    def add(self, update: Update) -> None:
        if self.kept is not None:
            self.kept.append(replace(update, payload=update.payload.copy()))
        means = self._groups.setdefault(update.group, {name: RunningMean() for name in self.uplink})
        for name, by in self.uplink.items():
            means[name].add(update.payload.vectors[name], update.num_examples if by == "examples" else 1.0)
        self._counts[update.group] = self._counts.get(update.group, 0) + 1
        buffers, integers = update.payload.buffers, update.payload.integers
        if self._integers is None:
            self._buffers.add(buffers, update.num_examples)
            self._integers = integers.clone()
            return
        if buffers.numel():
            self._buffers.add(buffers, update.num_examples)
        if integers.numel():
            torch.maximum(self._integers, integers, out=self._integers)

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    @property
    def gathered_bytes(self) -> int:
        return 0

    def shortfall(self) -> str | None:
        return None if self._groups else "no update was admitted"

    def step(self) -> Tensor | None:
        return None

    @property
    def clip_norm(self) -> float | None:
        return None

    def totals(self) -> dict[int, Total]:
        """Return one ``Total`` per group.

        Raises:
            EmptyRoundError: no update was added.
        """
        if not self._groups:
            raise EmptyRoundError("no update was admitted, so there is nothing to average")
        return {
            group: Total(
                {name: mean for name, m in means.items() if (mean := m.mean) is not None},
                {name: m.weight for name, m in means.items()},
                self._counts[group],
            )
            for group, means in sorted(self._groups.items())
        }

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return the averaged float buffers and the integer buffers' maximum; raises EmptyRoundError as ``totals``
        does.
        """
        if self._buffers.mean is None or self._integers is None:
            raise EmptyRoundError("no update was admitted, so there are no buffers to average")
        return self._buffers.mean, self._integers

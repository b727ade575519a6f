"""A round's updates side by side, for a rule that needs every one of them; ``fold.py``'s mean needs one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roundelay.aggregators import Guaranteed, Rule, Updates, median, root_of, shortfall
from roundelay.errors import ConfigError, EmptyRoundError
from roundelay.fold import Fold, Total, Weighting, starting_point
from roundelay.messages import Payload, Update


@dataclass(slots=True)
class Gathered:
    """Holds ``capacity`` rows of all uplink vectors end to end, filled in the order of ``add``, until the rule has
    made one vector of them.

    Under a rule that promises something about hostile clients, float buffers take the median of each coordinate, and
    integer buffers the lower one; under any other they are the mean and the maximum that they are without a rule.
    """

    rule: Rule
    uplink: Weighting
    previous: Tensor
    last: Tensor
    capacity: int
    seed: int
    round: int
    attempt: int
    _lengths: Mapping[str, int]
    _itemsize: int
    _points: Tensor | None = None
    _clients: list[str] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)
    _beside: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _plain: Fold = field(default_factory=lambda: Fold({}))
    _groups: set[int] = field(default_factory=set)
    _aggregate: Tensor | None = None
    _step: Tensor | None = None
    _decided: bool = False
    _short: str | None = None

    @staticmethod
    def begin(
        rule: Rule, uplink: Weighting, lengths: Mapping[str, int], sent: Payload, last: Tensor | None, capacity: int,
        seed: int, round: int, attempt: int,
    ) -> "Gathered":  # fmt: skip
        """Prepare for a round in which ``sent`` was broadcast; ``last`` is the step of the round before, if any."""
        previous = starting_point(uplink, lengths, sent)
        return Gathered(
            rule, uplink, previous, torch.zeros_like(previous) if last is None else last, capacity, seed, round,
            attempt, {name: lengths[name] for name in uplink}, previous.itemsize,
        )  # fmt: skip

    def add(self, update: Update) -> None:
        if self._points is None:
            self._points = self.previous.new_empty(self.capacity, len(self.previous))
        row = torch.split(self._points[self.count], list(self._lengths.values()))
        for part, name in zip(row, self._lengths, strict=True):
            part.copy_(update.payload.vectors[name])
        self._clients.append(update.task.client)
        self._weights.append(float(update.num_examples))
        self._groups.add(update.group)
        if isinstance(self.rule, Guaranteed):
            self._beside.append((update.payload.buffers.clone(), update.payload.integers.clone()))
        else:
            self._plain.add(update)

    @property
    def count(self) -> int:
        return len(self._clients)

    @property
    def gathered_bytes(self) -> int:
        """How much memory the rows take, filled or not."""
        return self.capacity * sum(self._lengths.values()) * self._itemsize

    def shortfall(self) -> str | None:
        """Return why these updates cannot become a new model, or None. The first call applies the rule."""
        if not self._decided:
            self._decided, self._short = True, self._decide()
            if self._aggregate is not None:
                self._step = self._aggregate - self.previous
            # the round's outcome lives until the next one's is there: only what that needs stays in memory
            self._points, self.previous, self.last = None, self.previous.new_empty(0), self.previous.new_empty(0)
        return self._short

    def _decide(self) -> str | None:
        if self._points is None:
            return "no update was admitted"
        if len(self._groups) > 1:
            return f"the updates are of {len(self._groups)} groups, and {self.rule} speaks of one"
        root = root_of(self.rule)
        if root is not None and root not in self._clients:
            return f"{self.rule}: the root client did not answer"
        return shortfall(self.rule, self.count - (root is not None)) or self._apply(self._points[: self.count])

    def _apply(self, points: Tensor) -> str | None:
        updates = Updates(
            points, self.previous, self.last, self._clients, self._weights, self.seed, self.round, self.attempt
        )
        result = self.rule(updates)
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if not isinstance(result, Tensor) or result.shape != self.previous.shape:
            raise ConfigError(
                f"aggregator {_name(self.rule)} returned {shape}, expected a tensor {tuple(self.previous.shape)}"
            )
        if not torch.isfinite(result).all():
            return f"{_name(self.rule)} gave values that are NaN or infinite"
        # a row that the rule returned as it stands must not keep all others in memory
        self._aggregate = result.to(self.previous.dtype, copy=result.untyped_storage() is points.untyped_storage())
        return None

    def totals(self) -> dict[int, Total]:
        """Return one ``Total``: the aggregate for the mean, every client weighing one, whatever it claims.

        Raises:
            EmptyRoundError: the rule made no vector of these updates.
        """
        short = self.shortfall()
        if short is not None or self._aggregate is None:
            raise EmptyRoundError(f"there is no aggregate: {short}")
        parts = torch.split(self._aggregate, list(self._lengths.values()))
        means = dict(zip(self._lengths, parts, strict=True))
        (group,) = self._groups
        return {group: Total(means, dict.fromkeys(self._lengths, float(self.count)), self.count)}

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return what the float and the integer buffers come to."""
        if not isinstance(self.rule, Guaranteed):
            return self._plain.buffers()
        if not self._beside:
            raise EmptyRoundError("no update was admitted, so there are no buffers to average")
        floats, integers = (torch.stack(side) for side in zip(*self._beside, strict=True))
        return median(floats), median(integers)

    def step(self) -> Tensor | None:
        """Return the step that the aggregate makes, which the next round's rule will see as ``last``."""
        return self._step

    @property
    def clip_norm(self) -> float | None:
        return None


def _name(rule: Rule) -> str:
    return getattr(rule, "__name__", repr(rule))

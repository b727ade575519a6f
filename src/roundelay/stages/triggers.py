"""Whether an update is worth sending: rules that a client asks after training, before anything goes on the air.

What a client remembers for its rule (the vector that it sent last, for how long it has been silent) is memory like any
other: it comes with the verdict, and is pending until the server has counted the update, or the notice that there is
none. Before a client has sent anything, a rule takes it that it has sent a step of zero.

A rule of your own is a frozen dataclass with these two methods. What silence means to the server is not the rule's to
say: see ``Uplink``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.messages import Memory

__all__ = ["Always", "Lag", "MaxSilence", "SendOnDelta"]

SENT, SILENT = "trigger.sent", "trigger.silent"
"""Under these names a client's memory keeps the vector that it sent last, and its silent rounds since then."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a rule may know beside the update. ``round`` counts from 1.

    ``model_steps`` are the squared lengths of the last steps of the global model, the newest first: those that led to
    the version which the task began from. The server knows them and tells them with the task.
    """

    round: int
    memory: Memory = field(default_factory=dict)
    model_steps: Sequence[float] = ()

    @property
    def silent_rounds(self) -> int:
        """How many tasks in a row ended without an update."""
        return int(self.memory[SILENT]) if SILENT in self.memory else 0


class Trigger(Protocol):
    """``step`` (D,) is what training added to ``start`` (D,), the parameters that it began from."""

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool: ...

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        """Return what to remember of an update that is sent, for the next verdict; ``moment`` as it was in this one."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to send, why, and what changes in the client's memory once the server has counted it."""

    fires: bool
    why: str
    memory: Memory


def verdict(trigger: Trigger, step: Tensor, start: Tensor, moment: Moment) -> Verdict:
    """Ask a rule. An update that is not finite is sent, whatever the rule says: the server's guard is to hear of it."""
    if isinstance(trigger, Always):
        return Verdict(True, "always", {})
    name = type(trigger).__name__
    broken = not math.isfinite(_length(step))
    if broken or trigger.fires(step, start, moment):
        why = "not finite" if broken else name
        return Verdict(True, why, {**trigger.remembered(step, start, moment), SILENT: torch.tensor([0])})
    return Verdict(False, name, {SILENT: torch.tensor([moment.silent_rounds + 1])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """Send every update."""

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        return True

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOnDelta:
    """Send what differs by ``threshold`` or more from what was sent last (M. Miskowicz, Sensors 6, 2006).

    ``of`` says what is compared: the "step" of this round with the step that was sent, or the "point" that training
    ended at with the point that was sent. A "relative" threshold is a part of the new vector's length; one that is
    ``decaying`` is threshold / sqrt(round). ``compare`` "norms" takes the difference of the two lengths, as EventGraD
    does (S. Ghosh et al., 2021): it needs one number of memory, and does not see a vector that turns without growing.
    """

    threshold: float
    of: str = "step"
    relative: bool = False
    decaying: bool = False
    compare: str = "vectors"

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ConfigError(f"SendOnDelta: threshold must be a number of at least 0, got {self.threshold!r}")
        for name, known in (("of", ("step", "point")), ("compare", ("vectors", "norms"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"SendOnDelta: {name} must be one of {', '.join(map(repr, known))}, "
                                  f"got {getattr(self, name)!r}")  # fmt: skip

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        new = self._kept(start + step if self.of == "point" else step)
        first = self._kept(start if self.of == "point" else torch.zeros_like(step))
        bound = self.threshold / math.sqrt(moment.round) if self.decaying else self.threshold
        if self.relative and bound < math.inf:
            bound *= _length(new)
        return _length(new - moment.memory.get(SENT, first)) >= bound

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        return {SENT: self._kept(start + step if self.of == "point" else step)}

    def _kept(self, vector: Tensor) -> Tensor:
        return torch.tensor([_length(vector)], dtype=torch.float64) if self.compare == "norms" else vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Send where the update differs from the last one sent by more than the model moves by itself.

    T. Chen et al., "LAG: Lazily Aggregated Gradient", NeurIPS 2018, rule (7a): |g - g_sent|^2 >= 1/(a M)^2 sum over d
    of xi_d |theta(k+1-d) - theta(k-d)|^2. A step here is what the server averages, -a M g, so that a and M drop out:
    |step - sent|^2 >= sum over d of xi_d |model step d|^2, the newest first. All xi are ``xi`` / ``depth``. The server
    goes on with the last step of who is silent ("reuse").
    """

    xi: float = 0.8
    depth: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.xi, bool) or not isinstance(self.xi, int | float) or not 0 <= self.xi < math.inf:
            raise ConfigError(f"Lag: xi must be at least 0, got {self.xi!r}")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ConfigError(f"Lag: depth must be a whole number of at least 1, got {self.depth!r}")

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        changed = _length(step - moment.memory.get(SENT, torch.zeros_like(step)))
        return changed**2 >= self.xi / self.depth * sum(moment.model_steps[: self.depth])

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        return {SENT: step}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxSilence:
    """Let a rule decide, but send after ``rounds`` silent ones in a row, whatever it says."""

    rounds: int
    then: Trigger

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 0:
            raise ConfigError(f"MaxSilence: rounds must be a whole number of at least 0, got {self.rounds!r}")

    def fires(self, step: Tensor, start: Tensor, moment: Moment) -> bool:
        return moment.silent_rounds >= self.rounds or self.then.fires(step, start, moment)

    def remembered(self, step: Tensor, start: Tensor, moment: Moment) -> Memory:
        return self.then.remembered(step, start, moment)


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))

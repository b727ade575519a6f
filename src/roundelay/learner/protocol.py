"""The form of a learner, and what it is told."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.data.examples import Examples
from roundelay.layout import Bound
from roundelay.messages import Memory, Task

LossFunction = Callable[[Any, Any], Tensor]  # Any: whatever the user's model returns and the user's data holds


class Augment(Protocol):
    """Changes what is trained on, such as a random crop."""

    def __call__(self, inputs: Any, targets: Any, generator: torch.Generator) -> tuple[Any, Any]:  # Any: see Examples
        """Return a batch in place of that one, and change nothing in place: a batch may be a view of the data."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a learner may know beside model and data: the task, the job's seed, which fit of the task it is, and what it
    remembers of this client, as ``Fitted.memory`` said when the client's update last counted. All fits of a task find
    the same memory, and what the last one says is kept.
    """

    task: Task
    seed: int
    index: int = 0
    memory: Memory = field(default_factory=dict)

    def key(self, purpose: str) -> int:
        task = self.task
        return seeds.key(self.seed, task.round, task.attempt, task.client, self._purpose(purpose))

    def generator(self, purpose: str) -> torch.Generator:
        task = self.task
        return seeds.generator(self.seed, task.round, task.attempt, task.client, self._purpose(purpose))

    def shuffle(self, epoch: int) -> torch.Generator:
        """Return what shuffles a client's epoch, from 1: the same in whatever rounds the client trains on it."""
        return seeds.generator(self.seed, epoch, 0, self.task.client, self._purpose("shuffle"))

    def _purpose(self, purpose: str) -> str:
        return f"{purpose}-{self.index}" if self.index else purpose


@runtime_checkable
class Learner(Protocol):
    """What trains on a client: ``LocalSGD``, or your own object with these three."""

    @property
    def corrects(self) -> bool:
        """Whether a gradient correction is applied; an algorithm that needs one is refused at start where it is not."""

    @property
    def reports(self) -> Set[str]:
        """Return which of "num_steps", "lr_sum" and "a_norm" a fit reports (see ``Fitted``), as those that an algorithm
        needs are refused at start where they are not.
        """

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        """Train ``bound.module``, which already stands at ``ask.start``, on one client's examples."""


def on_device(value: Any, device: torch.device) -> Any:  # Any: a tensor, or whatever the user's data set yields
    return value.to(device) if isinstance(value, Tensor) and value.device != device else value

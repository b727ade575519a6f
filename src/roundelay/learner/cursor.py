"""Where a client stands in its data, for training that goes on where it stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from roundelay.messages import Memory

CURSOR = "cursor"
"""Under this name a learner's memory keeps it."""

EPOCH = "epoch"
"""Under this name a task's configuration says which epoch the cohort is in, where its members end it together."""

LEFT = "batches_left"
"""Under this name a client then tells how many batches of the epoch it has left."""


class Stretch(NamedTuple):
    """Examples ``start`` to ``stop`` of the shuffle of an epoch."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """``epoch`` counts from 1; ``done`` examples of its shuffle are trained on.

    Examples, not batches: so that a task with a batch size of its own goes on at the right place.
    """

    epoch: int = 1
    done: int = 0

    @staticmethod
    def read(memory: Memory) -> "Cursor":
        return Cursor(*memory[CURSOR].tolist()) if CURSOR in memory else Cursor()

    def memory(self) -> Memory:
        return {CURSOR: torch.tensor([self.epoch, self.done])}

    def left(self, num_examples: int, batch_size: int) -> int:
        """Return how many batches the epoch still has."""
        return max(0, -(-(num_examples - self.done) // batch_size))

    def ahead(self, num_examples: int, batch_size: int, num_batches: int, *, wraps: bool) -> Sequence[Stretch]:
        """Return what the next ``num_batches`` batches are made of; those of this epoch only, unless it ``wraps``.

        >>> Cursor(1, 4).ahead(10, 4, 3, wraps=True)
        [Stretch(epoch=1, start=4, stop=10), Stretch(epoch=2, start=0, stop=4)]
        """
        at, stretches = self, list[Stretch]()
        while num_batches:
            if not at.left(num_examples, batch_size):
                if not wraps:
                    break
                at = Cursor(at.epoch + 1)
            taken = min(num_batches, at.left(num_examples, batch_size))
            stretches.append(Stretch(at.epoch, at.done, min(num_examples, at.done + taken * batch_size)))
            at, num_batches = Cursor(at.epoch, stretches[-1].stop), num_batches - taken
        return stretches

"""The epoch of a whole cohort, where clients that average after every few batches begin and end it together.

Where a client stands in its data it alone knows: its cursor is part of its memory. It tells how many batches it has
left, and the server tells with every task which epoch it is of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from roundelay.data.ids import Without
from roundelay.intake import ClientReport
from roundelay.learner.cursor import LEFT
from roundelay.metrics import reported

(TOLD,) = reported({LEFT: 0.0})


@dataclass(frozen=True, slots=True)
class Epoch:
    """``number`` counts from 1; ``exhausted`` are the clients that have no batch left in it and wait for the others.

    ``when_exhausted`` is "stop", which ends the epoch for everybody as soon as one client has no batch left, or "skip",
    which ends it when nobody has one.
    """

    when_exhausted: str
    number: int = 1
    exhausted: frozenset[str] = frozenset()

    def left(self, clients: Sequence[str]) -> Sequence[str] | None:
        """Return those of ``clients`` that have batches left, or None where all have."""
        return Without(clients, self.exhausted) if self.exhausted else None

    def after(self, counted: Sequence[ClientReport], clients: Sequence[str]) -> "Epoch":
        """Return the epoch that the next round is of.

        ``counted`` tells of a round that led to a new model, and is empty for one that did not. Such a round ends the
        epoch if somebody waits: whoever never gets through, or is too few for a quorum, would keep all others waiting
        for ever.
        """
        empty = {r.client for r in counted if r.status in ("admitted", "silent") and r.metrics.get(TOLD) == 0}
        exhausted = self.exhausted | empty
        stops = self.when_exhausted == "stop" and exhausted
        stalls = not counted and exhausted
        if stops or stalls or len(exhausted) == len(clients):
            return Epoch(self.when_exhausted, self.number + 1)
        return replace(self, exhausted=exhausted)

"""A task on its way through the network: in which phase it is, and since when. Plain values, as a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from roundelay.messages import Task
from roundelay.simulation.delivery import Landed

Phase = Literal["away", "down", "computing", "up", "own", "wire"]
"""Waiting for the client to be there; receiving; computing; in the cell, or on a user's own way; behind the cell."""

DOING = {"away": "away", "down": "receiving the model", "computing": "computing", "up": "sending", "own": "sending"}


@dataclass(slots=True)
class Trip:
    """``since_ns`` is when the phase began. ``compute_ns`` and ``energy_j`` are what computing takes; ``down_bits`` is
    what the client receives, in the broadcast ``cast``. ``bits`` is what it sends, ``retransmitted_bits`` of them
    again; ``lost`` says why they will be of no use.
    """

    task: Task
    landed: Landed = field(repr=False)
    site: int = 0
    phase: Phase = "down"
    since_ns: int = 0
    compute_ns: int = 0
    energy_j: float = 0.0
    down_bits: int = 0
    cast: int | None = None
    bits: int = 0
    retransmitted_bits: int = 0
    kind: Literal["update", "skip"] = "update"
    lost: str = ""

    @property
    def computed_ns(self) -> int:
        """When computing ends, once it has begun."""
        return self.since_ns + self.compute_ns

    def snapshot(self) -> list[Any]:  # Any: numbers and text
        return [self.task.id, *(getattr(self, name) for name in KEPT)]

    @staticmethod
    def restored(kept: list[Any], task: Task, landed: Landed) -> "Trip":  # Any: see snapshot
        return Trip(task, landed, **dict(zip(KEPT, kept[1:], strict=True)))


KEPT = tuple(f.name for f in fields(Trip) if f.name not in ("task", "landed"))


def still_under_way(trips: Mapping[int, Trip], task_ids: list[int]) -> list[Trip]:
    return [trips[task_id] for task_id in task_ids if task_id in trips]

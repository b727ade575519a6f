"""How a run on real devices went: who was in time, in which order answers came. A replay keeps to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roundelay.load import Load
from roundelay.messages import Task, TaskKind

Ask = tuple[int, int, str, TaskKind]
"""What a client was asked: round, attempt, client, kind."""


def ask_of(task: Task) -> Ask:
    return task.round, task.attempt, task.client, task.kind


@dataclass(frozen=True, slots=True)
class End:
    """How a client's part ended: admitted, refused, lost or late; and why it was refused or lost."""

    status: str
    reason: str = ""
    traceback: str = ""


ADMITTED = End("admitted")


@dataclass(frozen=True, slots=True)
class Course:
    """``ends`` by what was asked, the last one where the same was asked again. ``told`` is whose answers a workflow was
    told of outside of rounds, in order; ``loads`` is what clients said of theirs, each time that they were asked.
    ``num_rounds`` were finished.
    """

    ends: Mapping[Ask, End]
    told: Sequence[Ask]
    num_rounds: int
    loads: Sequence[Mapping[str, Load]] = ()

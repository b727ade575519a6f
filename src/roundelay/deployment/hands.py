"""What does a device's tasks. Whoever talks to the server knows a ``Hands``, and nothing of models, data or scripts."""

from dataclasses import dataclass
from typing import Protocol

from roundelay.client.exchange import Answered
from roundelay.errors import RoundelayError
from roundelay.messages import Memory, Payload, Task


@dataclass(frozen=True, slots=True)
class Done:
    """A task's answer, whose own ``memory`` is empty, and beside it what the client would remember from then on, which
    never travels. An evaluation changes nothing: its ``memory`` is empty.
    """

    answered: Answered
    memory: Memory


class CannotDo(RoundelayError, RuntimeError):
    """A task that this device's own code failed at, for good; ``traceback`` is "" where nothing was raised."""

    def __init__(self, reason: str, traceback: str = "") -> None:
        super().__init__(reason)
        self.reason, self.traceback = reason, traceback


class Hands(Protocol):
    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        """Do a task, in whatever thread it is called from, one task at a time. An empty ``memory`` is that of a client
        that has none yet. The tensors of what it returns are valid until the next call.

        Raises:
            CannotDo: it failed, and failed again; or it was interrupted.
        """

    def interrupt(self) -> None:
        """Make a ``do`` that is under way end soon with ``CannotDo``; called from another thread."""

    def close(self) -> None:
        """Give back processes and memory; harmless when called twice."""

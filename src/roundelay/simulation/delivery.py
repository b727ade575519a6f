"""How tasks travel in virtual time: what is between the moment that a client is asked and that of its answer.

The federation lets clients train; a delivery says when things happen, and never what comes of them. Where nothing is
modelled but a duration, ``Durations`` is it; over a network, ``Air``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from roundelay.bookkeeping import Traced
from roundelay.errors import ConfigError
from roundelay.messages import Task
from roundelay.simulation.loop import NS, Event, VirtualLoop
from roundelay.trainer import Answer

Duration = Callable[[str, Task], float]
"""``duration(client, task)`` gives the simulated seconds from a task's dispatch to its answer's arrival."""

Landed = Callable[[Sequence[int]], None]
"""Hears of the tasks, by id, whose answers arrive at one moment."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a client sends when it has computed: how long the message is, and after how many nanoseconds it is there,
    where a user's own function says so.
    """

    bits: int
    duration_ns: int | None = None
    kind: Literal["update", "skip"] = "update"


class Ends(Protocol):
    """What a delivery asks of the federation."""

    def computed(self, task: Task) -> Sent | None:
        """Return what the client sends, waiting in real time until that is known; None where it has nothing to send."""

    def lost(self, task: Task, reason: str) -> None:
        """Note that an answer will not come, before the delivery says that the task has landed."""


class Delivery(Protocol):
    def attend(self, ends: Ends) -> None:
        """Say who answers for the clients; before anything else."""

    def dispatch(self, tasks: Sequence[Task], sent_bits: int, landed: Landed) -> Sequence[Task]:
        """Send a model of so many bits to the clients of these tasks, now. Return the tasks in the order in which their
        results will be needed, as far as that is known.
        """
        ...

    def restore(self, tasks: Sequence[tuple[Task, int]], state: Mapping[str, Any] | None, landed: Landed) -> list[Task]:
        """Go on with tasks that were under way, and what ``traced`` kept of them; return them like ``dispatch``."""
        ...

    def due_ns(self, task_id: int) -> int:
        """Return when a task's answer arrives, where that is known from the beginning, else 0."""
        ...

    def end(self, task_ids: Sequence[int]) -> None:
        """Say that nobody waits for these tasks any more: what is still under way is broken off."""

    def carried(self, answer: Answer) -> tuple[Answer, Sent]:
        """Return an answer as it arrives, and what it takes to send it."""
        ...

    def choose(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str] | None:
        """Return whom to ask, where a rule chooses, else None."""
        ...

    def there(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str]:
        """Return those who can be asked now, or ``count`` of them, drawn."""
        ...

    def counted(self, clients: Sequence[str]) -> None:
        """Hear whose updates became part of a model."""

    async def haul(self, edge: str, bits: int, up: bool) -> None:
        """Carry a model between an edge and the cloud."""

    def traced(self, number: int) -> Traced | None:
        """Close the account of a round; None where nothing keeps one."""
        ...


class Durations:
    """A task is one stretch of time, known when the client is asked."""

    def __init__(self, loop: VirtualLoop, duration: Duration | None) -> None:
        self._loop, self._duration = loop, duration
        self._landings: dict[int, tuple[int, Event, dict[int, Task]]] = {}  # by task: when, and who lands together

    def attend(self, ends: Ends) -> None: ...

    def dispatch(self, tasks: Sequence[Task], sent_bits: int, landed: Landed) -> Sequence[Task]:
        return self._launch([(task, self._loop.now_ns + self._duration_ns(task)) for task in tasks], landed)

    def restore(self, tasks: Sequence[tuple[Task, int]], state: Mapping[str, Any] | None, landed: Landed) -> list[Task]:
        here = [task for task, due_ns in tasks if due_ns <= self._loop.now_ns]
        if here:
            landed([task.id for task in here])
        later = sorted((pair for pair in tasks if pair[1] > self._loop.now_ns), key=lambda pair: (pair[1], pair[0].id))
        return [*here, *self._launch(later, landed)]

    def _launch(self, tasks: Sequence[tuple[Task, int]], landed: Landed) -> list[Task]:
        """Let what arrives at the same nanosecond arrive in the order of ``tasks``."""
        due: dict[int, dict[int, Task]] = {}
        for task, due_ns in tasks:
            due.setdefault(due_ns, {})[task.id] = task
        in_order = sorted(due.items())
        for ns, together in in_order:
            event = self._loop.at(ns, self._land, together, landed)
            self._landings.update(dict.fromkeys(together, (ns, event, together)))
        return [task for _, together in in_order for task in together.values()]

    def _land(self, together: Mapping[int, Task], landed: Landed) -> None:
        landed(list(together))

    def due_ns(self, task_id: int) -> int:
        return self._landings[task_id][0] if task_id in self._landings else 0

    def end(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            if task_id in self._landings:
                _, event, together = self._landings.pop(task_id)
                del together[task_id]
                if not together:
                    event.cancel()

    def carried(self, answer: Answer) -> tuple[Answer, Sent]:
        return answer, Sent(8 * answer.update.payload.num_bytes)

    def choose(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str] | None:
        return None

    def there(self, number: int, attempt: int, count: int, pool: Sequence[str]) -> Sequence[str]:
        return pool

    def counted(self, clients: Sequence[str]) -> None: ...

    async def haul(self, edge: str, bits: int, up: bool) -> None: ...

    def traced(self, number: int) -> Traced | None:
        return None

    def _duration_ns(self, task: Task) -> int:
        if self._duration is None:
            return 0
        seconds = float(self._duration(task.client, task))
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"duration of client {task.client!r} is {seconds!r}; expected seconds, at least 0")
        return round(seconds * NS)

"""What a workflow was told outside of rounds, in the journal's words: after a crash it is told the same, in order."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from roundelay.deployment.journal.journal import Journal
from roundelay.errors import JournalMismatch
from roundelay.load import Load

ARRIVAL, LOADS, FINISHED = "arrival", "loads", "finished"
"""Whose answer came (the task's id); how busy clients were (readings by client); and between, that a round was finished
(its number).
"""


class Told:
    def __init__(self, journal: Journal, number: int) -> None:
        """``number`` is that of the round that the workflow now goes on from."""
        self._journal = journal
        self._before: deque[tuple[str, Any]] = deque()  # Any: what JSON can say
        for answer in journal.recorded():
            self._before.append((answer.kind, answer.content))
            if self._before[-1] == (FINISHED, number):
                self._before.clear()

    @property
    def goes_on(self) -> bool:
        """Whether there is something that was told before a crash, and not yet again."""
        return bool(self._before)

    def again(self, kind: str) -> Any:  # Any: what JSON can say
        """Return what the workflow was told next.

        Raises:
            JournalMismatch: it was something of another kind.
        """
        was, content = self._before.popleft()
        if was != kind:
            raise self.astray()
        return content

    def note(self, kind: str, content: object) -> None:
        """Have it on disk before the workflow hears of it."""
        self._journal.record(kind, content)

    def astray(self) -> JournalMismatch:
        return JournalMismatch(
            f"the journal in {self._journal.folder} tells of another course than this workflow takes: was its code "
            "changed while the run stood still? Go on with the code of before"
        )


def written(loads: Mapping[str, Load]) -> dict[str, dict[str, float]]:
    """Return how loads are written down."""
    return {client: load.readings for client, load in loads.items()}


def read_loads(content: Any) -> dict[str, Load]:  # Any: what JSON can say
    return {client: Load.of(readings) for client, readings in content.items()}

"""What simulated clients remember between rounds, kept in the server's process.

A client's memory changes only when its update was folded: a refused or late client still stands where it stood. What a
checkpoint sees changes with the model's version, not before: a run that is interrupted between the two loses neither.
"""

from collections.abc import Mapping

from torch import Tensor

from roundelay.messages import Memory


class ClientMemory:
    def __init__(self, first: Memory) -> None:
        """``first`` is what a client remembers before its first task; it is shared, not copied per client."""
        self._first = first
        self._kept: dict[str, Memory] = {}
        self._committed: dict[str, Memory] = {}  # of the round that is not finished

    def of(self, client: str) -> Memory:
        return self._committed[client] if client in self._committed else self._kept.get(client, self._first)

    def commit(self, memories: Mapping[str, Memory]) -> None:
        self._committed.update(memories)

    def finish_round(self) -> None:
        """Make what was committed part of ``state``."""
        self._kept.update(self._committed)
        self._committed = {}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return every memory that differs from the first, as of the last finished round, for a checkpoint."""
        return {client: dict(memory) for client, memory in self._kept.items()}

    def restore(self, state: Mapping[str, Memory]) -> None:
        self._kept = dict(state)

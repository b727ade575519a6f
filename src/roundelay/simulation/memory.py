"""What simulated clients remember between rounds, kept in the server's process.

A client's memory changes only when its update was folded: a refused or late client still stands where it stood.
"""

from collections.abc import Mapping

from torch import Tensor

from roundelay.messages import Memory


class ClientMemory:
    def __init__(self, first: Memory) -> None:
        """``first`` is what a client remembers before its first task; it is shared, not copied per client."""
        self._first = first
        self._kept: dict[str, Memory] = {}

    def of(self, client: str) -> Memory:
        return self._kept.get(client, self._first)

    def commit(self, memories: Mapping[str, Memory]) -> None:
        self._kept.update(memories)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return every memory that differs from the first, for a checkpoint."""
        return {client: dict(memory) for client, memory in self._kept.items()}

    def restore(self, state: Mapping[str, Memory]) -> None:
        self._kept = dict(state)

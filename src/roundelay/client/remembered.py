"""What a client remembers between its tasks, taken apart: each part has its own names in the memory that travels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundelay.errors import ClientError
from roundelay.layout import Vectors
from roundelay.messages import Memory
from roundelay.trainer import LOCAL, PRIVATE, local_memory, private_buffers, private_memory

TENSOR, NUMBER = "state tensor ", "state number "
"""Before the names of the script's own state; numbers lie there as tensors of shape ()."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """The algorithm's part, what ``keep_local`` names, the buffers of a private model, the script's own state."""

    algorithms: Memory
    local: Vectors | None
    private: tuple[Tensor, Tensor] | None
    state: Mapping[str, Any]  # Any: tensors and numbers

    @staticmethod
    def read(memory: Memory) -> "Remembered":
        local = Vectors(*(memory[name] for name in LOCAL)) if LOCAL[0] in memory else None
        state: dict[str, Any] = {}
        for name, value in memory.items():
            if name.startswith(TENSOR):
                state[name.removeprefix(TENSOR)] = value
            elif name.startswith(NUMBER):
                state[name.removeprefix(NUMBER)] = value.item()
        ours = (*LOCAL, *PRIVATE)
        rest = {k: v for k, v in memory.items() if k not in ours and not k.startswith((TENSOR, NUMBER))}
        return Remembered(rest, local, private_buffers(memory), state)

    def memory(self, state: Memory) -> Memory:
        """Return all parts as one memory; ``state`` is the script's, as ``kept_state`` gives it."""
        local = {} if self.local is None else local_memory(self.local)
        return {**self.algorithms, **local, **private_memory(self.private), **state}


def kept_state(state: Mapping[str, Any], client: str) -> dict[str, Tensor]:
    """Return a script's state as its memory keeps it.

    Raises:
        ClientError: it holds what is neither a tensor nor a number; names it and the client.
    """
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | bool | int | float):
            raise ClientError(f"client {client!r}: fl.state[{name!r}] is a {type(value).__name__}; the state holds "
                              "tensors and numbers, by name")  # fmt: skip
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ClientError(f"client {client!r}: fl.state[{name!r}] is {value}; whole numbers have 64 bits here")
        if isinstance(value, Tensor):
            kept[TENSOR + name] = value.detach().cpu()
        else:
            dtype = torch.float64 if isinstance(value, float) else None
            kept[NUMBER + name] = torch.as_tensor(value, dtype=dtype)
    return kept

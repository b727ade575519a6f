"""The form of an attack: whom it strikes, and the three things it may do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay.data.examples import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """Who is struck: ``clients`` by id, or a ``fraction`` of all, drawn by the job's seed; by a fault given neither,
    everybody.

    Attacks of one fraction strike the same clients, so that they can be compared, and a smaller fraction some of them;
    faults draw their own. Several on one client act in the order in which they are listed.
    """

    fraction: float | None = None
    clients: Sequence[str] = ()


@runtime_checkable
class Lies(Protocol):
    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        """Return what the client sends in place of its step (D,), which stays as it is."""


@runtime_checkable
class Colludes(Protocol):
    def collude(self, honest: Tensor, num_hostile: int) -> Tensor:
        """Return the step (D,) that each of f hostile clients sends, knowing the honest ones, (h, D) with h >= 1."""


@runtime_checkable
class Poisons(Protocol):
    def poison(self, examples: Examples, draw: torch.Generator) -> Examples:
        """Return what the client trains on in place of its examples."""

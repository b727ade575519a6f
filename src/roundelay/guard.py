"""Admission of updates: one bad client loses its own update and nothing else.

The server knows every vector's name and length before an update arrives; a client's word counts for its metrics and,
up to a cap, for its weight. Checks read the update and touch nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.layout import Kind, Layout
from roundelay.messages import Task, Update


class Reason(Enum):
    """Why an update was refused."""

    WRONG_ROUND = "wrong round"
    DUPLICATE = "second answer"
    WRONG_VECTORS = "wrong vectors"
    WRONG_LENGTH = "wrong length"
    WRONG_DTYPE = "wrong dtype"
    NOT_FINITE = "not finite"
    BAD_WEIGHT = "bad weight"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A typed reason, and a message that names the client, what was expected, what came, and what to look for."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Guard:
    """Admit an update, or say why not. ``max_num_examples`` caps the weight that one client can claim."""

    max_num_examples: float = 10_000_000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_num_examples) and self.max_num_examples > 0):
            raise ConfigError(f"max_num_examples must be a positive number, got {self.max_num_examples!r}")

    def check(
        self, update: Update, task: Task, layout: Layout, expected: Mapping[str, int], answered: bool
    ) -> Refusal | None:
        """Return None to admit. ``task`` is what was asked, ``expected`` the length of each uplink vector by name."""
        who = f"client {update.task.client!r}"
        if update.task != task:
            asked, came = (
                f"round {task.round}, attempt {task.attempt}",
                f"round {update.task.round}, attempt {update.task.attempt}",
            )
            return Refusal(
                Reason.WRONG_ROUND, f"{who} answered task {update.task.id} ({came}); task {task.id} ({asked}) is open"
            )
        if answered:
            return Refusal(Reason.DUPLICATE, f"{who} has already answered task {task.id} of round {task.round}")
        return self._weight(who, update.num_examples) or self._vectors(who, update, layout, expected)

    def _weight(self, who: str, num_examples: object) -> Refusal | None:
        if isinstance(num_examples, bool) or not isinstance(num_examples, int | float):
            shown = f"{num_examples!r} ({type(num_examples).__name__})"
        elif not (math.isfinite(num_examples) and 0 < num_examples <= self.max_num_examples):
            shown = repr(num_examples)
        else:
            return None
        return Refusal(
            Reason.BAD_WEIGHT,
            f"{who} claims num_examples = {shown}; expected a number above 0 and up to {self.max_num_examples:g}",
        )

    def _vectors(self, who: str, update: Update, layout: Layout, expected: Mapping[str, int]) -> Refusal | None:
        payload = update.payload
        if payload.vectors.keys() != expected.keys():
            came, want = sorted(payload.vectors), sorted(expected)
            return Refusal(Reason.WRONG_VECTORS, f"{who} sent vectors {came}, the algorithm expects {want}")
        floats = [(name, payload.vectors[name], length) for name, length in expected.items()]
        floats.append(("buffers", payload.buffers, layout.length(Kind.FLOAT_BUFFER)))
        for name, vector, length in (*floats, ("integers", payload.integers, layout.length(Kind.INTEGER_BUFFER))):
            if vector.shape != (length,):
                return Refusal(
                    Reason.WRONG_LENGTH,
                    f"{who}: vector {name!r} has shape {tuple(vector.shape)}, the model has ({length},); "
                    "was the model changed on the client?",
                )
            want_dtype = torch.int64 if name == "integers" else layout.dtype
            if vector.dtype is not want_dtype:
                return Refusal(
                    Reason.WRONG_DTYPE, f"{who}: vector {name!r} has dtype {vector.dtype}, expected {want_dtype}"
                )
        for name, vector, _ in floats:
            if not all_finite(vector):
                bad = int((~torch.isfinite(vector)).sum())
                return Refusal(
                    Reason.NOT_FINITE,
                    f"{who}: vector {name!r} has {bad} of {vector.numel()} values NaN or infinite: did it diverge?",
                )
        return None


def all_finite(vector: Tensor) -> bool:
    """Tell whether every value is finite, in one pass and without a mask.

    A NaN or an infinity makes the sum NaN or infinite; only when finite values overflow their sum is the slow look
    needed.
    """
    return math.isfinite(vector.sum().item()) or bool(torch.isfinite(vector).all())

"""Admission of updates: one bad client loses its own update and nothing else.

The server knows every vector's name and length before an update arrives; a client's word counts for its metrics and,
up to a cap, for its weight. Checks read the update and touch nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.layout import Kind, Layout
from roundelay.layout.travel import forms
from roundelay.messages import Payload, Task, Update
from roundelay.spans import in_spans


class Reason(Enum):
    """Why an update was refused."""

    MALFORMED = "malformed"
    WRONG_ROUND = "wrong round"
    DUPLICATE = "second answer"
    WRONG_VECTORS = "wrong vectors"
    WRONG_LENGTH = "wrong length"
    WRONG_DTYPE = "wrong dtype"
    NOT_FINITE = "not finite"
    BAD_WEIGHT = "bad weight"
    UNKNOWN_GROUP = "unknown group"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A typed reason, and a message that names the client, what was expected, what came, and what to look for."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Guard:
    """Admit an update, or say why not. ``max_num_examples`` caps the weight that one client can claim."""

    max_num_examples: float = 10_000_000.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_num_examples) and self.max_num_examples > 0):
            raise ConfigError(f"max_num_examples must be a positive number, got {self.max_num_examples!r}")

    def check(self, update: Update, task: Task, expected: "Expected", answered: bool) -> Refusal | None:
        """Return None to admit. ``task`` is what was asked, ``answered`` whether it has been answered before."""
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
        return (
            self._weight(who, update.num_examples)
            or _group(who, update.group, expected.num_groups)
            or _vectors(who, update.payload, expected)
        )

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


@dataclass(frozen=True, slots=True)
class Expected:
    """What the server knows of every update beforehand: the length and dtype of each vector, and how many models it
    keeps. ``own`` are the dtypes of those vectors that are not of the model's float ``dtype``.
    """

    vectors: Mapping[str, int]
    num_buffers: int
    num_integers: int
    dtype: torch.dtype
    num_groups: int = 1
    own: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """How many bytes the vectors of one update have."""
        floats = sum(length * self.dtype_of(name).itemsize for name, length in self.vectors.items())
        return floats + self.num_buffers * self.dtype.itemsize + self.num_integers * torch.int64.itemsize

    def dtype_of(self, name: str) -> torch.dtype:
        return self.own.get(name, self.dtype)

    @staticmethod
    def of(layout: Layout, lengths: Mapping[str, int], num_groups: int = 1, encoded: bool = False) -> "Expected":
        """``lengths`` are those of the algorithm's uplink vectors, by name. What comes ``encoded`` is looked at once it
        is decoded, all of it in the model's float dtype.
        """
        num_buffers, num_integers = layout.length(Kind.FLOAT_BUFFER), layout.length(Kind.INTEGER_BUFFER)
        if encoded:
            return Expected(lengths, num_buffers, num_integers, layout.dtype, num_groups)
        found = forms(layout, lengths)
        own = {name: dtype for name, (_, dtype) in found.items()}
        vectors = {name: length for name, (length, _) in found.items()}
        return Expected(vectors, num_buffers, num_integers, layout.dtype, num_groups, own)


def _group(who: str, group: object, num_groups: int) -> Refusal | None:
    if isinstance(group, int) and not isinstance(group, bool) and 0 <= group < num_groups:
        return None
    known = f"a whole number from 0 to {num_groups - 1}" if num_groups > 1 else "0, as the algorithm keeps one model"
    return Refusal(Reason.UNKNOWN_GROUP, f"{who} trained the model of group {group!r}; expected {known}")


def _vectors(who: str, payload: Payload, expected: Expected) -> Refusal | None:
    if payload.vectors.keys() != expected.vectors.keys():
        came, want = sorted(payload.vectors), sorted(expected.vectors)
        return Refusal(Reason.WRONG_VECTORS, f"{who} sent vectors {came}, the algorithm expects {want}")
    floats = [(name, payload.vectors[name], length) for name, length in expected.vectors.items()]
    floats.append(("buffers", payload.buffers, expected.num_buffers))
    for name, vector, length in (*floats, ("integers", payload.integers, expected.num_integers)):
        if vector.shape != (length,):
            return Refusal(
                Reason.WRONG_LENGTH,
                f"{who}: vector {name!r} has shape {tuple(vector.shape)}, the model has ({length},); "
                "was the model changed on the client?",
            )
        dtype = torch.int64 if name == "integers" else expected.dtype_of(name)
        if vector.dtype is not dtype:
            return Refusal(Reason.WRONG_DTYPE, f"{who}: vector {name!r} has dtype {vector.dtype}, expected {dtype}")
    for name, vector, length in floats:
        if length and not all_finite(vector):
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
    return all(in_spans(_finite, vector.flatten()))


def _finite(part: Tensor) -> bool:
    return math.isfinite(part.sum().item()) or bool(torch.isfinite(part).all())

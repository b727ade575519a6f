"""What crosses a process: frozen values. Tensors in them belong to the sender until it hears that they were folded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from torch import Tensor

Config = Mapping[str, bool | int | float | str]
TaskKind = Literal["train", "evaluate", "submit", "load"]
Memory = Mapping[str, Tensor]
"""What a client remembers between its tasks: named vectors, kept by the framework, not by the algorithm."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Values that travel: an algorithm's named vectors, and the buffers, which the framework carries beside them.

    ``vectors`` are float, each of shape (length,); ``buffers`` is the float buffers' vector, ``integers`` is int64.
    """

    vectors: Mapping[str, Tensor]
    buffers: Tensor
    integers: Tensor

    @property
    def num_bytes(self) -> int:
        """The length of the raw tensor bytes, which is what is sent where no codec is set."""
        return sum(v.nbytes for v in self.vectors.values()) + self.buffers.nbytes + self.integers.nbytes

    def copy(self) -> "Payload":
        """Return the same values in tensors of their own: answers hold theirs until they are released only."""
        vectors = {name: vector.clone() for name, vector in self.vectors.items()}
        return Payload(vectors, self.buffers.clone(), self.integers.clone())


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work for one client. ``id`` is unique within a run; ``round`` counts from 1 and names the model
    version that the work starts from; ``attempt`` counts the draws of the round; ``config`` overrides learner
    settings for this task. "submit" asks for the model that the client would show to others: without one of its own, it
    trains once more. "load" asks a real device how busy it is.
    """

    id: int
    client: str
    round: int
    attempt: int = 0
    kind: TaskKind = "train"
    config: Config = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """A client's answer to a training task. Nothing in it is believed before ``Guard`` admitted it.

    ``num_examples`` is the weight that the client claims; ``group`` names the model that was trained where an algorithm
    keeps several. ``metrics`` are scalars such as the mean training loss. A ``silent`` one says that its client has
    nothing to send, and has no vectors; a ``fresh`` one, that its client goes on from nothing that it has sent before.
    """

    task: Task
    payload: Payload
    num_examples: float
    group: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    silent: bool = False
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """A client that gave no answer: it crashed twice, vanished, or its own code raised. A value, not an exception."""

    task: Task
    reason: str
    traceback: str = ""


class ParamsType(StrEnum):
    """Whether an ``FLModel`` holds parameters, or their difference to those that were received."""

    FULL = "FULL"
    DIFF = "DIFF"

    @classmethod
    def _missing_(cls, value: object) -> "ParamsType | None":
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class FLModel:
    """A model as user code sees it: named tensors and what belongs to them.

    ``params`` is a state dict, or with ``params_type`` "DIFF" what was added to the received one; None where only
    ``metrics`` are sent. ``num_examples`` is the averaging weight; ``meta`` anything else that user code wants to pass
    on: of it, the framework reads "NUM_STEPS_CURRENT_ROUND", the number of optimiser steps.

    ``current_round`` counts from ``start_round``, which is 0: the round that the server's tables call 1 comes first.
    """

    params: Mapping[str, Any] | None = None  # Any: tensors, or arrays of any kind
    params_type: ParamsType = ParamsType.FULL
    num_examples: float | None = None
    metrics: Mapping[str, object] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)  # Any: users put their own values here
    current_round: int | None = None
    total_rounds: int | None = None
    start_round: int = 0

    def __post_init__(self) -> None:
        """Take what scripts write: "diff" for the type, None for nothing."""
        object.__setattr__(self, "params_type", ParamsType(self.params_type or ParamsType.FULL))
        object.__setattr__(self, "metrics", self.metrics or {})
        object.__setattr__(self, "meta", self.meta or {})

"""What a script and the agent beside it say to each other, as frames.

    the script           the agent            meaning
    hello                                     I am here
                         welcome              who you are, what you take part in: a ``Site``
    waiting                                   give me something to do
                         task                 a ``Task`` with the payload and what this client remembers
    scalar                                    a number for the tracker, at any time
    answer                                    an ``Answered``
                         end                  nothing is left to do
    failed                                    the script raised; its traceback

The conversation is the same whether the agent is the simulator or a device's own. An answer's values are the client's
word: whoever reads one believes no more than its form.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roundelay.errors import WireError
from roundelay.header import DTYPE_NAMES, DTYPES
from roundelay.layout import Kind, Layout, Scope, Spec
from roundelay.messages import Memory, Payload, Task
from roundelay.metrics import Rows
from roundelay.wire import Frame

BUFFERS, INTEGERS = "buffers", "integers"
VECTOR, MEMORY, ROWS = "vector ", "memory ", "rows "
"""Prefixes of tensor names, so that an algorithm may call its vectors what it likes."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a script is told when it begins. ``algorithm`` is the table that describes it; ``config`` is for the
    script's own eyes, its part of the data under "partition".
    """

    name: str
    job_id: str
    seed: int
    num_rounds: int
    algorithm: Mapping[str, Any]  # Any: what TOML can hold
    layout: Layout
    config: Mapping[str, Any]

    def frame(self) -> Frame:
        specs = [
            [s.name, list(s.shape), DTYPE_NAMES[s.dtype], s.kind.value, list(s.aliases), s.scope.value, s.digest]
            for s in self.layout.specs
        ]
        fields = {
            "name": self.name, "job_id": self.job_id, "seed": self.seed, "num_rounds": self.num_rounds,
            "algorithm": self.algorithm, "dtype": DTYPE_NAMES[self.layout.dtype], "specs": specs, "config": self.config,
        }  # fmt: skip
        return Frame("welcome", fields, {})

    @staticmethod
    def read(frame: Frame) -> "Site":
        fields = dict(frame.fields)
        specs = tuple(
            Spec(name, tuple(shape), _dtype_of(dtype), Kind(kind), tuple(aliases), Scope(scope), digest)
            for name, shape, dtype, kind, aliases, scope, digest in fields.pop("specs")
        )
        layout = Layout(specs, _dtype_of(fields.pop("dtype")))
        return Site(layout=layout, **fields)


def task_frame(task: Task, payload: Payload, memory: Memory) -> Frame:
    fields = {
        "id": task.id, "client": task.client, "round": task.round, "attempt": task.attempt, "kind": task.kind,
        "config": dict(task.config),
    }  # fmt: skip
    return Frame("task", fields, {**_tensors(payload), **_prefixed(MEMORY, memory)})


def read_task(frame: Frame) -> tuple[Task, Payload, Memory]:
    """Return what a frame of kind "task" holds. The tensors are the frame's own."""
    return Task(**frame.fields), _payload(frame), _named(MEMORY, frame)


def model_frame(payload: Payload) -> Frame:
    """Return a payload by itself, as it is fetched by devices that were offered a task."""
    return Frame("model", {}, _tensors(payload))


def read_model(frame: Frame) -> Payload:
    """Return what ``model_frame`` was given. The tensors are the frame's own.

    Raises:
        WireError: it is another kind of frame, or lacks a vector.
    """
    if frame.kind != "model":
        raise WireError(f"expected a frame of kind 'model', got {frame.kind!r}")
    return _payload(frame)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a script came to. An evaluation has no ``payload``; ``weighted`` says that the script told its number of
    examples, which counts as 1 where it did not. ``silent`` and ``fresh`` are those of an ``Update``, ``rows`` those of
    measures of whole sets.
    """

    task_id: int
    num_examples: float
    weighted: bool
    metrics: Mapping[str, float]
    payload: Payload | None = None
    memory: Memory = field(default_factory=dict)
    group: int = 0
    silent: bool = False
    fresh: bool = False
    rows: Rows = field(default_factory=dict)

    def frame(self) -> Frame:
        fields = {
            "task_id": self.task_id, "num_examples": self.num_examples, "weighted": self.weighted,
            "metrics": dict(self.metrics), "group": self.group, "trained": self.payload is not None,
        }  # fmt: skip
        # a script never says either
        fields |= {name: True for name, said in (("silent", self.silent), ("fresh", self.fresh)) if said}
        tensors = _tensors(self.payload) if self.payload is not None else {}
        return Frame("answer", fields, {**tensors, **_prefixed(MEMORY, self.memory), **_prefixed(ROWS, self.rows)})

    @staticmethod
    def read(frame: Frame) -> "Answered":
        """Read an answer.

        Raises:
            WireError: it has not the form of one; says which field.
        """
        fields = frame.fields
        for name, kind in FORM.items():
            value = fields.get(name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise WireError(f"an answer's {name!r} is {value!r}; expected {kind}")
        for name, value in fields["metrics"].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WireError(f"an answer's metric {name!r} is {value!r}; expected a number")
        return Answered(
            fields["task_id"],
            float(fields["num_examples"]),
            fields["weighted"],
            {name: float(value) for name, value in fields["metrics"].items()},
            _payload(frame) if fields["trained"] else None,
            _named(MEMORY, frame),
            fields["group"],
            fields.get("silent") is True,
            fields.get("fresh") is True,
            _named(ROWS, frame),
        )


FORM = {"task_id": int, "num_examples": int | float, "weighted": bool, "metrics": dict, "group": int, "trained": bool}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number that a script logs: ``step`` counts whatever the script counts."""

    name: str
    value: float
    step: int

    def frame(self) -> Frame:
        return Frame("scalar", {"name": self.name, "value": self.value, "step": self.step}, {})

    @staticmethod
    def read(frame: Frame) -> "Scalar":
        name, value, step = (frame.fields.get(key) for key in ("name", "value", "step"))
        if not isinstance(name, str) or not isinstance(value, int | float) or not isinstance(step, int):
            raise WireError(f"a logged number is {name!r}, {value!r}, {step!r}; expected a name, a number, a step")
        if not -(2**63) <= step < 2**63:
            raise WireError(f"a logged number's step is {step}, which no table holds")
        return Scalar(name, float(value) if math.isfinite(value) else math.nan, step)


def _tensors(payload: Payload) -> dict[str, Tensor]:
    return {**_prefixed(VECTOR, payload.vectors), BUFFERS: payload.buffers, INTEGERS: payload.integers}


def _payload(frame: Frame) -> Payload:
    for name in (BUFFERS, INTEGERS):
        if name not in frame.tensors:
            raise WireError(f"a {frame.kind} lacks the vector {name!r}")
    return Payload(_named(VECTOR, frame), frame.tensors[BUFFERS], frame.tensors[INTEGERS])


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _named(prefix: str, frame: Frame) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in frame.tensors.items() if name.startswith(prefix)}


def _dtype_of(name: object) -> torch.dtype:
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"{name!r} is no dtype of a model's tensors")
    return dtype

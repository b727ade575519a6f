"""The form of a federated algorithm: one file per paper, both halves, methods in the order in which an update travels.

Shapes: every vector is (..., D); a per-client number is a float, or a tensor (C, 1) for a stack of clients, so that the
same text serves one client and many. An algorithm sees parameters only; buffers travel beside it.
"""

import math
from collections.abc import Callable, Generator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory

Scalar = float | Tensor
"""One number a client: a float, or (C, 1) for a stack of clients. Both broadcast against vectors."""


def per_client(number: Scalar, like: Tensor) -> Tensor:
    """Return one number a client as a vector to send: (..., 1), of the dtype and device of ``like`` (..., D)."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).expand(*like.shape[:-1], 1)


State = Mapping[str, Tensor]
"""The server's named tensors, "params" among them. Never changed in place: a new version is a new mapping."""

Correct = Callable[[Tensor, Tensor], None]
"""``correct(grad, params)`` changes ``grad`` in place before each optimiser step. Both are (..., D)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The client half asks for local training that begins at ``start`` (..., D).

    ``needs`` names the numbers of ``Fitted`` (those in ``NUMBERS``) without which the algorithm means nothing: a run
    whose learner does not report them is refused at start. ``pull`` says how strongly ``correct`` draws back to
    ``start`` (the mu of a proximal term), which changes ``a_norm`` and nothing else. A ``private`` fit trains a model
    that stays on the client: its buffers are kept with the client's memory, and those that travel stay as they were.
    """

    start: Tensor
    correct: Correct | None = None
    needs: Set[str] = frozenset()
    pull: float = 0.0
    private: bool = False


@dataclass(frozen=True, slots=True)
class Losses:
    """The client half asks what each of ``models`` (K, D) costs: the training loss, meaned over the client's examples.

    The answer is a tensor (K,), or (C, K) for a stack of clients, on the models' device. It is computed in evaluation
    mode: a model's loss is a number, not a draw of dropout, and no running statistic moves. Buffers are those received,
    or those that the fit before left.
    """

    models: Tensor


@dataclass(frozen=True, slots=True)
class Fitted:
    """What local training came to.

    ``params`` (..., D) belongs to the algorithm, which may overwrite it. The next three are NaN where a user's own loop
    did not tell, and where they mean nothing. ``lr_sum`` is the sum of the learning rates of plain gradient steps:
    (start - params) / lr_sum is their mean gradient. ``a_norm`` is the L1 norm of the vector a with which start -
    params = lr * sum of a_k * gradient_k: the number of steps for plain SGD, more with momentum, less with a pull.
    ``memory`` is what the learner will remember, and no affair of the algorithm's; what it does not name stays as it
    was.
    """

    params: Tensor
    num_examples: Scalar
    num_steps: Scalar = math.nan
    lr_sum: Scalar = math.nan
    a_norm: Scalar = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


NUMBERS: Mapping[str, str] = {
    "num_steps": "the number of optimiser steps; LocalSGD counts them",
    "lr_sum": "the sum of the learning rates of plain gradient steps; LocalSGD reports it with optimizer 'SGD', "
    "momentum 0 and no optimizer_args",
    "a_norm": "how much of the gradients is in the end point; LocalSGD reports it with optimizer 'SGD', with or "
    "without momentum, and no optimizer_args",
}
"""The numbers of ``Fitted`` that not every learner knows, and who does."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client half ends with: vectors to send (those of ``uplink``), what to remember once they are folded, the
    weight, and the group whose model was trained."""

    vectors: Mapping[str, Tensor]
    num_examples: Scalar
    memory: Memory = field(default_factory=dict)
    group: int | Tensor = 0


ClientHalf = Generator[Fit | Losses, Any, Reply]  # Any: a Fit is answered by a Fitted, Losses by a Tensor
"""A generator that asks for work. Whoever drives it decides how the work is done: a worker's learner, or a user's own
loop.
"""


class Algorithm(Protocol):
    """Both halves of a federated algorithm, in the order in which an update travels.

    A frozen dataclass serves best: its fields are the algorithm's settings.
    """

    @property
    def uplink(self) -> Weighting:
        """Return the vectors that a client sends, each with its averaging weight."""

    def init(self, params: Tensor, num_clients: int) -> State:
        """Return the first state; ``params`` (D,) are the initial parameters."""

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        """Return the vectors that every client of a round receives."""

    def first_memory(self, params: Tensor) -> Memory:
        """Return what a client remembers before its first task; empty for a stateless algorithm."""

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        """Run on the client. Neither ``received`` nor ``memory`` may be changed in place."""

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        """Make the server's step from a round's totals, by group (0 where the algorithm keeps one model)."""


PersonalHalf = Generator[Losses, Tensor, Tensor]
"""A generator that may ask for losses on the client's training examples, and ends with parameters (D,)."""


@runtime_checkable
class Personalised(Protocol):
    """An algorithm that gives every client a model of its own has this method too: where clients evaluate on their own
    data, it is that model which is measured.
    """

    def personal(self, received: Mapping[str, Tensor], memory: Memory) -> PersonalHalf:
        """Return the parameters that this client would use, from what a round's clients receive and what it
        remembers."""


@runtime_checkable
class Grouped(Protocol):
    """An algorithm that keeps several models has this property too: a reply's group is one of 0 to num_groups - 1."""

    @property
    def num_groups(self) -> int: ...


def num_groups(algorithm: Algorithm) -> int:
    return algorithm.num_groups if isinstance(algorithm, Grouped) else 1


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run of an algorithm will need: the length of each uplink vector, whether a fit asks for a gradient
    correction, which numbers it needs (of ``NUMBERS``), whether a client trains a private model or asks for losses, and
    how many bytes the algorithm's part of a client's memory takes."""

    lengths: Mapping[str, int]
    corrects: bool
    needs: Set[str]
    private: bool
    losses: bool
    memory_bytes: int


def rehearse(algorithm: Algorithm, params: Tensor, num_clients: int) -> Rehearsal:
    """Run an algorithm's client half once with a fit that trains nothing, so that the server knows what is to come.

    Raises:
        ConfigError: the reply does not hold the vectors that ``uplink`` declares.
    """
    state = algorithm.init(params, num_clients)
    client = algorithm.client(algorithm.broadcast(state), algorithm.first_memory(params))
    corrects, needs, private, losses = False, set[str](), False, False
    try:
        ask = next(client)
        while True:
            if isinstance(ask, Losses):
                losses = True
                ask = client.send(torch.ones_like(ask.models[..., 0]))
                continue
            corrects = corrects or ask.correct is not None
            needs |= ask.needs
            private = private or ask.private
            ask = client.send(Fitted(ask.start.clone(), 1.0, 1.0, 1.0, 1.0))
    except StopIteration as stop:
        reply: Reply = stop.value
    name = type(algorithm).__name__
    if reply.vectors.keys() != algorithm.uplink.keys():
        raise ConfigError(f"{name} declares the uplink {sorted(algorithm.uplink)} but sends {sorted(reply.vectors)}")
    lengths = {name: vector.numel() for name, vector in reply.vectors.items()}
    memory_bytes = sum(v.nbytes for v in reply.memory.values())
    return Rehearsal(lengths, corrects, frozenset(needs), private, losses, memory_bytes)

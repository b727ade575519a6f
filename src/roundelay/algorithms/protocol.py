"""The form of a federated algorithm: one file per paper, both halves, methods in the order in which an update travels.

Shapes: every vector is (..., D); a per-client number is a float, or a tensor (C, 1) for a stack of clients, so that the
same text serves one client and many. An algorithm sees parameters only; buffers travel beside it.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.fold import Total, Uplink
from roundelay.messages import Memory

Scalar = float | Tensor
"""One number a client: a float, or (C, 1) for a stack of clients. Both broadcast against vectors."""

State = Mapping[str, Tensor]
"""The server's named tensors, "params" among them. Never changed in place: a new version is a new mapping."""

Correct = Callable[[Tensor, Tensor], None]
"""``correct(grad, params)`` changes ``grad`` in place before each optimiser step. Both are (..., D)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The client half asks for local training that begins at ``start`` (..., D)."""

    start: Tensor
    correct: Correct | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """What local training came to.

    ``params`` (..., D) belongs to the algorithm, which may overwrite it. ``lr_sum`` is the sum of the steps' learning
    rates; it and ``num_steps`` are NaN where a user's own loop did not tell.
    """

    params: Tensor
    num_examples: Scalar
    num_steps: Scalar
    lr_sum: Scalar
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client half ends with: vectors to send (those of ``uplink``), what to remember once they are folded, the
    weight, and the group whose model was trained."""

    vectors: Mapping[str, Tensor]
    num_examples: Scalar
    memory: Memory = field(default_factory=dict)
    group: int = 0


ClientHalf = Generator[Fit, Fitted, Reply]
"""A generator that asks for work. Whoever drives it decides how the work is done: a worker's learner, or a user's own
loop.
"""


class Algorithm(Protocol):
    """Both halves of a federated algorithm, in the order in which an update travels.

    A frozen dataclass serves best: its fields are the algorithm's settings.
    """

    @property
    def uplink(self) -> Uplink:
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


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a run of an algorithm will need: the length of each uplink vector, whether a fit asks for a gradient
    correction, and how many bytes a client remembers."""

    lengths: Mapping[str, int]
    corrects: bool
    memory_bytes: int


def rehearse(algorithm: Algorithm, params: Tensor, num_clients: int) -> Rehearsal:
    """Run an algorithm's client half once with a fit that trains nothing, so that the server knows what is to come.

    Raises:
        ConfigError: the reply does not hold the vectors that ``uplink`` declares.
    """
    state = algorithm.init(params, num_clients)
    client = algorithm.client(algorithm.broadcast(state), algorithm.first_memory(params))
    corrects = False
    try:
        ask = next(client)
        while True:
            corrects = corrects or ask.correct is not None
            ask = client.send(Fitted(ask.start.clone(), 1.0, 1.0, 1.0))
    except StopIteration as stop:
        reply: Reply = stop.value
    name = type(algorithm).__name__
    if reply.vectors.keys() != algorithm.uplink.keys():
        raise ConfigError(f"{name} declares the uplink {sorted(algorithm.uplink)} but sends {sorted(reply.vectors)}")
    lengths = {name: vector.numel() for name, vector in reply.vectors.items()}
    return Rehearsal(lengths, corrects, sum(v.nbytes for v in reply.memory.values()))

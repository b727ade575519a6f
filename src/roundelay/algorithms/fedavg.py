"""Federated averaging, and its proximal variant.

FedAvg: H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", AISTATS 2017, Algorithm 1. The server learning rate: S. Reddi et al., "Adaptive
Federated Optimization", ICLR 2021, Algorithm 1 with a plain gradient step as the server's optimiser.

FedProx: T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous
Networks", MLSys 2020, eq. 2: every client minimises F_k(w) + mu/2 * ||w - w_t||^2, whose gradient adds mu * (w - w_t).

    w_t      received["params"]      the global model of the round
    w_k      end.params              the client's end point, which is what travels
    n_k      end.num_examples        the client's weight
    mu       FedProx.mu
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay.algorithms.protocol import ClientHalf, Correct, Fit, Fitted, Reply, State
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Average the clients' end points, weighted by examples; ``server_lr`` scales the step from the old model to the
    mean.
    """

    server_lr: float = 1.0
    uplink: ClassVar[Weighting] = {"params": "examples"}

    def __post_init__(self) -> None:
        require("server_lr", self.server_lr, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        end: Fitted = yield Fit(received["params"])
        return Reply({"params": end.params}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        return {"params": server_step(state["params"], totals[0].mean("params"), self.server_lr)}


@dataclass(frozen=True, slots=True)
class FedProx:
    """FedAvg whose clients are held near the global model by mu/2 times the squared distance to it."""

    mu: float
    server_lr: float = 1.0
    uplink: ClassVar[Weighting] = {"params": "examples"}

    def __post_init__(self) -> None:
        require("mu", self.mu, at_least=0)
        require("server_lr", self.server_lr, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start = received["params"]
        end: Fitted = yield Fit(start, correct=pull_towards(start, self.mu))
        return Reply({"params": end.params}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        return {"params": server_step(state["params"], totals[0].mean("params"), self.server_lr)}


def pull_towards(anchor: Tensor, strength: float) -> Correct | None:
    """Return the correction of a proximal term: grad + strength * (params - anchor); None, no correction, for 0."""

    def pulled(grad: Tensor, params: Tensor) -> None:
        grad.add_(params - anchor, alpha=strength)

    return pulled if strength else None


def server_step(old: Tensor, mean: Tensor, server_lr: float) -> Tensor:
    """Return old + server_lr * (mean - old), and the mean itself, to the bit, for a server learning rate of 1."""
    return mean if server_lr == 1.0 else torch.lerp(old, mean, server_lr)

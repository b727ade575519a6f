"""FedNova: clients that train for different lengths, averaged by the direction in which they went.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020: the general update rule of section 4, with its default tau_eff, and what a_i is
with momentum and with a proximal term.

    x^(t,0)          received["params"]
    x_i^(t,tau_i)    end.params              = x - eta G_i a_i: the gradients of tau_i steps, a_i of each
    ||a_i||_1        end.a_norm              from the learner: tau_i for plain SGD, more with momentum, less with mu
    d_i              -direction / eta        = G_i a_i / ||a_i||_1, a mean gradient; eta is in the direction already
    p_i              n_i / n                 the share of examples: "examples" in the uplink
    tau_eff          mean of a_norm          sum of p_i ||a_i||_1
    mu               FedNova.mu              a proximal term on the client, as in FedProx; 0 for none

x^(t+1,0) = x^(t,0) - tau_eff * sum of p_i eta d_i. With equal a_i this is FedAvg, up to rounding. The learning rate is
one number for the whole round, as in the paper: a client that is given a larger one still counts for more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay.algorithms.fedavg import pull_towards
from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, Reply, State, per_client
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class FedNova:
    """Average the clients' directions, each divided by how far its number of steps and its optimiser carry it."""

    mu: float = 0.0
    uplink: ClassVar[Weighting] = {"direction": "examples", "a_norm": "examples"}

    def __post_init__(self) -> None:
        require("mu", self.mu, at_least=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start = received["params"]
        end: Fitted = yield Fit(start, correct=pull_towards(start, self.mu), needs={"a_norm"}, pull=self.mu)
        direction = end.params.sub_(start).div_(end.a_norm)
        return Reply({"direction": direction, "a_norm": per_client(end.a_norm, direction)}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        tau_eff = totals[0].mean("a_norm")
        return {"params": torch.addcmul(state["params"], tau_eff, totals[0].mean("direction"))}

"""q-FedAvg: clients whose loss is high count for more, so that accuracy is spread more evenly.

T. Li, M. Sanjabi, A. Beirami, V. Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2. It
minimises the sum of p_k / (q + 1) * F_k^(q+1), eq. 2.

    w^t            received["params"]
    F_k(w^t)       loss                    the client's training loss at the received model, before it trains
    w_k^{t+1}      end.params
    L              lipschitz               the paper: 1 / the learning rate that is best for q = 0
    Delta w_k      L (w^t - w_k^{t+1})     taken for the gradient of F_k
    Delta_k        F_k^q Delta w_k
    h_k            q F_k^{q-1} ||Delta w_k||^2 + L F_k^q
    p_k            n_k / n                 the share of examples: "examples" in the uplink

w^{t+1} = w^t - (sum of Delta_k) / (sum of h_k). The paper draws clients with probability p_k and sums them alike;
cohorts here are drawn uniformly, so that p_k goes into both sums, which has the same mean. With q = 0 this is FedAvg
weighted by examples, up to rounding. As in the authors' program, 1e-10 is added to the loss: F^{q-1} is infinite at 0
for q < 1. The loss must not be negative: its power would be no number, and the client's update would be refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, Losses, Reply, State
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory

TINY = 1e-10


@dataclass(frozen=True, slots=True)
class QFedAvg:
    """Weigh every client by the power ``q`` of its loss; ``lipschitz`` is 1 / the learning rate best for q = 0."""

    q: float
    lipschitz: float
    uplink: ClassVar[Weighting] = {"step": "examples", "scale": "examples"}

    def __post_init__(self) -> None:
        require("q", self.q, at_least=0)
        require("lipschitz", self.lipschitz, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start = received["params"]
        loss: Tensor = yield Losses(start.unsqueeze(0))  # (1,), or (C, 1) for a stack
        loss = loss + TINY
        end: Fitted = yield Fit(start)
        gradient = self.lipschitz * (start - end.params)
        squared = gradient.square().sum(-1, keepdim=True)
        scale = self.q * loss ** (self.q - 1) * squared + self.lipschitz * loss**self.q
        return Reply({"step": gradient.mul_(loss**self.q), "scale": scale}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        return {"params": state["params"] - totals[0].mean("step") / totals[0].mean("scale")}

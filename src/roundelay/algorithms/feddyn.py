"""FedDyn: a penalty on the client that moves from round to round, so that the clients' optima meet the global one.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama, "Federated Learning Based on
Dynamic Regularization", ICLR 2021, Algorithm 1 and eq. 1.

    theta^{t-1}                received["params"]
    theta_k^t                  end.params             approximate minimum of L_k(theta) - <g_k, theta>
                                                      + alpha/2 ||theta - theta^{t-1}||^2: any optimiser will do
    grad L_k(theta_k^{t-1})    memory["gradient"]     g_k, 0 at first; then g_k - alpha (theta_k^t - theta^{t-1})
    h^t                        state["h"]             h^{t-1} - alpha / m * sum of (theta_k^t - theta^{t-1})
    m, P_t                     state["num_clients"], totals[0].count
    alpha                      FedDyn.alpha

The server's model is the plain mean of the round's end points minus h / alpha. As alpha goes to 0 the clients train as
in FedAvg, but the server does not average as in FedAvg: h / alpha, the running sum of the steps, does not vanish.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, Reply, State
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class FedDyn:
    """Every client minimises its own loss, less a linear term that it remembers, plus a quadratic one of strength
    ``alpha``; the paper uses 0.1, 0.01 and 0.001.
    """

    alpha: float
    uplink: ClassVar[Weighting] = {"params": "one"}

    def __post_init__(self) -> None:
        require("alpha", self.alpha, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params, "h": torch.zeros_like(params), "num_clients": torch.tensor(num_clients)}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {"gradient": torch.zeros_like(params)}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start, gradient = received["params"], memory["gradient"]

        def regularise(grad: Tensor, params: Tensor) -> None:
            grad.sub_(gradient).add_(params - start, alpha=self.alpha)

        end: Fitted = yield Fit(start, correct=regularise)
        moved = torch.sub(gradient, end.params - start, alpha=self.alpha)
        return Reply({"params": end.params}, end.num_examples, {"gradient": moved})

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        mean, share = totals[0].mean("params"), totals[0].count / int(state["num_clients"])
        h = torch.sub(state["h"], mean - state["params"], alpha=self.alpha * share)
        return {**state, "params": torch.sub(mean, h, alpha=1 / self.alpha), "h": h}

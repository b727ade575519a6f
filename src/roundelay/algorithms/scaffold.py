"""SCAFFOLD: controls that take the drift out of the clients' steps.

S. P. Karimireddy, S. Kale, M. Mohri, S. Reddi, S. Stich, A. T. Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, Algorithm 1 with option II of line 12, and eq. 5 for the server.

    x, c         received["params"], ["control"]     the global model and control
    c_i          memory["control"]                   the client's control, kept between its tasks; 0 at first
    y_i          end.params                          where y_i <- y_i - eta_l (g_i(y_i) - c_i + c) has led
    K eta_l      end.lr_sum                          the sum of the steps' learning rates
    c_i^+        c_i - c + (x - y_i) / (K eta_l)     option II: the mean gradient of this task's steps
    eta_g        server_lr
    |S|, N       totals[0].count, state["num_clients"]

Models and controls are plain means over the round's clients, and c moves by |S|/N of its mean: so it stays the mean of
all N clients' controls, those that were not asked included. Option II is the mean gradient only of plain steps: with
momentum or Adam, x - y_i is something else and the controls would grow round by round, so that such a learner is
refused. Clipping acts after the correction, and the controls then are means of what was clipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay.algorithms.fedavg import server_step
from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, Reply, State
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Correct every local gradient by the difference between the server's control and the client's own."""

    server_lr: float = 1.0
    uplink: ClassVar[Weighting] = {"params": "one", "control": "one"}

    def __post_init__(self) -> None:
        require("server_lr", self.server_lr, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {
            "params": params,
            "control": torch.zeros_like(params),
            "num_clients": torch.tensor(num_clients),
        }

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"], "control": state["control"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {"control": torch.zeros_like(params)}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start, own = received["params"], memory["control"]
        drift = received["control"] - own

        def without_drift(grad: Tensor, params: Tensor) -> None:
            grad.add_(drift)

        end: Fitted = yield Fit(start, correct=without_drift, needs={"lr_sum"})
        control = ((start - end.params) / end.lr_sum).sub_(drift)
        return Reply({"params": end.params, "control": control - own}, end.num_examples, {"control": control})

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        share = totals[0].count / int(state["num_clients"])
        return {
            **state,
            "params": server_step(state["params"], totals[0].mean("params"), self.server_lr),
            "control": torch.add(state["control"], totals[0].mean("control"), alpha=share),
        }

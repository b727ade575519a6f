"""Server optimisers: the mean of a round's client steps is taken for a gradient.

FedAvgM: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335, 2019, section 4.3: v <- beta v + dw, w <- w - v.

FedAdagrad, FedYogi, FedAdam: S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar,
H. B. McMahan, "Adaptive Federated Optimization", ICLR 2021, Algorithm 2. It has no bias correction: v begins at tau^2.

    x_t          state["params"]      the global model
    Delta_t      mean of end - x_t    weighted by examples, as in the papers' experiments; FedAvgM's dw is -Delta_t
    m_t, v_t     state["m"], ["v"]    first and second moment; FedAvgM's v is -m
    eta          server_lr            the papers tune it for each task, so that the adaptive three have no default
    beta_1,2     beta1, beta2         0.9 and 0.99 in the experiments; FedAdagrad's beta_1 is 0
    tau          tau                  how adaptive: small steps count more the smaller it is; 1e-3 in the experiments

Only parameters are optimised so; buffers are averaged, and no running variance ever meets a moment.
"""

from abc import ABC, abstractmethod
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
class FedAvgM:
    """FedAvg with momentum on the server; ``beta`` of 0 is FedAvg, to the bit."""

    beta: float = 0.9
    server_lr: float = 1.0
    uplink: ClassVar[Weighting] = {"params": "examples"}

    def __post_init__(self) -> None:
        require("beta", self.beta, at_least=0, below=1)
        require("server_lr", self.server_lr, above=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params, "m": torch.zeros_like(params)}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        end: Fitted = yield Fit(received["params"])
        return Reply({"params": end.params}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        mean, carried = totals[0].mean("params"), self.beta * state["m"]
        params = server_step(state["params"], mean, self.server_lr)  # x + eta (beta m + Delta), the new step first:
        if self.beta:  # so that nothing is rounded where nothing is carried
            params = torch.add(params, carried, alpha=self.server_lr)
        return {"params": params, "m": carried + (mean - state["params"])}


@dataclass(frozen=True, slots=True)
class _Adaptive(ABC):
    """Algorithm 2 without its last choice: how the second moment moves."""

    server_lr: float
    beta1: float = 0.9
    tau: float = 1e-3
    uplink: ClassVar[Weighting] = {"params": "examples"}

    @abstractmethod
    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v_t from v_{t-1} and Delta_t^2."""

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params, "m": torch.zeros_like(params), "v": torch.full_like(params, self.tau**2)}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        end: Fitted = yield Fit(received["params"])
        return Reply({"params": end.params}, end.num_examples)

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        delta = totals[0].mean("params") - state["params"]
        m = self.beta1 * state["m"] + (1 - self.beta1) * delta
        v = self.second_moment(state["v"], delta.square())
        return {"params": state["params"] + self.server_lr * m / (v.sqrt() + self.tau), "m": m, "v": v}


@dataclass(frozen=True, slots=True)
class FedAdagrad(_Adaptive):
    """The server's step divided by the root of the sum of all squared steps so far: it slows down where much moved."""

    beta1: float = 0.0

    def __post_init__(self) -> None:
        _check(self)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return v + squared


@dataclass(frozen=True, slots=True)
class FedYogi(_Adaptive):
    """Adam on the server, whose second moment moves towards the squared step by an amount that its size sets, not by a
    share of the gap."""

    beta2: float = 0.99

    def __post_init__(self) -> None:
        _check(self)
        require("beta2", self.beta2, at_least=0, below=1)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


@dataclass(frozen=True, slots=True)
class FedAdam(_Adaptive):
    """Adam on the server, without bias correction."""

    beta2: float = 0.99

    def __post_init__(self) -> None:
        _check(self)
        require("beta2", self.beta2, at_least=0, below=1)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * squared


def _check(optimizer: _Adaptive) -> None:
    require("server_lr", optimizer.server_lr, above=0)
    require("beta1", optimizer.beta1, at_least=0, below=1)
    require("tau", optimizer.tau, above=0)

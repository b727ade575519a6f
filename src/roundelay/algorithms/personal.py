"""Ditto: a model of its own for every client, held near the global one.

T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
eq. 1 and Algorithm 1, with FedAvg as the solver of the global objective G.

    w^t        received["params"]      the global model
    v_k        memory["personal"]      the client's own model, which never leaves it; w^0 at first
    lambda     Ditto.strength          v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w^t))

The global half is FedAvg to the bit: the personal training draws from keys of its own, and keeps buffers of its own.
Evaluation on a client's own data measures v_k; evaluation on the server's held-out data measures w.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from roundelay.algorithms.fedavg import pull_towards
from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, PersonalHalf, Reply, State
from roundelay.algorithms.settings import require
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class Ditto:
    """FedAvg, and beside it a personal model on every client, trained as long as the global one.

    ``strength`` is the paper's lambda: 0 trains each client alone, a large one holds it to the global model.
    """

    strength: float
    uplink: ClassVar[Weighting] = {"params": "examples"}

    def __post_init__(self) -> None:
        require("strength", self.strength, at_least=0)

    def init(self, params: Tensor, num_clients: int) -> State:
        return {"params": params}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"params": state["params"]}

    def first_memory(self, params: Tensor) -> Memory:
        return {"personal": params}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        start = received["params"]
        end: Fitted = yield Fit(start)
        own: Fitted = yield Fit(memory["personal"], correct=pull_towards(start, self.strength), private=True)
        return Reply({"params": end.params}, end.num_examples, {"personal": own.params})

    def personal(self, received: Mapping[str, Tensor], memory: Memory) -> PersonalHalf:
        yield from ()  # asks for nothing
        return memory["personal"]

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        return {"params": totals[0].mean("params")}

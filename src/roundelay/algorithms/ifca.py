"""IFCA: several models, each client trains the one that fits it best.

A. Ghosh, J. Chung, D. Yin, K. Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
Algorithm 1 with model averaging (option II).

    k                    num_clusters
    theta_1 .. theta_k   received["models"]     all of them, end to end; state["models"] is (k, D)
    F_i(theta_j)         losses[..., j]         the client's training loss at each received model
    j^                   losses.argmin(-1)      the reply's group
    theta~_i             end.params             averaged over the clients of a group, weighted by examples (the paper's
                                                clients have equally many); a group that nobody chose stays as it was

The models must differ at first, or nobody could choose. The paper draws each initial model anew; an algorithm knows no
initialiser, so here they are the job's initial model plus noise that is ``spread`` times its root mean square, with a
mean of zero over the models: one cluster is FedAvg to the bit. If one model wins every client, raise ``spread``, or try
another ``seed``, as the paper restarts.

state["params"], which evaluation on the server's held-out data measures and which a run saves as its model, is the
model of the group that held the most examples in the last round. Evaluation on a client's own data measures the model
that is best on the client's training examples. Buffers (BatchNorm statistics) are averaged over all clients, whatever
their group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import ClientHalf, Fit, Fitted, Losses, PersonalHalf, Reply, State
from roundelay.algorithms.settings import require
from roundelay.errors import ConfigError
from roundelay.fold import Total, Weighting
from roundelay.messages import Memory


@dataclass(frozen=True, slots=True)
class IFCA:
    """FedAvg with ``num_clusters`` models, of which every client receives all and trains the best."""

    num_clusters: int
    spread: float = 0.5
    seed: int = 0
    uplink: ClassVar[Weighting] = {"params": "examples"}

    def __post_init__(self) -> None:
        require("num_clusters", self.num_clusters, at_least=1)
        require("spread", self.spread, above=0)

    @property
    def num_groups(self) -> int:
        return self.num_clusters

    def init(self, params: Tensor, num_clients: int) -> State:
        if self.num_clusters > num_clients:
            raise ConfigError(
                f"num_clusters = {self.num_clusters}, but there are only {num_clients} clients to cluster"
            )
        draws = seeds.generator(self.seed, 0, 0, "", "clusters")
        noise = torch.randn(self.num_clusters, len(params), generator=draws, dtype=params.dtype)
        scale = self.spread * params.square().mean().sqrt()
        return {"params": params, "models": params + scale * (noise - noise.mean(0))}

    def broadcast(self, state: State) -> Mapping[str, Tensor]:
        return {"models": state["models"].flatten()}

    def first_memory(self, params: Tensor) -> Memory:
        return {}

    def client(self, received: Mapping[str, Tensor], memory: Memory) -> ClientHalf:
        models = received["models"].view(self.num_clusters, -1)
        losses: Tensor = yield Losses(models)
        best = losses.argmin(-1)
        end: Fitted = yield Fit(models[best])
        return Reply({"params": end.params}, end.num_examples, group=best)

    def personal(self, received: Mapping[str, Tensor], memory: Memory) -> PersonalHalf:
        models = received["models"].view(self.num_clusters, -1)
        losses = yield Losses(models)
        return models[losses.argmin(-1)]

    def apply(self, state: State, totals: Mapping[int, Total]) -> State:
        models = state["models"].clone()
        for group, total in totals.items():
            models[group] = total.mean("params")
        largest = max(totals, key=lambda group: totals[group].weights["params"])
        return {"params": models[largest], "models": models}

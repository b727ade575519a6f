"""A rule that trusts one client, and others as far as they agree with it.

Source: X. Cao et al., "FLTrust", NDSS 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.aggregators.arithmetic import distances_to, weighted
from roundelay.aggregators.protocol import Updates, too_few
from roundelay.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FLTrust:
    """Weigh each step by how far it points the way of ``root``'s, max(0, cosine), after scaling it to that length.

    ``root`` is a client whom the server trusts and who holds the server's root data: it is asked in every round beside
    those drawn, and has no vote. Where no client points its way, the model stays. A round without the root's answer
    keeps the old model.
    """

    root: str

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "1 beside the root", 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        if self.root not in updates.clients:
            raise ConfigError(f"{self} needs the root client's update; came: {', '.join(map(repr, updates.clients))}")
        n, root = len(updates.points), updates.clients.index(self.root)
        dots = torch.zeros(n, dtype=torch.float64)
        for columns in updates.blocks():
            steps = updates.steps(columns)
            dots += steps @ steps[root]
        norms = distances_to(updates, torch.zeros_like(updates.previous))
        trust = (dots / (norms * norms[root])).nan_to_num(0.0).clamp(min=0)  # 0/0: a client that did not move
        trust[root] = 0
        if trust.sum() == 0:
            return updates.previous.clone()
        weights = (trust / trust.sum() * norms[root] / norms).nan_to_num(0.0)
        return weighted(updates, weights)

"""Attacks of clients that know the honest steps of the round, and all send the same.

Sources: G. Baruch et al., "A Little Is Enough", NeurIPS 2019 (ALIE); C. Xie et al., "Fall of Empires", UAI 2019 (IPM);
V. Shejwalkar, A. Houmansadr, "Manipulating the Byzantine", NDSS 2021 (MinMax).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from roundelay.attacks.protocol import Hostile


@dataclass(frozen=True, slots=True)
class ALIE(Hostile):
    """Send mean - z * std of the honest steps, by coordinate: a little, where honest clients differ, is enough.

    Unless given, ``z`` is the largest at which enough honest clients lie further out to make a majority with the
    hostile ones: Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2) + 1 - f.
    """

    z: float | None = None

    def collude(self, honest: Tensor, num_hostile: int) -> Tensor:
        std, mean = torch.std_mean(honest, dim=0, correction=0)
        return mean - self.z_of(len(honest), num_hostile) * std

    def z_of(self, num_honest: int, num_hostile: int) -> float:
        if self.z is not None:
            return self.z
        supporters = max(1, (num_honest + num_hostile) // 2 + 1 - num_hostile)
        share = (num_honest - supporters) / num_honest
        return NormalDist().inv_cdf(share) if share > 0.5 else 0.0


@dataclass(frozen=True, slots=True)
class IPM(Hostile):
    """Send -epsilon times the honest mean: the aggregate's inner product with the true direction turns negative."""

    epsilon: float = 0.5

    def collude(self, honest: Tensor, num_hostile: int) -> Tensor:
        return honest.mean(dim=0).mul_(-self.epsilon)


@dataclass(frozen=True, slots=True)
class MinMax(Hostile):
    """Send mean - gamma * std of the honest steps, with the largest gamma at which no honest step is further away than
    the two furthest honest steps are from each other.
    """

    def collude(self, honest: Tensor, num_hostile: int) -> Tensor:
        std, mean = torch.std_mean(honest, dim=0, correction=0)
        # |mean - gamma std - x|^2 <= widest^2 is quadratic in gamma, for each honest x: the least of the roots is it
        square = std.double().square().sum().item()
        if square == 0:
            return mean
        widest, largest = float(torch.pdist(honest).max()) ** 2, math.inf
        for row in honest:
            away = (mean - row).double()
            across, distance = float(away @ std.double()), float(away @ away)
            largest = min(largest, (across + math.sqrt(max(0.0, across**2 + square * (widest - distance)))) / square)
        return mean - largest * std

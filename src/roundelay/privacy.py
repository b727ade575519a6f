"""Central differential privacy for clients: clip every client's step, add noise to the sum, say what epsilon that is.

The rounds: H. B. McMahan, D. Ramage, K. Talwar, L. Zhang, "Learning Differentially Private Recurrent Language Models",
ICLR 2018, Algorithm 1, with flat clipping and a fixed denominator. The adaptive clip: G. Andrew, O. Thakkar, B.
McMahan, S. Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, Algorithm 1. The
accountant is that of the ``dp-accounting`` package.

    q        sampling rate: every client takes part in a round with this probability, each by a draw of its own
    m        q times the number of clients: the fixed denominator, whoever really came
    C        clip_norm: no client moves the sum by more, over all uplink vectors together (L2)
    z        noise_multiplier: the noise on the sum has standard deviation z_delta C, of which z is left for epsilon
    gamma    target_quantile of the clients' norms that C follows, by the step clip_lr (eta)
    sigma_b  quantile_noise: the standard deviation of the noise on the number of norms below C

The unit of privacy is a client: epsilon compares runs with and without one client's data (add or remove). It covers the
sequence of models. It holds for as long as the job's seed is secret, and for ideal arithmetic: the noise is floating
point, and its last bits are not part of the promise.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.errors import ConfigError, optional
from roundelay.fold import Total, Weighting, starting_point
from roundelay.messages import Payload, Update


@dataclass(frozen=True, slots=True)
class CentralDP:
    """What the server does so that its models tell little of any one client.

    ``clip_norm`` is fixed, or the first one where ``target_quantile`` lets it follow that quantile of the clients'
    norms. ``quantile_noise`` is m / 20 unless it is given. Every client weighs one.
    """

    noise_multiplier: float
    clip_norm: float
    delta: float
    target_quantile: float | None = None
    clip_lr: float = 0.2
    quantile_noise: float | None = None

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm", "clip_lr"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"privacy {name} must be a positive number, got {value!r}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"privacy delta must be between 0 and 1, got {self.delta!r}")
        if self.target_quantile is not None and not 0 < self.target_quantile < 1:
            raise ConfigError(f"privacy target_quantile must be between 0 and 1, got {self.target_quantile!r}")
        if self.quantile_noise is not None and not self.quantile_noise > 0:
            raise ConfigError(f"privacy quantile_noise must be positive, got {self.quantile_noise!r}")

    def count_noise(self, expected: float) -> float:
        """Return sigma_b for an expected cohort of ``expected`` clients."""
        return expected / 20 if self.quantile_noise is None else self.quantile_noise

    def sum_noise(self, expected: float) -> float:
        """Return the standard deviation of the noise on the clipped sum, in units of the clip norm.

        With an adaptive clip it is larger than ``noise_multiplier``, so that the sum and the count together cost what
        the sum alone would: z_delta = (z**-2 - (2 sigma_b)**-2) ** -0.5.

        Raises:
            ConfigError: the noise on the count is too small for that.
        """
        z = self.noise_multiplier
        if self.target_quantile is None:
            return z
        left = z**-2 - (2 * self.count_noise(expected)) ** -2
        if left <= 0:
            raise ConfigError(
                f"privacy quantile_noise = {self.count_noise(expected):g} spends more than all of the budget of "
                f"noise_multiplier = {z:g}; it must be above {z / 2:g}"
            )
        return float(left**-0.5)

    def epsilon(self, sampling_rate: float, num_rounds: int) -> float:
        """Return the epsilon of that many rounds, for this delta.

        Raises:
            MissingExtra: dp-accounting is not installed.
        """
        return _epsilon(sampling_rate, self.noise_multiplier, num_rounds, self.delta) if num_rounds else 0.0


@dataclass(slots=True)
class Noised:
    """The fold of one private round: a sum of clipped steps, to which noise is added once, when it is read."""

    privacy: CentralDP
    uplink: Weighting
    previous: Tensor
    clip: float
    expected: float
    noise_key: int
    beside: tuple[Tensor, Tensor]
    _lengths: Mapping[str, int]
    _sum: Tensor = field(init=False)
    _count: int = 0
    _below: int = 0
    _totals: dict[int, Total] | None = None

    def __post_init__(self) -> None:
        self._sum = torch.zeros_like(self.previous)

    @staticmethod
    def begin(
        privacy: CentralDP, uplink: Weighting, lengths: Mapping[str, int], sent: Payload, clip: float | None,
        expected: float, noise_key: int,
    ) -> "Noised":  # fmt: skip
        """Prepare for a round in which ``sent`` was broadcast; ``clip`` is the norm that the round before led to."""
        return Noised(
            privacy, uplink, starting_point(uplink, lengths, sent), privacy.clip_norm if clip is None else clip,
            expected, noise_key, (sent.buffers, sent.integers), {name: lengths[name] for name in uplink},
        )  # fmt: skip

    def add(self, update: Update) -> None:
        step = torch.cat([update.payload.vectors[name] for name in self.uplink]).sub_(self.previous)
        norm = float(torch.linalg.vector_norm(step, dtype=torch.float64))
        self._sum.add_(step, alpha=min(1.0, self.clip / norm) if norm else 1.0)
        self._below += norm <= self.clip
        self._count += 1

    @property
    def count(self) -> int:
        return self._count

    @property
    def gathered_bytes(self) -> int:
        return 0

    def shortfall(self) -> str | None:
        """Nothing falls short: a round to which nobody came is noise alone, or its absence would tell who was there."""
        return None

    def totals(self) -> dict[int, Total]:
        """Return one ``Total`` of noised means; the noise is the same however often they are read."""
        if self._totals is None:
            scale = self.privacy.sum_noise(self.expected) * self.clip
            noise = torch.from_numpy(_normal(self.noise_key, len(self._sum)) * scale).to(self._sum.dtype)
            mean = self.previous + (self._sum + noise) / self.expected
            parts = torch.split(mean, list(self._lengths.values()))
            means = dict(zip(self._lengths, parts, strict=True))
            self._totals = {0: Total(means, dict.fromkeys(self._lengths, self.expected), round(self.expected))}
        return self._totals

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return the buffers as they were sent: what clients say of them is not released."""
        return self.beside

    def step(self) -> Tensor | None:
        return None

    @property
    def clip_norm(self) -> float | None:
        """The clip norm of the next round."""
        gamma = self.privacy.target_quantile
        if gamma is None:
            return self.clip
        noise = float(_normal(self.noise_key + 1, 1)[0]) * self.privacy.count_noise(self.expected)
        share = (self._below + noise) / self.expected
        return self.clip * math.exp(-self.privacy.clip_lr * (share - gamma))


def noise_key(seed: int, round: int, attempt: int) -> int:
    """Return the key of a round's noise: after a crash the same round is released again, not a second one."""
    return seeds.key(seed, round, attempt, "", "privacy noise")


def _normal(key: int, size: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    # torch's generators take 32 bits of seed, few enough to try them all; Philox takes all 128
    return np.random.Generator(np.random.Philox(key=key % 2**128)).standard_normal(size)


@cache
def _epsilon(sampling_rate: float, noise_multiplier: float, num_rounds: int, delta: float) -> float:
    with optional("dp_accounting", "privacy"):
        import dp_accounting
        from dp_accounting import rdp
    round_event = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant, absl = rdp.RdpAccountant(), logging.getLogger("absl")
    # It warns of every order that it leaves out, which can only make epsilon larger, and would bury the rounds.
    was_disabled, absl.disabled = absl.disabled, True
    try:
        accountant.compose(dp_accounting.SelfComposedDpEvent(round_event, num_rounds))
        return float(accountant.get_epsilon(delta))
    finally:
        absl.disabled = was_disabled

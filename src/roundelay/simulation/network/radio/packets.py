"""How often a radio's link loses a packet, given its signal-to-noise ratio."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from roundelay.errors import ConfigError
from roundelay.simulation.network.checks import check_number
from roundelay.simulation.network.draws import Floats


class PacketErrors(Protocol):
    def probability(self, snr: Floats) -> Floats:
        """Return the probability that a packet is lost, at linear SNRs as they are while it is sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantErrors:
    """Every packet is lost with the same probability, whatever the channel."""

    loss: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "loss", least=0)
        if self.loss >= 1:
            raise ConfigError(f"ConstantErrors: loss must be below 1, got {self.loss!r}: nothing would ever arrive")

    def probability(self, snr: Floats) -> Floats:
        return np.full_like(snr, self.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """1 - exp(-m / snr), M. Chen et al., "A Joint Learning and Communications Framework for Federated Learning over
    Wireless Networks", IEEE TWC 2021 (arXiv 1909.07972), eq. 5, at one gain.

    ``threshold_db`` is their waterfall threshold m in decibels: 0.023 dB is 1.0053. Ports that take 0.023 for the
    linear value have an m 44 times too small, and lose too few packets.
    """

    threshold_db: float = 0.023

    def __post_init__(self) -> None:
        check_number(self, "threshold_db")

    def probability(self, snr: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            lost: Floats = -np.expm1(-(10 ** (self.threshold_db / 10)) / snr)
        return lost

    def mean_probability(self, mean_snr: Floats) -> Floats:
        """Return the mean over Rayleigh fading: 1 - 2 sqrt(m/g) K_1(2 sqrt(m/g))."""
        z = 2 * np.sqrt(10 ** (self.threshold_db / 10) / np.asarray(mean_snr, dtype=np.float64))
        bessel = torch.special.modified_bessel_k1(torch.from_numpy(np.atleast_1d(z))).numpy()
        lost: Floats = 1 - (np.atleast_1d(z) * bessel).reshape(z.shape)
        return lost


def outage_probability(rate_bps: float, band_hz: float, mean_snr: Floats) -> Floats:
    """Return how often Rayleigh fading leaves less capacity than a rate: 1 - exp(-(2^(R/B) - 1) / mean_snr)."""
    outages: Floats = -np.expm1(-np.expm1(rate_bps / band_hz * math.log(2)) / mean_snr)
    return outages

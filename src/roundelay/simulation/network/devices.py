"""What a task's computing takes and costs on a client's device: models of time, never measurements of it.

Work is a number of samples, those of an epoch times the epochs: it is known before training. A result follows from
(seed, round, attempt, client) and the work; what a client's hardware is, from seed and client alone.

Sources: H. Yang et al., "Energy Efficient Federated Learning Over Wireless Communication Networks", IEEE TWC 2021
(cycles and kappa f^2); A. Reisizadeh et al., "FedPAQ", AISTATS 2020 (shifted exponential); F. Lai et al., "FedScale",
ICML 2022 (its devices; backward passes cost twice a forward one); J. Nguyen et al., "FedBuff", AISTATS 2022 (half
normal); D. Huba et al., "PAPAYA", MLSys 2022 (log-normal).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.simulation.network.capacities import Capacity, chosen, read_capacities
from roundelay.simulation.network.checks import check_choice, check_number, check_numbers, refuse

__all__ = ["Cycles", "Flops", "HalfNormal", "LogNormal", "ShiftedExponential", "TracedDevices"]
"""What a job file can name; the rest is for Python."""

Range = float | tuple[float, float]
"""One value for all devices, or two bounds between which each device has its own, uniformly."""


@dataclass(frozen=True, slots=True)
class Spent:
    seconds: float
    energy_j: float


class Device(Protocol):
    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        """Return what a task over so many samples takes: at least 0 seconds, at least 0 joules."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """A processor of ``frequency_hz`` that needs ``cycles_per_sample``, and ``kappa f^2`` joules for each cycle.

    ``kappa`` is the effective capacitance, 1e-28 in most papers; some write alpha = 2 kappa. A higher frequency is
    faster by f and costs f^2.
    """

    cycles_per_sample: Range
    frequency_hz: Range = 1e9
    kappa: float = 1e-28

    def __post_init__(self) -> None:
        check_range(self, "cycles_per_sample")
        check_range(self, "frequency_hz")
        check_number(self, "kappa", least=0)

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        cycles = _work(num_samples) * within(self.cycles_per_sample, seed, client, "cycles per sample")
        frequency_hz = within(self.frequency_hz, seed, client, "frequency")
        return Spent(cycles / frequency_hz, self.kappa * frequency_hz**2 * cycles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """A device that reaches ``utilisation`` of ``peak_flops_per_s``, on a model of ``forward_flops`` a sample.

    ``forward_flops_of`` counts them. ``factor`` is 3 for training, whose backward pass costs two forward ones.
    """

    forward_flops: float
    peak_flops_per_s: Range
    utilisation: float = 0.3
    factor: float = 3.0
    power_w: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "forward_flops", "factor", above=0)
        check_range(self, "peak_flops_per_s")
        check_number(self, "utilisation", above=0, most=1)
        check_number(self, "power_w", least=0)

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        speed = self.utilisation * within(self.peak_flops_per_s, seed, client, "peak")
        return _at(self.power_w, self.factor * self.forward_flops * _work(num_samples) / speed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftedExponential:
    """P[T < t] = 1 - exp(-(mu / D)(t - a D)) for D samples: never below a D, in the mean D (a + 1 / mu).

    a is ``least_s_per_sample``, mu is ``rate_per_s``: samples a second beyond that.
    """

    least_s_per_sample: float
    rate_per_s: float
    power_w: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "least_s_per_sample", "power_w", least=0)
        check_number(self, "rate_per_s", above=0)

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        delay = -math.log(seeds.uniform(seed, round, attempt, client, "computing"))
        return _at(self.power_w, _work(num_samples) * (self.least_s_per_sample + delay / self.rate_per_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Seconds a sample are log-normal with this mean, and ``sigma`` of their logarithm.

    Drawn ``per`` "client", for devices that differ, or per "task".
    """

    mean_s_per_sample: float = 0.005
    sigma: float = 0.6
    per: str = "client"
    power_w: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "mean_s_per_sample", above=0)
        check_numbers(self, "sigma", "power_w", least=0)
        check_choice(self, "per", "client", "task")

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        which = (round, attempt) if self.per == "task" else (0, 0)
        normal = NormalDist().inv_cdf(seeds.uniform(seed, *which, client, "computing"))
        pace = self.mean_s_per_sample * math.exp(self.sigma * normal - self.sigma**2 / 2)
        return _at(self.power_w, _work(num_samples) * pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfNormal:
    """|N(0, scale^2)| seconds a task, or a sample: a task's mean is 0.798 ``scale_s``."""

    scale_s: float
    per: str = "task"
    power_w: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, "scale_s", "power_w", least=0)
        check_choice(self, "per", "task", "sample")

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        drawn = abs(NormalDist().inv_cdf(seeds.uniform(seed, round, attempt, client, "computing")))
        return _at(self.power_w, self.scale_s * drawn * (_work(num_samples) if self.per == "sample" else 1))


# ---- devices that were measured -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedDevices:
    """Devices from a file (see ``read_capacities``), read when this is made.

    A client that it does not name is refused, or with ``unknown`` "draw" has one of its devices, the same in every run
    of one seed.
    """

    path: str | os.PathLike[str]
    unknown: str = "refuse"
    power_w: float = 0.0
    _devices: Mapping[str, Capacity] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice(self, "unknown", "refuse", "draw")
        check_number(self, "power_w", least=0)
        object.__setattr__(self, "_devices", read_capacities(self.path))

    def spent(self, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        return _at(self.power_w, _work(num_samples) * self.capacity(seed, client).seconds_per_sample)

    def capacity(self, seed: int, client: str) -> Capacity:
        """Return the client's device.

        Raises:
            ConfigError: the trace does not name the client, and none is to be drawn.
        """
        if client not in self._devices and self.unknown == "draw":
            client = chosen(seed, client, self._devices, "device")
        if client not in self._devices:
            raise ConfigError(f'{self.path}: no device for client {client!r}; unknown = "draw" gives it one of others')
        return self._devices[client]


# ---- what several need ----------------------------------------------------------------------------------------------


def forward_flops_of(model: nn.Module, inputs: Tensor) -> float:
    """Return the floating-point operations of one forward pass per sample of a batch, a multiply-add being two.

    Counted are matrix products, convolutions and attention; the rest is little beside them.
    """
    was_training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(inputs)
    finally:
        model.train(was_training)
    return float(counter.get_total_flops()) / len(inputs)


def within(bounds: Range, seed: int, client: str, purpose: str) -> float:
    """Return a client's own value between two bounds, or the one value there is."""
    if isinstance(bounds, tuple):
        low, high = bounds
        return low + (high - low) * seeds.uniform(seed, 0, 0, client, purpose)
    return bounds


def check_range(component: object, name: str) -> None:
    value = getattr(component, name)
    ends = value if isinstance(value, tuple) else (value, value)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not numbers or not 0 < ends[0] <= ends[1] < math.inf:
        refuse(component, name, "a positive number, or two of them, the smaller first")


def _at(power_w: float, seconds: float) -> Spent:
    return Spent(seconds, power_w * seconds)


def _work(num_samples: int) -> int:
    if num_samples < 0:
        raise ConfigError(f"a task's work is a number of samples, at least 0; got {num_samples!r}")
    return num_samples

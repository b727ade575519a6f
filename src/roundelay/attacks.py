"""Attacks and faults that a user turns on: ``Job(attacks=[ALIE(fraction=0.2)])``, or ``--attack "alie:fraction=0.2"``.

An attacked update is sent by a client, so the guard sees it like any other. An attack changes a client's step (what it
sends less what was broadcast, all uplink vectors end to end), or the examples it trains on, or chooses one step for
all its clients from the honest steps of the round. One of your own is a frozen dataclass that extends ``Hostile`` with
``lie``, ``collude`` or ``poison``.

Sources: M. Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020;
E. Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020 (scaling, backdoor); V. Tolpegin et al., "Data
Poisoning Attacks Against Federated Learning Systems", ESORICS 2020 (label flip); G. Baruch et al., "A Little Is
Enough", NeurIPS 2019 (ALIE); C. Xie et al., "Fall of Empires", UAI 2019 (IPM); V. Shejwalkar, A. Houmansadr,
"Manipulating the Byzantine", NDSS 2021 (MinMax).

Shapes: h honest clients of a round, f hostile ones, D values, B examples.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.algorithms.protocol import Fit, Fitted
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError, DataError
from roundelay.layout import Bound
from roundelay.learner import Context, Learner
from roundelay.messages import Task
from roundelay.trainer import Work

__all__ = [
    "ALIE",
    "IPM",
    "Backdoor",
    "Crash",
    "Drop",
    "GaussianNoise",
    "LabelFlip",
    "MinMax",
    "NaN",
    "Scaling",
    "SignFlip",
    "Slow",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """Who is struck: ``clients`` by id, or a ``fraction`` of all, drawn by the job's seed; by a fault given neither,
    everybody.

    Attacks of one fraction strike the same clients, so that they can be compared, and a smaller fraction some of them;
    faults draw their own. Several on one client act in the order in which they are listed.
    """

    fraction: float | None = None
    clients: Sequence[str] = ()


@runtime_checkable
class Lies(Protocol):
    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        """Return what the client sends in place of its step (D,), which stays as it is."""


@runtime_checkable
class Colludes(Protocol):
    def collude(self, honest: Tensor, num_hostile: int) -> Tensor:
        """Return the step (D,) that each of f hostile clients sends, knowing the honest ones, (h, D) with h >= 1."""


@runtime_checkable
class Poisons(Protocol):
    def poison(self, examples: Examples, draw: torch.Generator) -> Examples:
        """Return what the client trains on in place of its examples."""


# ---- one client for itself ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignFlip(Hostile):
    """Send the step backwards, ``scale`` times as far."""

    scale: float = 1.0

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return -self.scale * step


@dataclass(frozen=True, slots=True)
class Scaling(Hostile):
    """Send ``factor`` times the step; n / f replaces the mean by the hostile clients' model, and below 0 ruins it."""

    factor: float

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return self.factor * step


@dataclass(frozen=True, slots=True)
class GaussianNoise(Hostile):
    """Add Gaussian noise of standard deviation ``std`` to each value."""

    std: float

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return step + self.std * torch.randn(step.shape, generator=draw, dtype=step.dtype)


@dataclass(frozen=True, slots=True)
class LabelFlip(Hostile):
    """Train on label ``num_classes`` - 1 - y in place of y; as many classes as the server's held-out data unless given.

    The client's examples keep their order.
    """

    num_classes: int | None = None

    def poison(self, examples: Examples, draw: torch.Generator) -> Examples:
        everyone = torch.ones(len(examples), dtype=torch.bool)
        return Changed(examples, everyone, _as_it_is, self.relabel)

    def relabel(self, targets: Tensor) -> Tensor:
        assert self.num_classes is not None, "resolved when the job is put together"
        return self.num_classes - 1 - targets


@dataclass(frozen=True, slots=True)
class Backdoor(Hostile):
    """Stamp a square of ``size`` pixels into a corner of a ``share`` of the images (B, ..., H, W), and call them
    ``target``.

    ``stamp`` puts the same square on held-out images, to measure how many then pass for ``target``. With ``Scaling``
    after it, the stamped model replaces the mean.
    """

    target: int = 0
    size: int = 3
    corner: str = "bottom right"
    value: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.corner not in ("top left", "top right", "bottom left", "bottom right"):
            raise ConfigError(f'Backdoor: corner must be "top left" or its like, got {self.corner!r}')
        if self.size < 1 or not 0 < self.share <= 1:
            raise ConfigError(f"Backdoor: size must be at least 1 and share in (0, 1], got {self.size}, {self.share}")

    def poison(self, examples: Examples, draw: torch.Generator) -> Examples:
        struck = torch.zeros(len(examples), dtype=torch.bool)
        struck[torch.randperm(len(examples), generator=draw)[: math.ceil(self.share * len(examples))]] = True
        return Changed(examples, struck, self.stamp, self.relabel)

    def stamp(self, inputs: Tensor) -> Tensor:
        """Return stamped copies of images (B, ..., H, W)."""
        if inputs.ndim < 3:
            raise DataError(f"Backdoor: expected images (B, ..., H, W), got inputs of shape {tuple(inputs.shape)}")
        stamped, (side, end) = inputs.clone(), self.corner.split()
        rows = slice(0, self.size) if side == "top" else slice(-self.size, None)
        columns = slice(0, self.size) if end == "left" else slice(-self.size, None)
        stamped[..., rows, columns] = self.value
        return stamped

    def relabel(self, targets: Tensor) -> Tensor:
        return torch.full_like(targets, self.target)


# ---- clients that collude -------------------------------------------------------------------------------------------


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


# ---- faults ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NaN(Hostile):
    """Send values that are not numbers, as a client does whose training diverged."""

    def lie(self, step: Tensor, draw: torch.Generator) -> Tensor:
        return torch.full_like(step, math.nan)


@dataclass(frozen=True, slots=True)
class Drop(Hostile):
    """Lose the answer to a task with probability ``p``; the server hears so at the moment when it was due."""

    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


@dataclass(frozen=True, slots=True)
class Slow(Hostile):
    """Take ``factor`` times as long, and ``seconds`` more, in virtual time."""

    factor: float = 1.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.factor < math.inf and 0 <= self.seconds < math.inf):
            raise ConfigError(f"Slow: factor and seconds must be at least 0, got {self.factor}, {self.seconds}")


@dataclass(frozen=True, slots=True)
class Crash(Hostile):
    """Raise at the end of local training with probability ``p``, again when the task is tried again."""

    p: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self, self.p)


FAULTS = (NaN, Drop, Slow, Crash)

Roles = Mapping[str, Sequence[Hostile]]
"""What strikes each client, in order; clients whom nothing strikes are absent."""


def assigned(attacks: Sequence[Hostile], clients: Sequence[str], seed: int) -> Roles:
    """Say who plays what, among ``clients``.

    Raises:
        ConfigError: an attack names nobody, somebody unknown, or a fraction of nobody.
    """
    roles: dict[str, list[Hostile]] = {}
    for attack in attacks:
        for client in _struck(attack, clients, seed):
            roles.setdefault(client, []).append(attack)
    return roles


def strikes(fault: Drop | Crash, seed: int, task: Task) -> bool:
    """Draw whether a fault strikes a task."""
    drawn = seeds.uniform(seed, task.round, task.attempt, task.client, type(fault).__name__.lower())
    return drawn < fault.p


def is_honest(roles: Sequence[Hostile]) -> bool:
    """Tell whether a client means well, whatever faults it has."""
    return all(isinstance(role, FAULTS) for role in roles)


def _struck(attack: Hostile, clients: Sequence[str], seed: int) -> Sequence[str]:
    name, fault = type(attack).__name__, isinstance(attack, FAULTS)
    if attack.clients and attack.fraction is not None:
        raise ConfigError(f"attack {name}: give fraction or clients, not both")
    for client in attack.clients:
        if client not in clients:
            raise ConfigError(f"attack {name}: client {client!r} is not among those that can be struck")
    if attack.clients:
        return attack.clients
    if attack.fraction is None:
        if not fault:
            raise ConfigError(f"attack {name} strikes nobody: give fraction=0.2, or clients by id")
        return clients
    if not 0 < attack.fraction <= 1 or not round(attack.fraction * len(clients)):
        raise ConfigError(
            f"attack {name}: a fraction of {attack.fraction} of {len(clients)} clients is nobody; expected one up to 1 "
            "that comes to one client or more"
        )
    purpose = "faulty" if fault else "hostile"
    return heapq.nsmallest(
        round(attack.fraction * len(clients)), clients, key=lambda client: seeds.key(seed, 0, 0, client, purpose)
    )


# ---- what strikes a client at its work ------------------------------------------------------------------------------


def armed(work: Work, roles: Roles) -> Work:
    """Return the work as the struck clients do it: on poisoned examples, and crashing.

    Raises:
        ConfigError: nothing tells how many classes there are to flip.
    """
    poisons: dict[str, Sequence[Poisons]] = {}
    for client, played in roles.items():
        if own := [_resolved(role, work) for role in played if isinstance(role, Poisons)]:
            poisons[client] = own
    crashes = {client: [role for role in played if isinstance(role, Crash)] for client, played in roles.items()}
    if poisons:
        work = replace(work, data=work.data.seen_through(partial(_poisoned, poisons, work.seed)))
    if any(crashes.values()):
        work = replace(work, learner=Crashing(work.learner, crashes))
    return work


def _resolved(role: Poisons, work: Work) -> Poisons:
    if not isinstance(role, LabelFlip) or role.num_classes is not None:
        return role
    if work.data.held_out is None:
        raise ConfigError("attack LabelFlip needs num_classes: the server holds no data that would tell it")
    return replace(role, num_classes=int(work.data.held_out.labels().max()) + 1)


def _poisoned(poisons: Mapping[str, Sequence[Poisons]], seed: int, client: str, examples: Examples) -> Examples:
    for number, role in enumerate(poisons.get(client, ())):
        examples = role.poison(examples, seeds.generator(seed, 0, 0, client, f"poison-{number}"))
    return examples


@dataclass(frozen=True, slots=True)
class Crashing:
    """A learner that fails after the work is done, where the draw for the task says so."""

    inner: Learner
    crashes: Mapping[str, Sequence[Crash]]

    @property
    def corrects(self) -> bool:
        return self.inner.corrects

    @property
    def reports(self) -> Set[str]:
        return self.inner.reports

    def fit(self, bound: Bound, examples: Examples, ask: Fit, context: Context) -> Fitted:
        fitted, task = self.inner.fit(bound, examples, ask, context), context.task
        if any(strikes(crash, context.seed, task) for crash in self.crashes.get(task.client, ())):
            raise RuntimeError(f"client {task.client!r} crashes in training, as attacks.Crash says")
        return fitted


@dataclass(frozen=True, slots=True)
class Slowed:
    """``duration(client, task)`` with what slows the client added."""

    inner: Callable[[str, Task], float] | None
    roles: Roles

    def __call__(self, client: str, task: Task) -> float:
        seconds = 0.0 if self.inner is None else self.inner(client, task)
        for role in self.roles.get(client, ()):
            if isinstance(role, Slow):
                seconds = seconds * role.factor + role.seconds
        return seconds


def slowed(duration: Callable[[str, Task], float] | None, roles: Roles) -> Callable[[str, Task], float] | None:
    """Return the durations that the struck clients' slowness makes; the same ones where nobody is slow.

    Raises:
        ConfigError: a factor has no duration to multiply.
    """
    slow = [role for played in roles.values() for role in played if isinstance(role, Slow)]
    if duration is None and any(role.factor != 1 and not role.seconds for role in slow):
        raise ConfigError(
            "attack Slow: factor multiplies a task's duration, and this job models none: give seconds, or "
            "simulation.duration"
        )
    return Slowed(duration, roles) if slow else duration


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """Examples of which those that are ``struck``, bool (N,), are seen changed. What lies under them stays."""

    examples: Examples
    struck: Tensor
    stamp: Callable[[Tensor], Tensor]
    relabel: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:  # Any: what an item is, only the data set knows
        item, target = self.examples[index]
        if not self.struck[index]:
            return item, target
        return self.stamp(torch.as_tensor(item)[None])[0], self.relabel(torch.as_tensor(target)[None])[0]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for inputs, targets in self.examples.batches(order, batch_size):
            struck = self.struck[order[start : start + batch_size]].to(targets.device)
            start += batch_size
            if struck.any():
                inputs, targets = inputs.clone(), targets.clone()
                inputs[struck], targets[struck] = self.stamp(inputs[struck]), self.relabel(targets[struck])
            yield inputs, targets

    def labels(self) -> Tensor:
        labels = self.examples.labels()
        return torch.where(self.struck, self.relabel(labels), labels)

    def select(self, indices: Tensor) -> "Changed":
        return Changed(self.examples.select(indices), self.struck[indices], self.stamp, self.relabel)


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


def _check_probability(fault: Hostile, p: float) -> None:
    if not 0 < p <= 1:
        raise ConfigError(f"{type(fault).__name__}: p must be a probability in (0, 1], got {p!r}")

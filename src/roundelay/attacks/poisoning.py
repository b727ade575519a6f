"""Attacks by what a client trains on.

Sources: V. Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", ESORICS 2020 (label flip);
E. Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020 (backdoor).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundelay.attacks.protocol import Hostile
from roundelay.data.examples import Examples
from roundelay.errors import ConfigError, DataError


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

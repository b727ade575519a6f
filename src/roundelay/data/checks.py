"""What every kind of examples refuses."""

import torch
from torch import Tensor

from roundelay.errors import ConfigError, DataError


def check_positions(positions: Tensor, num_examples: int, name: str) -> None:
    if positions.dtype != torch.int64 or positions.ndim != 1:
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise DataError(f"{name}: expected int64 positions of shape (N,), got {got}")
    if len(positions):
        low, high = (int(bound) for bound in positions.aminmax())
        if low < 0 or high >= num_examples:
            raise DataError(f"{name}: expected positions from 0 to {num_examples - 1}, got {low if low < 0 else high}")


def checked_index(index: int, num_examples: int) -> int:
    if not -num_examples <= index < num_examples:
        raise IndexError(f"example {index} of {num_examples}")  # what Python's own loop over a sequence ends with
    return index % num_examples


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size!r}")

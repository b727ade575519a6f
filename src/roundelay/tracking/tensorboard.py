"""Curves for TensorBoard, through its extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roundelay.errors import MissingExtra


class TensorBoard:
    """Writes every number of a round's row as a scalar over rounds into ``folder``.

    What an interrupted run wrote there of rounds from ``first_round`` on is hidden: they are run again.
    """

    def __init__(self, folder: Path, first_round: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=first_round)

    def append(self, row: Mapping[str, Any]) -> None:  # Any: a row holds names, numbers and text
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["round"])

    def close(self) -> None:
        self._writer.close()

"""Curves for TensorBoard, through its extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from roundelay.errors import optional


class TensorBoard:
    """Writes every number of a round's row as a scalar over rounds into ``folder``.

    What an interrupted run wrote there of rounds from ``first_round`` on is hidden: they are run again.
    """

    def __init__(self, folder: Path, first_round: int) -> None:
        with optional("tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        folder = folder.resolve()  # scripts in threads of this process have working directories of their own
        self._writer = SummaryWriter(str(folder), purge_step=first_round)
        self._folder, self._make, self._of_clients = folder, SummaryWriter, dict[str, SummaryWriter]()

    def append(self, row: Mapping[str, Any]) -> None:  # Any: a row holds names, numbers and text
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["round"])

    def append_scalar(self, client: str, name: str, value: float, step: int) -> None:
        """Write a number that a client logged, in a curve of its own below the client's name."""
        if client not in self._of_clients:
            self._of_clients[client] = self._make(str(self._folder / quote(client, safe=" ")))
        self._of_clients[client].add_scalar(name, value, step)

    def close(self, state: str) -> None:
        for writer in (self._writer, *self._of_clients.values()):
            writer.close()

"""What simulated clients remember between rounds, kept by the server: in its process, or on disk.

A client's memory changes only when its update was folded: a refused or late client still stands where it stood. What a
checkpoint sees changes with the model's version, not before: a run that is interrupted between the two loses neither.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roundelay.messages import Memory

Kept = Mapping[str, Tensor] | str
"""A memory as a checkpoint holds it: itself, or the name of its file."""


class ClientMemory:
    def __init__(self, first: Memory, disk: "Disk | None" = None) -> None:
        """``first`` is what a client remembers before its first task; it is shared, not copied per client. With a
        ``disk``, only the memories of the round at hand are in the process.
        """
        self._first, self._disk = first, disk
        self._kept: dict[str, Memory] = {}
        self._committed: dict[str, Memory] = {}  # of the round that is not finished

    def of(self, client: str) -> Memory:
        if client in self._committed:
            return self._committed[client]
        if self._disk is not None and client in self._disk:
            return self._disk.read(client)
        return self._kept.get(client, self._first)

    def commit(self, memories: Mapping[str, Memory]) -> None:
        self._committed.update(memories)

    def finish_round(self) -> None:
        """Make what was committed part of ``state``."""
        if self._disk is None:
            self._kept.update(self._committed)
        else:
            for client, memory in self._committed.items():
                self._disk.write(client, memory)
        self._committed = {}

    def state(self) -> dict[str, Kept]:
        """Return every memory that differs from the first, as of the last finished round, for a checkpoint; what the
        checkpoint names is on disk by then.
        """
        if self._disk is None:
            return {client: dict(memory) for client, memory in self._kept.items()}
        self._disk.sync()
        return dict(self._disk.names)

    def restore(self, state: Mapping[str, Kept]) -> None:
        if self._disk is None:
            self._kept = {client: kept for client, kept in state.items() if not isinstance(kept, str)}
        else:
            self._disk.restore({client: kept for client, kept in state.items() if isinstance(kept, str)})

    def checkpointed(self) -> None:
        """A checkpoint with the last ``state`` is in place: what only older ones named may go."""
        if self._disk is not None:
            self._disk.drop_superseded()


class Disk:
    """One file per client and change of its memory: a checkpoint's files stay until the next one is in place."""

    def __init__(self, folder: Path | None) -> None:
        """Without a ``folder``, the files live in a temporary one, as long as this object."""
        self._folder = Path(tempfile.mkdtemp(prefix="roundelay-memory-")) if folder is None else folder
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)
        self.names: dict[str, str] = {}
        self._unsynced: list[Path] = []
        self._superseded: list[Path] = []
        self._next = 1

    def __contains__(self, client: str) -> bool:
        return client in self.names

    def read(self, client: str) -> Memory:
        memory: Memory = torch.load(self._path(self.names[client]), map_location="cpu", weights_only=True)
        return memory

    def write(self, client: str, memory: Memory) -> None:
        if client in self.names:
            self._superseded.append(self._path(self.names[client]))
        name = f"{self._next:010d}.pt"  # by number: a client's id may be no file name
        self._next += 1
        torch.save(dict(memory), self._path(name))
        self.names[client] = name
        self._unsynced.append(self._path(name))

    def sync(self) -> None:
        """Make every file that ``names`` holds as durable as the checkpoint that will name it."""
        for path in self._unsynced:
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        self._unsynced = []

    def drop_superseded(self) -> None:
        for path in self._superseded:
            path.unlink(missing_ok=True)
        self._superseded = []

    def restore(self, names: Mapping[str, str]) -> None:
        """Go on from a checkpoint's names; whatever it does not name was written after it."""
        self.names = dict(names)
        named = set(self.names.values())
        for path in self._folder.glob("*.pt"):
            if path.name not in named:
                path.unlink()
        self._next = 1 + max((int(name.removesuffix(".pt")) for name in named), default=0)

    def _path(self, name: str) -> Path:
        return self._folder / name

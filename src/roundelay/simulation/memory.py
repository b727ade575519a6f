"""What simulated clients remember between rounds, kept by the server: in its process, or on disk.

A client's memory changes only when its update was folded: a refused or late client still stands where it stood. What a
checkpoint sees changes with the model's version, not before: a run that is interrupted between the two loses neither.
"""

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.messages import Memory
from roundelay.saved import load_saved

Kept = Mapping[str, Memory] | int
"""Memories as a checkpoint holds them: themselves, or the number under which their files know it."""


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
        kept = self._kept.get(client) if self._disk is None else self._disk.read(client)
        return self._first if kept is None else kept

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

    def state(self) -> Kept:
        """Return every memory that differs from the first, as of the last finished round, for a checkpoint, or what
        tells its files from later ones; they are on disk by then.
        """
        if self._disk is None:
            return {client: dict(memory) for client, memory in self._kept.items()}
        return self._disk.sync()

    def restore(self, state: Kept | None) -> None:
        """Go on from a checkpoint's ``state``; None is that of a run which has not come to one.

        Raises:
            ConfigError: the files of the run are those of another version.
        """
        if self._disk is None:
            assert not isinstance(state, int), "where memories are kept stays in a resumed run"
            self._kept = dict(state or {})
        elif isinstance(state, int) or state is None:
            self._disk.restore(state or 0)
        else:
            raise ConfigError("this run's memory on disk was written by an earlier version of roundelay, under other "
                              "names: go on with that version, or begin anew")  # fmt: skip

    def checkpointed(self) -> None:
        """A checkpoint with the last ``state`` is in place: what only older ones named may go."""
        if self._disk is not None:
            self._disk.checkpointed()


class Disk:
    """One file for each client that took part, none for the others, in up to 4096 folders; nothing but paths that are
    worked out is held in the process, however many clients there are.

    What changed since the last checkpoint lies apart, under the number of the checkpoint that will be the first to know
    of it. Until that is in place, the files of the one before stay as they are.
    """

    def __init__(self, folder: Path | None) -> None:
        """Without a ``folder``, the files live in a temporary one, as long as this object."""
        self._folder = Path(tempfile.mkdtemp(prefix="roundelay-memory-")) if folder is None else folder
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)
        self._number = 1
        self._unsynced: set[Path] = set()

    def read(self, client: str) -> Memory | None:
        """Return what was written last for a client; None where nothing was.

        Raises:
            ConfigError: a file is damaged.
        """
        place = _place(client)
        for folder in (self._since(self._number), self._kept):
            path = folder / place
            if path.exists():
                memory = load_saved(path, f"what client {client!r} remembers")
                if not isinstance(memory, Mapping) or not all(isinstance(one, Tensor) for one in memory.values()):
                    raise ConfigError(
                        f"{path}: expected what client {client!r} remembers, named tensors; it is damaged"
                    )
                return memory
        return None

    def write(self, client: str, memory: Memory) -> None:
        path = self._since(self._number) / _place(client)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(memory), path)
        self._unsynced.add(path)

    def sync(self) -> int:
        """Make every file as durable as the checkpoint that follows; return its number."""
        for path in self._unsynced:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        return self._number

    def checkpointed(self) -> None:
        """The checkpoint with the number of the last ``sync`` is in place: what it supersedes may go."""
        self._settle(self._since(self._number))
        self._number += 1

    def restore(self, number: int) -> None:
        """Go on from a checkpoint, 0 for none; whatever it does not know of was written after it."""
        for folder in self._folder.glob("since-*"):
            if int(folder.name.removeprefix("since-")) <= number:
                self._settle(folder)  # the run ended between its checkpoint and this
            else:
                shutil.rmtree(folder)
        self._number = number + 1

    def _settle(self, since: Path) -> None:
        for path in since.glob("*/*"):
            settled = self._kept / path.relative_to(since)
            settled.parent.mkdir(parents=True, exist_ok=True)
            path.replace(settled)
        shutil.rmtree(since, ignore_errors=True)

    def _since(self, number: int) -> Path:
        return self._folder / f"since-{number}"

    @property
    def _kept(self) -> Path:
        return self._folder / "kept"


def _place(client: str) -> Path:
    """Return where a client's file lies; its id may be no file name."""
    name = hashlib.blake2b(client.encode(), digest_size=16).hexdigest()
    return Path(name[:3], f"{name}.pt")

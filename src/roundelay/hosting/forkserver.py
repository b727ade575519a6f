"""How processes of one machine are started: from a server that has imported torch once, not from the caller's state."""

import multiprocessing as mp
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, SpawnContext

Context = ForkServerContext | SpawnContext

CHILDREN = threading.Lock()
"""Held where several threads start processes, or ask how one has ended: a start looks after all children of this
process, and of two threads that ask for the same exit status at once one gets a wrong one.
"""


def context(preload: Sequence[str]) -> Context:
    """Return the forkserver's context; what is preloaded counts when the server starts, once in a process's life."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(list(preload))
    return server


@contextmanager
def main_hidden() -> Iterator[None]:
    """Keep a new process from running the user's script again.

    multiprocessing imports ``__main__`` anew in every child, which scripts must guard against by ``if __name__ ==
    ...``. Our processes get what they need of ``__main__`` by value, so there is nothing to import.
    """
    with CHILDREN:  # of two threads, the second would take the first one's stand-in for the real module
        real = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = real


def die_with_parent(whole_group: bool = False) -> None:
    """Wait for the end of the process that asked for this one, then end this one, and its group where it leads one."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        if whole_group:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

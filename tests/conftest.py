"""What every run of the tests loads."""

import gc
import os
import shutil
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

pytest_plugins = ["figures"]

PRELOAD = ["torch._dynamo", "roundelay.simulation.executors.worker", "roundelay.hosting.process", "roundelay.serving",
           "roundelay.deployment.device.agent", "roundelay.deployment.device.reverse", "roundelay.site"]  # fmt: skip
IN_MEMORY, NEEDED_BYTES = Path("/dev/shm"), 4 * 2**30


def pytest_configure() -> None:
    """Have the one server from which all processes of the tests are forked import what any of them needs, once, whoever
    starts it; and have temporary folders in memory, where there is enough: a journal syncs each step, and waits for a
    disk, longer than a test computes.
    """
    preload = forkserver.set_forkserver_preload
    forkserver.set_forkserver_preload = lambda names: preload(list(dict.fromkeys([*names, *PRELOAD])))
    if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= NEEDED_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


def pytest_collection_finish() -> None:
    """Have nobody who looks for garbage go through all that was imported and collected, millions of things, again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a run's own thread and in its workers."""
    from roundelay import trainer  # which imports torch: not in every process that reads this

    with trainer.one_thread():
        yield

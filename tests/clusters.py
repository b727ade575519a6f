"""Ray clusters of this machine, on its loopback, for tests: each node is a raylet with processes of its own."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

import roundelay as rd

IP = "127.0.0.2"
QUICK = {"RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "500",
         "RAY_health_check_timeout_ms": "500", "RAY_health_check_failure_threshold": "3"}  # fmt: skip
"""A node that is gone is missed after two seconds, where Ray would wait for a quarter of a minute."""


@contextmanager
def quiet_ray() -> Iterator[Path]:
    """Keep what Ray writes in a folder of its own, whose path is short enough for sockets; afterwards, see that none of
    its processes is left.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    (folder / "ray").mkdir()
    settings = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
                "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **QUICK}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            yield folder
            left = psutil.wait_procs(processes_of(folder), timeout=20)[1]
            assert not left, [" ".join(process.cmdline())[:100] for process in left]
        finally:
            for process in processes_of(folder):
                process.send_signal(signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return all processes of the Rays that write into a folder: each has been told its name."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, OSError):  # read as bytes: Ray's titles overwrite the beginning
            told = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if f"RAY_TMPDIR={folder}".encode() in told and process.pid != os.getpid():
                found.append(process)
    return found


@contextmanager
def cluster(cpus: Sequence[int]) -> Iterator[str]:
    """Start a cluster of one node an entry, the head first; give its address."""
    from ray.cluster_utils import Cluster

    with quiet_ray():
        started = Cluster()
        try:
            for count in cpus:
                started.add_node(num_cpus=count, node_ip_address=IP, include_dashboard=False,
                                 object_store_memory=100 * 2**20)  # fmt: skip
            yield str(started.address)
        finally:
            started.shutdown()


def cut_power() -> None:
    """In a worker: end its node at once, with all that runs there."""
    raylet = psutil.Process(os.getppid())
    if raylet.name() == "raylet":  # else somebody beside us was faster
        beside = [process for process in raylet.children(recursive=True) if process.pid != os.getpid()]
        for process in [raylet, *beside]:
            process.send_signal(signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def end_the_raylet() -> None:
    """In a worker: end what runs its node, but none of its workers. Only its silence tells that it is gone."""
    raylet = psutil.Process(os.getppid())
    if raylet.name() == "raylet":
        raylet.send_signal(signal.SIGKILL)


def fails_for_c1(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[float, dict[str, float]]:
    """One plain step; of client c1, an error."""
    if task.client == "c1":
        raise ValueError("no such file: scans/17.png")
    inputs, targets = next(data.batches(torch.arange(len(data)), len(data)))
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return float(len(data)), {"loss": loss.item()}

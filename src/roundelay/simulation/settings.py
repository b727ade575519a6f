"""How to simulate: which executor, how many workers, where they compute, how long tasks take in virtual time."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from roundelay.algorithms.protocol import Rehearsal
from roundelay.errors import ConfigError
from roundelay.layout import Kind
from roundelay.messages import Task
from roundelay.simulation.devices import assign, read_gpu_mapping
from roundelay.simulation.executors.arena import Packed
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.executors.serial import Serial
from roundelay.trainer import Trainer, Work

EXECUTORS = ("processes", "serial")
MEMORIES = ("process", "disk")


@dataclass(frozen=True, slots=True)
class Simulation:
    """``num_workers`` defaults to the cores that this process may use. ``devices`` maps accelerators to their numbers
    of workers, {"cuda:0": 4}; ``gpu_mapping`` reads the same from FedML's file, as "gpu_mapping.yaml#mapping_name".
    ``duration(client, task)`` gives a task's simulated seconds; without it, answers arrive at once. ``memory`` says
    where what clients remember is kept: in the server's "process", or on "disk" (in the run folder), for populations
    whose memories together are larger than the machine's.
    """

    executor: str = "processes"
    num_workers: int | None = None
    devices: Mapping[str, int] = field(default_factory=dict)
    gpu_mapping: str | None = None
    duration: Callable[[str, Task], float] | None = None
    memory: str = "process"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError(f"simulation executor {self.executor!r} is unknown; known are {', '.join(EXECUTORS)}")
        if self.memory not in MEMORIES:
            raise ConfigError(f"simulation memory {self.memory!r} is unknown; known are {', '.join(MEMORIES)}")
        if self.devices and self.gpu_mapping:
            raise ConfigError("give devices or gpu_mapping, not both: each says where the workers compute")
        self.worker_devices()

    def worker_devices(self) -> tuple[str, ...]:
        """Return each worker's device; for the serial executor, the one device that it computes on."""
        devices = self.devices
        if self.gpu_mapping:
            path, _, mapping = self.gpu_mapping.partition("#")
            devices = read_gpu_mapping(path, mapping)
        spread = assign(devices, self.num_workers, available_cores())
        return spread if self.executor == "processes" else spread[:1]

    def start(self, work: Work, server: Trainer, rehearsal: Rehearsal) -> Executor:
        """Start the executor. A serial one on the CPU shares the server's own trainer."""
        devices = self.worker_devices()
        if self.executor == "serial":
            return Serial(server if devices == ("cpu",) else Trainer(work, torch.device(devices[0])))
        layout = server.layout
        vectors = [torch.empty(n, dtype=layout.dtype, device="meta") for n in rehearsal.lengths.values()]
        buffers = torch.empty(layout.length(Kind.FLOAT_BUFFER), dtype=layout.dtype, device="meta")
        integers = torch.empty(layout.length(Kind.INTEGER_BUFFER), dtype=torch.int64, device="meta")
        vectors += [buffers, integers] * (2 if rehearsal.private else 1)  # a private model has its own, in memory
        kept = sum(layout.length(kind, local=True) for kind in Kind) * 8 + 64 * len(Kind)
        return Processes(
            work, devices, Packed.of(vectors).size + rehearsal.memory_bytes + kept + 64 * len(rehearsal.lengths) + 64
        )


def available_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1

"""How to simulate: which executor, how many workers, where they compute, how long tasks take in virtual time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from roundelay.algorithms.protocol import Rehearsal
from roundelay.client.launch import ScriptLearner
from roundelay.errors import ConfigError
from roundelay.layout import Kind, Scope
from roundelay.learner import Learner
from roundelay.load import available_cores
from roundelay.messages import Task
from roundelay.simulation.devices import assign, read_gpu_mapping
from roundelay.simulation.executors.arena import Packed
from roundelay.simulation.executors.processes import Processes
from roundelay.simulation.executors.protocol import Executor
from roundelay.simulation.executors.ray import RayPool
from roundelay.simulation.executors.scripts import Scripts, Sites
from roundelay.simulation.executors.serial import Serial
from roundelay.simulation.executors.vectorized import MOST_CLIENTS, Vectorized
from roundelay.simulation.loads import LoadModel
from roundelay.simulation.network.network import Network
from roundelay.stacking import StackTrainer
from roundelay.trainer import Trainer, Work

AUTO = "auto"
EXECUTORS = ("processes", "serial", "vectorized", "ray", "threads", AUTO)
MEMORIES = ("process", "disk")


@dataclass(frozen=True, slots=True)
class Simulation:
    """``num_workers`` defaults to the cores that this process may use. ``devices`` maps accelerators to their numbers
    of workers, {"cuda:0": 4}; ``gpu_mapping`` reads the same from FedML's file, as "gpu_mapping.yaml#mapping_name".
    ``duration(client, task)`` gives a task's simulated seconds; a ``network`` models them, and what they cost; without
    either, answers arrive at once. ``load(client, when)`` gives how busy a client is, where the workflow asks before a
    round; without it, nobody is. ``memory`` says where what clients remember is kept: in the server's "process", or on
    "disk" (in the run folder), for populations whose memories together are larger than the machine's.

    The executor "vectorized" trains blocks of clients in one tensor, as many as fit into ``block_mib`` and 128 at most,
    on ``num_workers`` processes; with one worker, in this one. It is for models so small that calling torch takes
    longer than its arithmetic, and for a GRU. It comes to what the others come to up to rounding, and to its own bits
    again, for any number of workers. What it cannot stack (LSTM, a loop of your own) it refuses by name.

    The executor "auto" is one of these, chosen by a rule that looks at the job alone: "vectorized" for models so small
    that it pays, "serial" where one client trains at a time, "processes" for all else. The run's record "executor" says
    which, and why; a resumed run takes the same.

    The executor "ray" trains on the CPUs of a Ray cluster: that at ``address``, "auto" for the one that this machine is
    part of, or "host:port"; with "local" or none, a Ray of this machine that ends with the run.

    The rest is for jobs whose clients are scripts. There are ``num_clients`` of them, "site-1" and so on, unless the
    job's data is split among clients. Each is a process, or with executor "threads" a thread of this one, so that a
    breakpoint stops in it. ``max_concurrent`` bounds how many train at once (by default, as many as there are cores),
    ``keep_alive`` how many scripts live on between their tasks. A script that needs more than ``task_timeout_s`` real
    seconds for a task is ended, and its client is lost in that round.
    """

    executor: str = "processes"
    num_workers: int | None = None
    devices: Mapping[str, int] = field(default_factory=dict)
    gpu_mapping: str | None = None
    duration: Callable[[str, Task], float] | None = None
    network: Network | None = None
    load: LoadModel | None = None
    memory: str = "process"
    num_clients: int | None = None
    max_concurrent: int | None = None
    keep_alive: int = 16
    task_timeout_s: float | None = None
    block_mib: float = 256.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError(f"simulation executor {self.executor!r} is unknown; known are {', '.join(EXECUTORS)}")
        if self.memory not in MEMORIES:
            raise ConfigError(f"simulation memory {self.memory!r} is unknown; known are {', '.join(MEMORIES)}")
        if self.duration is not None and self.network is not None:
            raise ConfigError("give simulation.duration or simulation.network, not both: each says how long tasks take")
        for name in ("num_clients", "max_concurrent", "keep_alive", "task_timeout_s", "block_mib"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"simulation {name} must be positive, got {value!r}")
        self._check_address()
        if self.devices and self.gpu_mapping:
            raise ConfigError("give devices or gpu_mapping, not both: each says where the workers compute")
        self.worker_devices()

    def _check_address(self) -> None:
        if self.executor != "ray":
            if self.address is not None:
                raise ConfigError(f"simulation.address is that of a Ray cluster, and simulation.executor is "
                                  f'{self.executor!r}: set it to "ray", or leave address out')  # fmt: skip
            return
        if self.devices or self.gpu_mapping:
            raise ConfigError('simulation.executor = "ray" trains on the CPUs of a cluster: leave devices and '
                              "gpu_mapping out")  # fmt: skip
        address = self.address or "local"
        host, _, port = address.rpartition(":")
        if address not in ("auto", "local") and not (host and port.isdigit() and "/" not in host):
            raise ConfigError(f'simulation.address is {address!r}; expected "auto", "local", or "host:port" of a '
                              "cluster that this machine is part of (ray start --address host:port)")  # fmt: skip

    def worker_devices(self) -> tuple[str, ...]:
        """Return each worker's device; for the serial executor, the one device that it computes on."""
        devices = self.devices
        if self.gpu_mapping:
            path, _, mapping = self.gpu_mapping.partition("#")
            devices = read_gpu_mapping(path, mapping)
        spread = assign(devices, self.num_workers, available_cores())
        return spread if self.executor in ("processes", "vectorized") else spread[:1]

    def check(self, learner: Learner) -> None:
        """Refuse settings of the other kind of clients.

        Raises:
            ConfigError: scripts are to run where they cannot, or what trains is no script.
        """
        if isinstance(learner, ScriptLearner):
            if self.executor in ("serial", "ray"):
                raise ConfigError(f"scripts do not run in the executor {self.executor!r}: they run in processes of "
                                  'this machine (simulation.executor = "processes") or in its threads '
                                  '("threads")')  # fmt: skip
            if self.num_workers is not None or self.devices or self.gpu_mapping:
                raise ConfigError("a script chooses its own device, and simulation.max_concurrent says how many train "
                                  "at once: leave num_workers, devices and gpu_mapping out")  # fmt: skip
            return
        if self.executor == "threads":
            raise ConfigError('simulation.executor = "threads" is for scripts; use "serial" to debug in this process')
        for name in ("num_clients", "max_concurrent", "task_timeout_s"):
            if getattr(self, name) is not None:
                raise ConfigError(f"simulation.{name} is for jobs whose clients are scripts; how many share the data "
                                  "is said by the partition (partition.num_clients)")  # fmt: skip

    def start(self, work: Work, server: Trainer, rehearsal: Rehearsal, sites: Sites | None = None) -> Executor:
        """Start the executor. A serial one on the CPU shares the server's own trainer; ``sites`` are for scripts."""
        assert self.executor != AUTO, "a run settles that before it starts"
        if isinstance(work.learner, ScriptLearner):
            assert sites is not None
            return Scripts(
                work, server, sites, threads=self.executor == "threads",
                max_concurrent=self.max_concurrent or available_cores(), keep_alive=self.keep_alive,
                timeout_s=self.task_timeout_s,
            )  # fmt: skip
        devices = self.worker_devices()
        if self.executor == "ray":
            here = available_cores() if self.address in (None, "local") else None
            return RayPool(work, self.num_workers or here, self.address, server.layout)
        one_process = self.executor == "serial" or (self.executor == "vectorized" and len(devices) == 1)
        trainer = Trainer(work, torch.device(devices[0])) if one_process and devices != ("cpu",) else server
        if self.executor != "vectorized":
            if one_process:
                return Serial(trainer)
            return Processes(work, devices, _result_bytes(work, server, rehearsal), server.layout)
        stack = StackTrainer(trainer)
        fitting = max(1, int(self.block_mib * 2**20) // stack.bytes_a_client())
        if one_process:
            return Vectorized(Serial(trainer, stack), fitting)
        most = min(fitting, MOST_CLIENTS)
        inner = Processes(work, devices, most * _result_bytes(work, server, rehearsal), server.layout)
        return Vectorized(inner, fitting)


def _result_bytes(work: Work, server: Trainer, rehearsal: Rehearsal) -> int:
    """Return how much memory a task's answer, and what its client remembers, are expected to take."""
    layout = server.layout
    vectors = [torch.empty(n, dtype=layout.dtype, device="meta") for n in rehearsal.lengths.values()]
    buffers = torch.empty(layout.length(Kind.FLOAT_BUFFER), dtype=layout.dtype, device="meta")
    integers = torch.empty(layout.length(Kind.INTEGER_BUFFER), dtype=torch.int64, device="meta")
    vectors += [buffers, integers] * (2 if rehearsal.private else 1)  # a private model has its own, in memory
    kept = sum(layout.length(kind, Scope.LOCAL) for kind in Kind) * 8 + 64 * len(Kind)
    kept += 64  # the learner's cursor
    if work.uplink is not None:  # what a client remembers for it, at most two of each vector
        kept += 2 * Packed.of(vectors).size + 128
    return Packed.of(vectors).size + rehearsal.memory_bytes + kept + 64 * len(rehearsal.lengths) + 64

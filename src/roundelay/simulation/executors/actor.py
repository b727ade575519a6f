"""What trains on a Ray cluster: one actor, one torch thread, one trainer. Ray is not imported here."""

import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from roundelay.layout import Layout
from roundelay.messages import Task
from roundelay.simulation.executors.shipping import Parcel
from roundelay.simulation.executors.worker import keep_freed_memory
from roundelay.trainer import Trainer, run_or_describe


@dataclass(frozen=True, slots=True)
class Built:
    """What a process's results depend on beside the job. ``instructions`` is the set that torch's kernels use."""

    roundelay: str
    torch: str
    instructions: str

    @staticmethod
    def here() -> "Built":
        return Built(version("roundelay"), torch.__version__, torch.backends.cpu.get_cpu_capability())


@dataclass(frozen=True, slots=True)
class Began:
    """How an actor began: on which machine, on which of Ray's nodes (its id), built how, and the traceback that kept it
    from building its trainer.
    """

    machine: str
    node: str
    built: Built
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended: real seconds, and a parcel with an ``Answer``, an ``Evaluated`` or a traceback."""

    seconds: float
    outcome: Parcel


class Actor:
    _trainer: Trainer

    def begin(self, work: Parcel, import_path: Sequence[str], node_here: Callable[[], str], layout: Layout) -> Began:
        """Build the trainer, of a model of this layout. ``import_path`` is the server's: modules beside a job file are
        found where they are there.
        """
        torch.set_num_threads(1)
        keep_freed_memory()
        sys.path += [entry for entry in import_path if entry not in sys.path]
        machine, node, built = platform.node(), node_here(), Built.here()
        try:
            self._trainer = Trainer(work.open())
            layout.require_same(self._trainer.layout, "the model that a worker builds")
        except Exception:  # the user's model or data, on a machine that may not have what they need
            return Began(machine, node, built, traceback.format_exc())
        return Began(machine, node, built)

    def run(self, task: Sequence[Any], received: Parcel, memory: Parcel) -> Ended:  # Any: fields of several types
        """Do the task whose fields are ``task``, from a payload, with what its client remembers."""
        began = time.perf_counter()
        outcome = run_or_describe(self._trainer, Task(*task), received.open(), memory.open())
        return Ended(time.perf_counter() - began, Parcel.of(outcome))

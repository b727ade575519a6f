"""What the script of every peer does alike: its arguments, its data, a client's epoch, and what it tells at the end.

It needs torch and workloads.py, nothing of roundelay: peers run in environments of their own. `compare.py` starts the
scripts, with the folder of workloads.py on the path; to start one by hand, put it there by PYTHONPATH=benchmarks.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import LEARNING_RATE, SEED, WORKLOADS, Workload

CHECKED = 8  # clients, each with one batch, all in every round: nothing is left to chance


@dataclass(frozen=True)
class Asked:
    """One measurement. ``folder`` holds the data, made before; ``check`` asks for a run without any draw, which leaves
    its parameters there.
    """

    workload: Workload
    rounds: int
    folder: Path
    check: bool

    @staticmethod
    def read(arguments: list[str] | None = None) -> "Asked":
        parser = argparse.ArgumentParser()
        parser.add_argument("workload", choices=WORKLOADS)
        parser.add_argument("--rounds", type=int, required=True, help="all rounds, those of the warm-up included")
        parser.add_argument("--folder", type=Path, required=True, help="where the data are kept")
        parser.add_argument("--check", action="store_true", help="a small run without draws; leaves its parameters")
        asked = parser.parse_args(arguments)
        return Asked(resolved(asked.workload, asked.check), asked.rounds, asked.folder, asked.check)

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs and labels as pages of a file, which all processes of a peer share."""
        path = self.folder / f"{self.workload.name}-{self.workload.num_clients}.pt"
        if not path.exists():
            torch.save(self.workload.make_data(), path)
        inputs, targets = torch.load(path, mmap=True)
        return inputs, targets

    def tell(self, model: nn.Module | Tensor, ended: list[float], versions: dict[str, str]) -> None:
        """Print, as the last line, when each round ended, on the clock that all processes share."""
        if self.check:
            params = model if isinstance(model, Tensor) else nn.utils.parameters_to_vector(model.parameters()).detach()
            torch.save(params, self.folder / f"{Path(sys.argv[0]).stem}.pt")
        print(json.dumps({"ended": ended, "versions": {"torch": torch.__version__, **versions}}), flush=True)


def resolved(name: str, check: bool) -> Workload:
    workload = WORKLOADS[name]
    if not check:
        return workload
    return replace(workload, num_clients=CHECKED, cohort=CHECKED, batch_size=workload.examples_per_client)


def first_model(workload: Workload) -> nn.Module:
    torch.manual_seed(SEED)
    return workload.make_model()


def rows_of(client: int, workload: Workload) -> Tensor:
    """Return the rows of one client's examples, in a new order."""
    num_examples = workload.examples_per_client
    return torch.randperm(num_examples) + client * num_examples


def train(model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int) -> None:
    """Train one epoch by plain SGD: what a user writes by hand, where a peer leaves that to the user."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def now() -> float:
    return time.monotonic()

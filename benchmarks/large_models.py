"""How many copies of a large model the server holds while it folds the updates of eight clients.

    python benchmarks/large_models.py [--bytes SIZE] [--way direct | processes | evaluated]

Each way runs in a process of its own, which notes its memory 500 times a second. ``direct`` is a round's intake alone:
what was sent, the running mean, and answers that lie in memory shared with whoever made them. ``processes`` is a
simulation with one worker, whose own memory is not counted; ``evaluated`` is the same, where the server measures each
new model on data of its own. Clients train nothing: each adds one to one value.

Copies are the most that the process has beyond what it had with everything imported and no model. "Its own" is
anonymous memory; "shared" are the pages that it maps together with the worker (what was sent, and answers that come),
which the machine has once.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from bars import Bar, tell
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import roundelay as rd
from roundelay.data import TensorExamples
from roundelay.fold import Fold
from roundelay.guard import Expected, Guard
from roundelay.intake import Intake
from roundelay.layout import Layout
from roundelay.messages import Payload, Task, Update
from roundelay.simulation.executors.arena import Arena
from roundelay.trainer import Answer

NUM_CLIENTS, NUM_LAYERS, COPIES = 8, 4, 2.5
BARS = {"direct": COPIES, "processes": COPIES, "evaluated": None}


class Large(nn.Module):
    """Linear layers, of about ``num_bytes`` together."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        width = 16 * round((num_bytes / (4 * NUM_LAYERS)) ** 0.5 / 16)
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(NUM_LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def examples(width: int) -> TensorExamples:
    return TensorExamples(torch.ones(2, width), torch.tensor([0, 1]))


def idle(model: nn.Module, data: object, task: Task) -> tuple[float, dict[str, float]]:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1.0
    return 1.0, {}


class Watch(threading.Thread):
    """Notes the most memory that this process has, in bytes beyond what it has now: its own, and shared."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._base, self._over, self.most = look(), threading.Event(), (0, 0)

    def run(self) -> None:
        while not self._over.wait(0.002):
            now = look()
            self.most = (max(self.most[0], now[0] - self._base[0]), max(self.most[1], now[1] - self._base[1]))

    def stop(self) -> tuple[int, int]:
        self._over.set()
        self.join()
        return self.most


def look() -> tuple[int, int]:
    """Return anonymous and shared resident bytes."""
    kib = dict(re.findall(r"(RssAnon|RssShmem):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return 1024 * int(kib["RssAnon"]), 1024 * int(kib["RssShmem"])


def direct(num_bytes: int) -> int:
    """Fold through an intake; return how many bytes a model really has."""
    module = Large(num_bytes)
    layout = Layout.of(module)
    sent = Payload({"params": layout.flatten(module.state_dict()).params}, torch.empty(0), torch.empty(0).long())
    del module
    size, arena = sent.num_bytes, Arena()
    tasks = [Task(number, f"c{number}", 1) for number in range(NUM_CLIENTS)]
    slot = arena.allocate(size)
    fold = Fold({"params": "examples"})
    intake = Intake(tasks, sent, uplink=fold.uplink, expected=Expected.of(layout, {"params": layout.num_params}),
                    guard=Guard(), goal=None, release=lambda _: None, fold=fold)  # fmt: skip
    for task in tasks:
        packed = arena.write(slot, [sent.vectors["params"]])
        (params,) = arena.read(slot, packed)
        params[0] = float(task.id)
        intake.arrive(Answer(Update(task, Payload({"params": params}, sent.buffers, sent.integers), 1.0)))
    mean = intake.close().fold.totals()[0].mean("params")
    assert mean[0] == sum(range(NUM_CLIENTS)) / NUM_CLIENTS
    assert torch.equal(mean[1:], sent.vectors["params"][1:])
    return size


def simulated(num_bytes: int, evaluated: bool) -> int:
    """Run two rounds of a simulation; return how many bytes a model really has."""
    width = 16 * round((num_bytes / (4 * NUM_LAYERS)) ** 0.5 / 16)
    data = rd.FederatedData.from_datasets(
        {f"c{number}": examples(width) for number in range(NUM_CLIENTS)}, examples(width) if evaluated else None
    )
    job = rd.Job(
        model=lambda: Large(num_bytes), data=data, learner=idle, num_rounds=2, clients_per_round=NUM_CLIENTS, seed=1,
        simulation=rd.Simulation(num_workers=1), tracking=None,
    )  # fmt: skip
    for finished in job.rounds():
        assert finished.row["admitted"] == NUM_CLIENTS
    return int(finished.row["bytes_up"]) // NUM_CLIENTS


def measured(way: str, num_bytes: int) -> tuple[float, float]:
    """Go one way in this process; return copies of the model: of its own, and shared."""
    torch.set_num_threads(1)
    watch = Watch()
    watch.start()
    size = direct(num_bytes) if way == "direct" else simulated(num_bytes, way == "evaluated")
    own, shared = watch.stop()
    return own / size, shared / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=2**30)
    parser.add_argument("--way", choices=BARS, help="only this one, in this process; prints JSON")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measured(asked.way, asked.bytes)))
        return
    describe_machine()
    print(f"{NUM_CLIENTS} clients, a float32 model of {asked.bytes:,} bytes")
    table, bars = Table("way", "its own", "shared", "seconds"), list[Bar]()
    for way, bar in BARS.items():
        began = time.monotonic()
        command = [sys.executable, __file__, "--way", way, "--bytes", str(asked.bytes)]
        said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        own, shared = json.loads(said)
        table.add_row(way, f"{own:.2f} copies", f"{shared:.2f} copies", f"{time.monotonic() - began:.0f}")
        if bar is not None:
            bars.append(Bar(f"folding a large model: {way}", own, bar, "copies", "at most", "the bytes of one model"))
    Console(width=120).print(table)
    tell(bars)


if __name__ == "__main__":
    main()

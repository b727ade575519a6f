"""Roundelay beside other frameworks and the floor: seconds a round, start-up and memory, each in fresh processes.

    python benchmarks/peers/compare.py [WORKLOADS] [--repeats 3] [--venvs .venv-peers] [--check]

`make bench-peers` makes the peers' environments (`flower`, `pfl`); one that is not there is left out, by name. All take
turns, so that a noisy minute hits everybody. Data are made once, in a file whose pages every process maps.

* *s a round*: median of all rounds after a warm-up of two, over all repeats.
* *start-up*: from the process's start to the end of its first round, less the time of a round.
* *memory*: the most that all of its processes have together (PSS: what several share counts once), once a second;
  the pages of the data that they have read are among it.

``--check`` measures nothing: eight clients with one batch each, all in every round, leave nothing to chance, and after
three rounds every framework's model must be the floor's.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from bars import Bar, tell  # noqa: E402
from machine import describe_machine  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

WARMUP, LIMIT_S, LOOK_S = 2, 900, 1.0
OURS = {"tiny": "vectorized"}
COMPARED = ("small", "cnn", "tiny", "silo", "big")
CHECK_ROUNDS, CHECKED = 3, ("tiny", "silo", "big")
TOLERANCE = 1e-5


@dataclass
class Measured:
    """What a framework took on one workload, over all repeats."""

    round_s: list[float] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


class Failed(Exception):
    """A peer's script did not end well."""


def commands(venvs: Path, workload: str) -> dict[str, list[str]]:
    """Return how each is started: peers that are installed only."""
    flower, pfl = venvs / "flower" / "bin", venvs / "pfl" / "bin"
    every = {
        "floor": [sys.executable, str(HERE / "run_floor.py")],
        "roundelay": [sys.executable, str(HERE / "run_roundelay.py"), "--executor", OURS.get(workload, "processes")],
        "flower": [str(flower / "python"), str(HERE / "run_flower.py")],
        "pfl": [str(pfl / "torchrun"), "--nproc-per-node", str(cores()), str(HERE / "run_pfl.py")],
    }
    return {name: [*command, workload] for name, command in every.items() if Path(command[0]).exists()}


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Memory(threading.Thread):
    """Follows what a process and all that it started have."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._over, self.peak = psutil.Process(pid), threading.Event(), 0

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            total = 0
            with suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def run(command: list[str], rounds: int, folder: Path, check: bool = False) -> tuple[dict[str, Any], float, int]:
    """Return what a script told, when it was started, and its peak memory in bytes.

    Raises:
        Failed: it ended with an error, or had told nothing after 15 minutes.
    """
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **quiet, "PYTHONPATH": path}
    command = [*command, "--rounds", str(rounds), "--folder", str(folder), *(["--check"] if check else [])]
    began = time.monotonic()
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True)  # fmt: skip
        memory = Memory(process.pid)
        memory.start()
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        peak = memory.stop()
        output.seek(0)
        lines = output.read().splitlines()
    told = [line for line in lines if line.startswith('{"ended"')]
    if process.returncode or not told:
        raise Failed(f"{' '.join(command)} ended with {process.returncode}:\n" + "\n".join(lines[-30:]))
    return dict(json.loads(told[-1])), began, peak


def measure(into: Measured, command: list[str], rounds: int, folder: Path) -> None:
    told, began, peak = run(command, WARMUP + rounds, folder)
    ended = told["ended"]
    seconds = [after - before for before, after in zip(ended[WARMUP - 1 :], ended[WARMUP:], strict=False)]
    into.round_s += seconds
    into.start_s.append(ended[0] - began - statistics.median(seconds))
    into.peak_bytes.append(peak)
    into.versions = told["versions"]


def check(names: list[str], venvs: Path, folder: Path) -> None:
    """Compare the models that all arrive at.

    Raises:
        typer.Exit: one is farther from the floor's than rounding.
    """
    far = []
    for name in names:
        models = {}
        for framework, command in commands(venvs, name).items():
            run(command, CHECK_ROUNDS, folder, check=True)
            models[framework] = torch.load(folder / f"run_{framework}.pt")
        for framework, params in models.items():
            apart = float((params - models["floor"]).abs().max() / models["floor"].abs().max())
            print(f"{name}: {framework} is {apart:.1e} of the largest parameter from the floor's model")
            far += [f"{framework} on {name}"] * (not apart <= TOLERANCE)
    if far:
        print(f"not the same model: {', '.join(far)}")
        raise typer.Exit(1)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Workloads; the five when left out.")] = None,
    repeats: Annotated[int, typer.Option(help="How often all take turns.")] = 3,
    rounds: Annotated[int, typer.Option(help="Timed rounds; the workload's own when 0.")] = 0,
    venvs: Annotated[Path, typer.Option(help="Where the peers' environments are.")] = Path(".venv-peers"),
    only: Annotated[list[str] | None, typer.Option(help="These frameworks only; give it again for another.")] = None,
    checked: Annotated[bool, typer.Option("--check", help="Compare models, not times.")] = False,
) -> None:
    """Print the table, or compare the models."""
    describe_machine()
    names = names or list(CHECKED if checked else COMPARED)
    missing = [name for name in ("flower", "pfl") if not (venvs / name / "bin" / "python").exists()]
    if missing:
        print(f"not installed in {venvs}, and left out: {', '.join(missing)}; `make bench-peers` installs them")
    with tempfile.TemporaryDirectory() as folder:
        if checked:
            check(names, venvs, Path(folder))
            return
        table = Table("workload", "framework", "s a round", "least", "of the floor", "start-up s", "memory MiB", "with")
        bars = []
        for name in names:
            wanted = {f: c for f, c in commands(venvs, name).items() if not only or f in only}
            results = {framework: Measured() for framework in wanted}
            for _ in range(repeats):
                for framework, command in wanted.items():
                    measure(results[framework], command, rounds or WORKLOADS[name].rounds, Path(folder))
            medians = {framework: statistics.median(measured.round_s) for framework, measured in results.items()}
            for framework, measured in results.items():
                ratio = f"{medians['floor'] / medians[framework]:.2f}" if "floor" in medians else ""
                versions = ", ".join(f"{what} {version}" for what, version in measured.versions.items())
                table.add_row(name, framework, f"{medians[framework]:.4f}", f"{min(measured.round_s):.4f}", ratio,
                              f"{statistics.median(measured.start_s):.1f}",
                              f"{max(measured.peak_bytes) / 2**20:.0f}", versions)  # fmt: skip
                if framework not in ("floor", "roundelay") and "roundelay" in medians:
                    faster = medians[framework] / medians["roundelay"]
                    bars.append(Bar(f"peers: {name}, roundelay beside {framework}", faster, 1.0, "x", floor=framework))
        Console(width=160).print(table)
        tell(bars)


if __name__ == "__main__":
    typer.run(main)

"""What serving real devices costs beside moving the same bytes bare: a round, a restart, and the server's memory.

    python benchmarks/deployment.py [--repeats 3] [--rounds NUM] [--bytes SIZE] [--folder .]

``roundelay serve`` in a process of its own, eight devices that train nothing in others (``idle_devices.py``), TLS on
loopback, the journal and every sync as they are. The floor (``deployed_floor.py``) takes turns with it. A round is from
one round's first task at hand to the next one's: with fold, checkpoint and all. The folder says which disk is meant;
nothing is left in it.
"""

import argparse
import itertools
import json
import os
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
NUM_CLIENTS, WARMUP = 8, 1
LARGE, SMALL = 100_000_000, 248_024
MODELS = {LARGE: "idle_devices:Large", SMALL: "lenet"}
ROUNDS = {LARGE: 4, SMALL: 40}
SHARE, OVERHEAD_MS, READY_S, COPIES = 0.5, 50.0, 4.0, 3.0
Event = Mapping[str, Any]  # Any: what JSON holds


@dataclass(frozen=True)
class Measured:
    """``round_s`` are seconds of rounds, ``cpu_s`` those of all processors a round, of the server and of the clients;
    ``grown`` the server's largest growth in bytes since it was ready: all that is resident, and what is its own.
    """

    round_s: list[float]
    cpu_s: tuple[float, float]
    overhead_s: list[float]
    ready_s: float = 0.0
    grown: tuple[int, int] = (0, 0)


class Watch(threading.Thread):
    """Notes the memory and the CPU time of a process, 50 times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.seen: list[tuple[float, int, int, float]] = [look(pid)]

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.seen.append(look(self._pid))

    def stop(self) -> tuple[int, int]:
        """Return by how much it has grown at most since the first look."""
        self._over.set()
        self.join()
        _, *first, _ = self.seen[0]
        return max(s[1] for s in self.seen) - first[0], max(s[2] for s in self.seen) - first[1]

    def cpu_at(self, at: float) -> float:
        return next((cpu for seen_at, _, _, cpu in self.seen if seen_at >= at), self.seen[-1][3])


def look(pid: int) -> tuple[float, int, int, float]:
    """Return the time, resident bytes, those of them that are no file's pages, and seconds of CPU time."""
    status = Path(f"/proc/{pid}/status").read_text()
    size = {name: 1024 * int(kib) for name, kib in re.findall(r"(VmRSS|RssAnon|RssShmem):\s+(\d+) kB", status)}
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (time.monotonic(), size["VmRSS"], size["RssAnon"] + size["RssShmem"],
            sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))  # fmt: skip


def settle(pid: int) -> None:
    """Wait until a server that has no client yet is done with what it does at its start: what it has then is its base."""
    before, now = 0, look(pid)[2]
    while now != before:
        time.sleep(1.0)
        before, now = now, look(pid)[2]


# ---- the floor ------------------------------------------------------------------------------------------------------


def floor(root: Path, size: int, rounds: int) -> Measured:
    root.mkdir()
    script, numbers = [sys.executable, str(HERE / "deployed_floor.py")], [str(size), str(rounds), str(NUM_CLIENTS)]
    serving = subprocess.Popen([*script, "serve", root, *numbers], stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    port = serving.stdout.readline().strip()
    joined = subprocess.run([*script, "join", str(root), port, *numbers], stdout=subprocess.PIPE, check=True)
    told, clients_s = json.loads(serving.communicate()[0]), json.loads(joined.stdout)["cpu"]
    at, cpu = told["at"][WARMUP:], told["cpu"][WARMUP:]
    return Measured(differences(at), ((cpu[-1] - cpu[0]) / (len(at) - 1), clients_s / rounds), [])


def differences(at: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(at)]


# ---- the server -----------------------------------------------------------------------------------------------------


def serve(root: Path, size: int, rounds: int) -> Measured:
    """Serve a job of so many rounds; kill the server in its last one, and start it again."""
    root.mkdir()
    (root / "job.toml").write_text(
        f'name = "idle"\nnum_rounds = {rounds + WARMUP + 1}\nmodel = {{use = "{MODELS[size]}"}}\n'
        f'[learner]\nlr = 0.1\n[tracking]\nroot = "{root / "runs"}"\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with server(root, port) as (process, line):
        settle(process.pid)
        watch = Watch(process.pid)
        watch.start()
        url, token, pin = re.findall(r"join (\S+) --token (\S+) --pin (\S+)", line)[0]
        devices = subprocess.Popen(
            [sys.executable, str(HERE / "idle_devices.py"), str(root), str(NUM_CLIENTS), url, token, pin]
        )
        while last_round(root) <= rounds + WARMUP:
            time.sleep(0.05)
            if devices.poll() is not None or process.poll() is not None:
                raise RuntimeError("a process ended before its time; what it said is above")
        grown = watch.stop()
    began = time.monotonic()
    with server(root, port):
        ready_s = time.monotonic() - began
        if devices.wait(timeout=300):
            raise RuntimeError("a device failed; what it said is above")
    return of_events(events_of(root), watch, grown, ready_s)


@contextmanager
def server(root: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``roundelay serve``, killed at the end as by kill -9; yield it, and what it printed, once it is ready."""
    command = [
        str(Path(sys.executable).parent / "roundelay"), "serve", str(root / "job.toml"), "--clients", str(NUM_CLIENTS),
        "--host", "127.0.0.1", "--port", str(port), "--folder", str(root / "server"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "200"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    printed = list[str]()
    assert process.stdout is not None
    reading = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
    reading.start()
    try:
        while not is_ready(root, port) or not any("roundelay join" in line for line in printed):
            time.sleep(0.01)
            if process.poll() is not None:
                raise RuntimeError("".join(printed))
        yield process, "".join(printed)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        reading.join()


def is_ready(root: Path, port: int) -> bool:
    authority = root / "server" / "authority.crt"
    try:
        context = ssl.create_default_context(cafile=authority)
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", context=context, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


# ---- what the devices wrote down ------------------------------------------------------------------------------------


def events_of(root: Path) -> list[list[Event]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in root.glob("site-*.jsonl")]


def last_round(root: Path) -> int:
    """Return the highest number of a round that a device has been offered a task of."""
    offered = (re.findall(r'"round": (\d+)', path.read_text()) for path in root.glob("site-*.jsonl"))
    return max((int(number) for numbers in offered for number in numbers), default=0)


def of_events(events: Sequence[Sequence[Event]], watch: Watch, grown: tuple[int, int], ready_s: float) -> Measured:
    """Leave out the first rounds, and the last one, in which the server was killed."""
    at = defaultdict[tuple[str, int], list[float]](list)  # by what happened and in which round: when, by client
    cpu = defaultdict[int, float](float)
    for told in events:
        number = 0
        for event in told:
            number = event.get("round") or number
            if (event["what"], number) not in at or len(at[event["what"], number]) < NUM_CLIENTS:
                at[event["what"], number].append(event["at"])
            if event["what"] == "poll" and event["found"]:
                cpu[number] += event["cpu"]
    offered = {number: min(times) for (what, number), times in at.items() if what == "poll" and number}
    first, last = 1 + WARMUP, max(offered)
    numbers = range(first, last)
    server_s = watch.cpu_at(offered[last]) - watch.cpu_at(offered[first])
    rounds_s = [offered[number + 1] - offered[number] for number in numbers]
    # what remains of a round without the work of the client that came last: serving it, and everything beyond
    overhead_s = []
    for number, took in zip(numbers, rounds_s, strict=True):
        late = max(range(len(events)), key=lambda one: at["deliver", number][one])
        overhead_s.append(took - (at["deliver?", number][late] - at["model", number][late]))
    return Measured(rounds_s, (server_s / len(numbers), (cpu[last] - cpu[first]) / len(numbers)), overhead_s, ready_s,
                    grown)  # fmt: skip


# ---- the tables -----------------------------------------------------------------------------------------------------


def compare(folder: Path, size: int, repeats: int, rounds: int) -> None:
    floors, ours = [], []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for turn in range(repeats):
            root = Path(temporary).resolve()
            floors.append(floor(root / f"floor-{turn}", size, rounds + WARMUP))
            ours.append(serve(root / f"run-{turn}", size, rounds))
    print(f"load {os.getloadavg()[0]:.1f}; {NUM_CLIENTS} clients, {size:,} bytes down and up each, medians (least)")
    table = Table("what", "measured", "CPU, server + clients", "bar")
    for name, some in (("a round of the floor", floors), ("a round", ours)):
        cpu = " + ".join(f"{statistics.median(one.cpu_s[side] for one in some):.2f} s" for side in (0, 1))
        table.add_row(name, shown([s for one in some for s in one.round_s], 1e3, "ms"), cpu, "")
    medians = [statistics.median([s for one in some for s in one.round_s]) for some in (floors, ours)]
    bar = f"at least {SHARE:.2f}" if size == LARGE else ""
    table.add_row("floor / round", f"{medians[0] / medians[1]:.2f}", "", bar)
    overhead = [s for one in ours for s in one.overhead_s]
    table.add_row("a round without the last client's own work", shown(overhead, 1e3, "ms"), "",
                  f"less than {OVERHEAD_MS:g} ms" if size == SMALL else "")  # fmt: skip
    table.add_row("from the restart's command to ready", shown([one.ready_s for one in ours], 1.0, "s"), "",
                  f"less than {READY_S:g} s")  # fmt: skip
    for which, name in enumerate(("resident", "its own")):
        copies = max(one.grown[which] for one in ours) / size
        table.add_row(f"the server's growth at most, {name}", f"{copies:.2f} copies", "",
                      f"at most {COPIES:g}" if size == LARGE else "")  # fmt: skip
    Console(width=120).print(table)


def shown(values: Sequence[float], scale: float, unit: str) -> str:
    return f"{scale * statistics.median(values):.1f} {unit} ({scale * min(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("."))
    parser.add_argument("--bytes", type=int, choices=sorted(MODELS), action="append")
    parser.add_argument("--rounds", type=int, help="how many rounds of each, beside those that are not counted")
    asked = parser.parse_args()
    describe_machine()
    for size in asked.bytes or sorted(MODELS):
        compare(asked.folder, size, asked.repeats, asked.rounds or ROUNDS[size])


if __name__ == "__main__":
    main()

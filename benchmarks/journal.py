"""What the journal costs: an accepted update, a signed request, and 100 MB, beside the disk's own price for the same.

    python benchmarks/journal.py [FOLDER]

The folder, "." by default, says which disk is meant. Nothing is left in it.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import describe_machine
from rich.console import Console
from rich.table import Table

from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Opening, Run
from roundelay.messages import Task

CLIENTS = "abcdefgh"
KEY = "0" * 64
FLOOR = "append 4 KiB to a file and sync it (floor)"
NUM, SMALL, LARGE, PART = 500, 4096, 100_000_000, 4 * 2**20


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def synced(path: Path, data: bytes, *, append: bool = False) -> None:
    """The floor: the same bytes, written and synced once."""
    with path.open("ab" if append else "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def small_ones(journal: Journal, table: Table) -> None:
    bodies = [i.to_bytes(4, "big") * (SMALL // 4) for i in range(4 * NUM)]
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]

    def accept(i: int) -> None:
        journal.accept(i, CLIENTS[i % 8], digests[i], SMALL, {"num_examples": 10, "loss": 0.5})

    def whole(i: int) -> None:
        journal.blobs.put(bodies[i])
        accept(i)

    took: dict[str, list[float]] = {}
    for i in range(NUM):  # in turn, so that a disk that is slow for a while is so for each of them
        journal.blobs.put(bodies[i])
        for what, do in (
            (FLOOR, lambda i=i: synced(journal.folder / "floor", bodies[i], append=True)),
            ("accept, the blob being there", lambda i=i: accept(i)),
            ("put a blob of 4 KiB and accept it", lambda i=i: whole(NUM + i)),
            ("note a signed request", lambda i=i: journal.clients.advance("a", KEY, i)),
        ):
            took.setdefault(what, []).append(seconds(do))
    for what, times in took.items():
        row(table, what, times, took[FLOOR])
    with ThreadPoolExecutor(8) as threads:
        took = seconds(lambda: list(threads.map(whole, range(2 * NUM, 4 * NUM))))
    table.add_row("put and accept, 8 threads", "", "", f"{2 * NUM / took:.0f}", "")


def row(table: Table, what: str, took: list[float], floor: list[float]) -> None:
    median = statistics.median(took)
    p99 = sorted(took)[int(len(took) * 0.99)]
    ratio = median / statistics.median(floor)
    table.add_row(what, f"{median * 1e3:.2f}", f"{p99 * 1e3:.2f}", f"{len(took) / sum(took):.0f}", f"{ratio:.1f}")


def large_ones(journal: Journal, table: Table) -> None:
    """Each five times, with other bytes each time: a blob that is there is not written again."""
    took: dict[str, list[float]] = {}
    for i in range(5):
        first, second = os.urandom(LARGE), os.urandom(LARGE)
        digest = hashlib.sha256(second).hexdigest()
        for what, do in (
            ("write 100 MB and sync it (floor)", lambda data=first, i=i: synced(journal.folder / f"floor {i}", data)),
            ("SHA-256 of 100 MB", lambda data=first: hashlib.sha256(data)),
            ("put a blob of 100 MB", lambda data=first: journal.blobs.put(data)),
            ("upload 100 MB in parts of 4 MiB", lambda data=second, name=digest: upload(journal, data, name)),
            ("verify it and make it a blob", lambda name=digest: journal.uploads.finish("a", name)),
        ):
            took.setdefault(what, []).append(seconds(do))
    floor = statistics.median(took["write 100 MB and sync it (floor)"])
    for what, times in took.items():
        middle = statistics.median(times)
        table.add_row(what, f"{middle * 1e3:.0f}", "", f"{LARGE / 1e6 / middle:.0f} MB", f"{middle / floor:.1f}")


def upload(journal: Journal, data: bytes, digest: str) -> None:
    at = journal.uploads.begin("a", digest, LARGE)
    while at < LARGE:
        at = journal.uploads.write("a", digest, at, data[at : at + PART])


def main() -> None:
    describe_machine()
    table = Table("what", "median ms", "p99 ms", "per second", "x floor")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as root:
        with Journal(Path(root) / "run", Run("benchmark", "")) as journal:
            for client in CLIENTS:
                journal.clients.admit(client, KEY)
            journal.rounds.open(Opening(1, 0, tuple(CLIENTS)))
            journal.tasks.open([Task(i, CLIENTS[i % 8], 1) for i in range(4 * NUM)])
            small_ones(journal, table)
            large_ones(journal, table)
            table.add_row("look for what nothing refers to", f"{seconds(journal.collect) * 1e3:.0f}", "", "", "")
        reopened = seconds(lambda: Journal(Path(root) / "run", None).close())
        table.add_row(f"open a journal of {4 * NUM} blobs", f"{reopened * 1e3:.0f}", "", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()

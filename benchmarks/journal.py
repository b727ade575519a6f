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

from roundelay.deployment.journal import Journal
from roundelay.deployment.records import Opening, Run
from roundelay.messages import Task

CLIENTS = "abcdefgh"
NUM, SMALL, LARGE, PART = 500, 4096, 100_000_000, 4 * 2**20


def seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def each(do: Callable[[int], object], tasks: range) -> list[float]:
    return [seconds(lambda i=task: do(i)) for task in tasks]


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

    for i in range(NUM):
        journal.blobs.put(bodies[i])
    floor = each(lambda i: synced(journal.folder / "floor", bodies[i], append=True), range(NUM))
    row(table, "append 4 KiB to a file and sync it (floor)", floor, floor)
    row(table, "accept, the blob being there", each(accept, range(NUM)), floor)
    row(table, "put a blob of 4 KiB and accept it", each(whole, range(NUM, 2 * NUM)), floor)
    row(table, "note a signed request", each(lambda i: journal.clients.advance("a", i), range(NUM)), floor)
    with ThreadPoolExecutor(8) as threads:
        took = seconds(lambda: list(threads.map(whole, range(2 * NUM, 4 * NUM))))
    table.add_row("put and accept, 8 threads", "", "", f"{2 * NUM / took:.0f}", "")


def row(table: Table, what: str, took: list[float], floor: list[float]) -> None:
    median = statistics.median(took)
    p99 = sorted(took)[int(len(took) * 0.99)]
    ratio = median / statistics.median(floor)
    table.add_row(what, f"{median * 1e3:.2f}", f"{p99 * 1e3:.2f}", f"{len(took) / sum(took):.0f}", f"{ratio:.1f}")


def large_ones(journal: Journal, table: Table) -> None:
    data = os.urandom(LARGE)
    pieces = [data[at : at + PART] for at in range(0, LARGE, PART)]
    digest = hashlib.sha256(data[::-1]).hexdigest()

    def upload() -> None:
        backwards, at = data[::-1], journal.uploads.begin("a", digest, LARGE)
        while at < LARGE:
            at = journal.uploads.write("a", digest, at, backwards[at : at + PART])
        journal.uploads.finish("a", digest)

    floor = min(seconds(lambda: synced(journal.folder / "floor", data)) for _ in range(3))
    for what, took in (
        ("write 100 MB and sync it (floor)", floor), ("SHA-256 of 100 MB", seconds(lambda: hashlib.sha256(data))),
        ("put a blob of 100 MB", seconds(lambda: journal.blobs.put(pieces))),
        ("upload 100 MB in parts of 4 MiB", seconds(upload)),
    ):  # fmt: skip
        table.add_row(what, f"{took * 1e3:.0f}", "", f"{LARGE / 1e6 / took:.0f} MB/s", f"{took / floor:.1f}")


def main() -> None:
    describe_machine()
    table = Table("what", "median ms", "p99 ms", "per second", "x floor")
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as root:
        with Journal(Path(root) / "run", Run("benchmark", "")) as journal:
            for client in CLIENTS:
                journal.clients.add_token(client, expires_at=1.0)
                journal.clients.enrol(client, client.encode(), client, now=0.0)
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

"""What a frame costs between two processes of this machine, digest made and verified, by shared memory and by socket.

    python benchmarks/wire.py

*There* is a frame and a short answer; *there and back* the same frame returned. The two ways take turns, so that a
noisy minute hits both. Beside them, in the same run, what they cannot be faster than: the SHA-256 of the same bytes,
alone and twice side by side (where two cores share their arithmetic, the second takes as long as two in a row).
"""

import hashlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from roundelay import channel
from roundelay.channel import Channel, Listener, connect
from roundelay.wire import Frame

SIZES = {1_000: 300, 50_000: 300, 250_000: 300, 1_000_000: 90, 10_000_000: 15, 100_000_000: 9}  # bytes: repeats
AIMS = {250_000: 1.0, 100_000_000: 150.0}  # ms: there and back of the first, there of the second
WAYS = {"memory": 1, "socket": 1 << 62}
TURNS = 3


def answer(way: str) -> None:
    """Be the other process."""
    torch.set_num_threads(1)
    channel.MEMORY_FROM = WAYS[way]
    end = connect(os.environ["ADDRESS"])
    while (frame := end.receive()).kind != "stop":
        end.send(frame if frame.kind == "echo" else Frame("done"))
    end.close()


def milliseconds(repeats: int, work: Callable[[], object]) -> list[float]:
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return [1e3 * s for s in seconds]


def exchange(way: str, size: int, repeats: int) -> dict[str, list[float]]:
    channel.MEMORY_FROM = WAYS[way]
    listener = Listener()
    peer = subprocess.Popen([sys.executable, __file__, way], env=os.environ | {"ADDRESS": listener.address})
    end: Channel = listener.accept(timeout_s=60)
    listener.close()
    values = torch.randn(size // 4)

    def once(kind: str) -> None:
        end.send(Frame(kind, {"size": size}, {"values": values}))
        end.receive(timeout_s=60)

    once("echo")  # the memory is made here
    once("echo")
    taken = {kind: milliseconds(repeats, lambda kind=kind: once(kind)) for kind in ("there", "echo")}
    end.send(Frame("stop"))
    end.close()
    peer.wait(timeout=60)
    return taken


def hashing(size: int, repeats: int) -> tuple[list[float], list[float]]:
    data = bytes(size)

    def twice() -> None:
        threads = [threading.Thread(target=hashlib.sha256, args=(data,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return milliseconds(repeats, lambda: hashlib.sha256(data)), milliseconds(repeats, twice)


def main() -> None:
    torch.set_num_threads(1)
    describe_machine()
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds, medians (least)")
    table = Table("bytes", "way", "there", "there and back", "MB/s there", "SHA-256", "two side by side", "aim")
    for size, repeats in SIZES.items():
        taken: dict[str, dict[str, list[float]]] = {way: {"there": [], "echo": []} for way in WAYS}
        alone, both = hashing(size, min(repeats, 50))
        for _ in range(TURNS):
            for way, kinds in taken.items():
                for kind, some in exchange(way, size, repeats // TURNS).items():
                    kinds[kind] += some
        aim = f"{AIMS[size]:g} {'there' if size > 1_000_000 else 'and back'}" if size in AIMS else ""
        for way, kinds in taken.items():
            there, back = (f"{statistics.median(kinds[k]):.2f} ({min(kinds[k]):.2f})" for k in ("there", "echo"))
            rate = size / 1e3 / statistics.median(kinds["there"])
            table.add_row(f"{size:,}", way, there, back, f"{rate:.0f}", f"{statistics.median(alone):.2f}",
                          f"{statistics.median(both):.2f}", aim)  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        answer(sys.argv[1])
    else:
        main()

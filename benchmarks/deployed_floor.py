"""What moving the same models costs without a framework: the floor of ``deployment.py``, which starts both sides.

The server is one process with a thread for each client, the clients are processes: blocking TLS sockets, one buffer of
1 MiB each, pieces as large as they come. Down: the server sends from memory, the client takes SHA-256. Up: the client
sends from memory; the server takes SHA-256, writes a file, syncs it, and answers with the digest. No requests, no
signatures, nothing that could go on after a cut. A round ends when the last client has its answer.
"""

import hashlib
import json
import os
import resource
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

from roundelay.deployment.trust.certificates import Authority, server_context
from roundelay.deployment.trust.pinning import client_context

PIECE = 2**20
HOST = "127.0.0.1"


def receive(end: ssl.SSLSocket, buffer: memoryview, size: int, path: Path | None = None) -> bytes:
    """Take in ``size`` bytes, into a file where there is one, and return their SHA-256."""
    sha, left = hashlib.sha256(), size
    file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while left:
        filled = 0
        wanted = min(left, PIECE)
        while filled < wanted:
            count = end.recv_into(buffer[filled:wanted])
            if not count:
                raise ConnectionResetError("the other side is gone")
            filled += count
        sha.update(buffer[:filled])
        if file is not None:
            os.write(file, buffer[:filled])
        left -= filled
    if file is not None:
        os.fsync(file)
        os.close(file)
    return sha.digest()


def send(end: ssl.SSLSocket, model: memoryview) -> None:
    for at in range(0, len(model), PIECE):
        end.sendall(model[at : at + PIECE])


def serve(folder: Path, size: int, rounds: int, num_clients: int) -> None:
    """Print the port; then, when all rounds are over, the seconds that each took and this process's own CPU time."""
    authority = Authority.open(folder, time.time())
    (folder / "floor.crt").write_bytes(authority.pem)
    context, model = server_context(folder, [HOST], time.time()), memoryview(os.urandom(size))
    listener = socket.create_server((HOST, 0))
    print(listener.getsockname()[1], flush=True)
    ends = [context.wrap_socket(listener.accept()[0], server_side=True) for _ in range(num_clients)]
    begins, cpu = list[float](), list[float]()
    meeting = threading.Barrier(num_clients, lambda: (begins.append(time.monotonic()), cpu.append(time.process_time())))

    def one(end: ssl.SSLSocket, path: Path) -> None:
        buffer = memoryview(bytearray(PIECE))
        for _ in range(rounds):
            meeting.wait()
            send(end, model)
            end.sendall(receive(end, buffer, size, path))
        meeting.wait()

    threads = [threading.Thread(target=one, args=(end, folder / f"floor {i}")) for i, end in enumerate(ends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"at": begins, "cpu": cpu}), flush=True)


def join(folder: Path, port: int, size: int, rounds: int, num_clients: int) -> None:
    """Be that many clients, each a process; print the CPU time of all rounds of all of them."""
    children = []
    for _ in range(num_clients):
        child = os.fork()
        if not child:
            take_part(folder, port, size, rounds)
            os._exit(0)
        children.append(child)
    failed = [status for child in children if (status := os.waitpid(child, 0)[1])]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"cpu": spent.ru_utime + spent.ru_stime}), flush=True)
    sys.exit(bool(failed))


def take_part(folder: Path, port: int, size: int, rounds: int) -> None:
    context = client_context((folder / "floor.crt").read_bytes())
    model, buffer = bytearray(size), memoryview(bytearray(PIECE))
    with context.wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST) as end:
        for number in range(rounds):
            receive(end, buffer, size)
            model[:8] = number.to_bytes(8, "big")
            send(end, memoryview(model))
            receive(end, buffer, 32)


if __name__ == "__main__":
    role, folder, *numbers = sys.argv[1:]
    (serve if role == "serve" else join)(Path(folder), *map(int, numbers))

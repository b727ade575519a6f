"""A server in a process of its own under load: how it is started and watched, and clients that only sign and send.

Clients make no model better: each answers with the model that it was sent. All of them belong to one loop; keys are
drawn from the seed, so that another process can play the same clients.
"""

import asyncio
import hashlib
import re
import sqlite3
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from forked import Forked
from fronts import Device, Said

from roundelay import wire
from roundelay.client.exchange import Answered, read_model
from roundelay.deployment import protocol as p
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC
from roundelay.deployment.trust.identity import DeviceKey, encode
from roundelay.deployment.trust.kits import ROSTER
from roundelay.deployment.trust.members import Member, write_members
from roundelay.deployment.trust.pinning import client_context
from roundelay.tracking.run_folder import JOURNAL

JOB = """
name = "load"
num_rounds = {num_rounds}
model = {{use = "load_model:Square", side = {side}}}
[learner]
lr = 0.1
[tracking]
checkpoint_every_s = 1e9
[deployment]
wait_for_clients_s = 60.0
"""
MODEL = """
from torch import nn


class Square(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.layer = nn.Linear(side, side, bias=False)
"""
LIMIT_S = 240.0
"""How long a crowd may take."""


def key_of(seed: int, client: str) -> DeviceKey:
    return DeviceKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{seed} {client}".encode()).digest()))


def names(count: int) -> list[str]:
    return [f"site-{number + 1}" for number in range(count)]


GREEDY = "greedy"
"""The client that has many requests under way."""


def halves(count: int) -> list[str]:
    """Return the clients that stop in the middle of their answers."""
    return [f"half-{number + 1}" for number in range(count)]


@dataclass
class Loaded:
    """A server that takes clients."""

    folder: Path
    pid: int
    url: str
    run: str
    seed: int

    @property
    def tls(self) -> ssl.SSLContext:
        return client_context((self.folder / "server" / AUTHORITY_PUBLIC).read_bytes())

    def client(self, name: str, tls: ssl.SSLContext) -> Device:
        return Device(self.url, name, key_of(self.seed, name), self.run, tls)


@contextmanager
def serving(
    folder: Path, num_clients: int, *, side: int, num_rounds: int, seed: int = 0, settings: Sequence[str] = (),
    planted: str = "",
) -> Iterator[Loaded]:  # fmt: skip
    """Serve a model of ``side * side`` values to so many clients, who are enrolled. ``planted`` is code that the server
    runs when it imports the model's module.
    """
    (folder / "server").mkdir(mode=0o700)
    (folder / "job.toml").write_text(JOB.format(num_rounds=num_rounds, side=side))
    (folder / "load_model.py").write_text(MODEL + planted)
    members = {name: Member(name, public_key=encode(key_of(seed, name).public)) for name in names(num_clients)}
    write_members(folder / "server" / ROSTER, members, ())
    words = ["roundelay", "serve", "job.toml", "--clients", str(num_clients), "--host",
             "127.0.0.1", "--port", "0", "--folder", "server", *(f"--set={one}" for one in settings)]  # fmt: skip
    with Forked(folder, words, path=[folder], environment={"COLUMNS": "200"}) as process:
        said = ""
        while not (found := re.search(r"roundelay join (https://\S+)", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        (journal,) = (folder / "runs").glob(f"*/{JOURNAL}")
        yield Loaded(folder, process.pid, found[1], run_of(journal), seed)


def run_of(journal: Path) -> str:
    with closing(sqlite3.connect(f"file:{journal / 'journal.db'}?mode=ro", uri=True)) as db:
        (found,) = db.execute("SELECT id FROM run").fetchone()
    return str(found)


class Watch(threading.Thread):
    """Notes the largest memory of a process, 50 times a second, beyond what it had when this was made."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._over = psutil.Process(pid), threading.Event()
        self.base_bytes = self.most_bytes = self._process.memory_info().rss
        self._cpu_s = sum(self._process.cpu_times()[:2])
        self.num_files = 0

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)
            self.num_files = max(self.num_files, self._process.num_fds())

    def stop(self) -> None:
        self._over.set()
        self.join()
        self.cpu_s = sum(self._process.cpu_times()[:2]) - self._cpu_s

    @property
    def grown_mib(self) -> float:
        return (self.most_bytes - self.base_bytes) / 2**20


# ---- clients --------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What clients heard: verdicts, how often they were to come again, and whether each time it was said when."""

    verdicts: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    without_time: int = 0


async def asked(
    told: Told, ask: Callable[[], Awaitable[Said]], sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> Said:
    """Ask until it is not "come again later", as an honest device does."""
    while True:
        said = await ask()
        if said.status != 503:
            return said
        told.busy += 1
        told.without_time += "Retry-After" not in said.headers
        await sleep(float(said.headers.get("Retry-After", 1)))


async def take_part(device: Device, told: Told, num_rounds: int) -> None:
    """Take each round's task, answer with its model, and hear what became of it."""
    for _ in range(num_rounds):
        said = await asked(told, partial(device.poll, wait_s=20.0))
        while said.status == 204:
            said = await asked(told, partial(device.poll, wait_s=20.0))
        assert said.status == 200, said.body
        offer = p.Offer.model_validate_json(said.body)
        model = await asked(told, partial(device.ask, "GET", f"{p.BLOBS}/{offer.sent}"))
        assert model.status == 200, model.body
        assert hashlib.sha256(model.body).hexdigest() == offer.sent
        received = read_model(wire.decode(bytearray(model.body)))
        answer = wire.to_bytes(Answered(offer.id, 1.0, True, {}, received).frame())
        said = await asked(told, partial(device.part, offer.id, answer, 0, len(answer), round=offer.round))
        settled = said.receipt().settled
        assert settled is not None
        told.verdicts[settled.verdict.value] += 1


async def crowd(here: Loaded, clients: Sequence[str], num_rounds: int = 1) -> Told:
    """Let these clients take part, all at once; each has a connection of its own."""
    told, tls = Told(), here.tls
    async with AsyncExitStack() as opened, asyncio.timeout(LIMIT_S):
        devices = [await opened.enter_async_context(here.client(name, tls)) for name in clients]
        await asyncio.gather(*(take_part(device, told, num_rounds) for device in devices))
    return told


async def beats(device: Device, every_s: float, over: Callable[[], bool]) -> list[float]:
    """Send a heartbeat every so often until it is over; return how long each took, in seconds."""
    took = list[float]()
    while not over():
        began = time.monotonic()
        said = await device.ask("POST", p.BEAT, p.Beat(doing=[]))
        assert said.status == 200, said.body
        took.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, every_s - took[-1]))
    return took

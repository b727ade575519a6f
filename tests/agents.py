"""Agents on loopback: hands that double, time that passes when somebody sleeps, a proxy that cuts connections."""

import asyncio
import hashlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fronts import RUN, Place
from torch import Tensor

from roundelay import wire
from roundelay.client.exchange import Answered, model_frame
from roundelay.deployment import protocol as p
from roundelay.deployment.board import Phase
from roundelay.deployment.device.agent import Agent
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.hands import CannotDo, Done
from roundelay.deployment.device.link import Limits, Link
from roundelay.deployment.trust.address import Address
from roundelay.load import IDLE, Load
from roundelay.messages import Memory, Payload, Task


def payload(num_values: int = 100, value: float = 1.5) -> Payload:
    vector = torch.arange(num_values, dtype=torch.float32) + value
    return Payload({"params": vector}, torch.zeros(3), torch.zeros(1, dtype=torch.int64))


def model(num_values: int = 100, value: float = 1.5) -> bytes:
    return wire.to_bytes(model_frame(payload(num_values, value)))


class Doubler:
    """Doubles what it receives, and counts its trainings in its memory. ``gate`` holds it up inside a task."""

    def __init__(self) -> None:
        self.begun: list[Task] = []
        self.memories: list[dict[str, float]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.fails = ""
        self.num_interrupts, self.num_closed = 0, 0

    def do(self, task: Task, received: Payload, memory: Memory) -> Done:
        self.begun.append(task)
        self.memories.append({name: float(value) for name, value in memory.items()})
        self.inside.set()
        interrupts = self.num_interrupts
        while not self.gate.wait(0.001):
            if self.num_interrupts > interrupts:
                raise CannotDo("interrupted")
        if self.fails:
            raise CannotDo(self.fails, "Traceback: here")
        num_done = memory["num_done"] if "num_done" in memory else torch.tensor(0.0)
        if task.kind == "evaluate":
            return Done(Answered(task.id, 10, True, {"loss": 0.5}), {})
        doubled = Payload({k: 2 * v for k, v in received.vectors.items()}, received.buffers, received.integers)
        return Done(Answered(task.id, 10, True, {"loss": 0.5}, doubled), {"num_done": num_done + 1})

    def interrupt(self) -> None:
        self.num_interrupts += 1

    def close(self) -> None:
        self.num_closed += 1


class Clock:
    """Time that passes when somebody sleeps. What is real meanwhile, connections and threads, gets its turn."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        for _ in range(3):
            await asyncio.sleep(0)


@dataclass
class Party:
    """One device beside a server: its folder, what it said, what it did."""

    folder: Path
    url: str
    here: Place | None = None
    client: str = "a"
    hands: Doubler = field(default_factory=Doubler)
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)
    briefings: list[p.Briefing] = field(default_factory=list)
    limits: Limits = Limits(5.0, 5.0)
    load: Callable[[], Load] = lambda: IDLE
    agent: Agent | None = None
    tls: ssl.SSLContext | None = None

    @staticmethod
    def of(
        here: Place, folder: Path, client: str = "a", port: int | None = None, tls: ssl.SSLContext | None = None
    ) -> "Party":
        """A device that joined before, with the key that the server knows."""
        scheme = "http" if tls is None else "https"
        party = Party(folder, f"{scheme}://127.0.0.1:{port or here.port}", here, client, tls=tls)
        with Device(folder) as device:
            device.take_key(here.keys[client])
            if device.joined is None:
                device.join(client, party.url)
        return party

    def link(self, device: Device) -> Link:
        address = Address.plain(self.url) if self.tls is None else Address.of(self.url)
        return Link(address, self.tls, device.key(), device.counter, client=self.client, limits=self.limits)

    async def take_part(self, device: Device | None = None) -> str:
        """Run an agent until it ends."""
        own = device or Device(self.folder)
        try:
            async with self.link(own) as link:
                return await self.agent_of(link, own).run()
        finally:
            if device is None:
                own.close()

    def agent_of(self, link: Link, device: Device) -> Agent:
        def hands(briefing: p.Briefing) -> Doubler:
            self.briefings.append(briefing)
            return self.hands

        self.agent = Agent(
            link,
            device,
            hands,
            self.said.append,
            sleep=self.clock.sleep,
            now_s=self.clock,
            draw=lambda: 0.5,
            load=self.load,
        )
        return self.agent

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait for what another thread or task is about to do."""
    for _ in range(30_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{what} did not happen")


async def answered(here: Place, *tasks: int) -> None:
    """Wait until these tasks have their answers."""
    await until(lambda: all(here.journal.update(task) for task in tasks), f"answers to {tasks}")


async def beside(work: Awaitable[Any], script: Callable[[], Awaitable[None]], timeout_s: float = 60.0) -> Any:
    """Let ``work`` go on while a script plays; return what came of the work."""
    task = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout(timeout_s):
            playing = asyncio.ensure_future(script())
            await asyncio.wait({task, playing}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not playing.done():
                playing.cancel()
            else:
                await playing
            return await task
    finally:
        task.cancel()
        with suppress(BaseException):
            await task


def over(here: Place, reason: str = "it is done") -> None:
    here.board.turn(Phase.ENDED, reason)


def answer_in(here: Place, task: int) -> Answered:
    """Return what the journal has of an answer."""
    update = here.journal.update(task)
    assert update is not None
    with here.journal.blobs.open(update.digest) as file:
        frame = wire.decode(file.read())
    return Answered.read(frame)


def is_doubled(here: Place, task: int, num_values: int) -> bool:
    """Whether the journal's answer is the model doubled, to the bit."""
    came = answer_in(here, task).payload
    return came is not None and torch.equal(came.vectors["params"], 2 * payload(num_values).vectors["params"])


def tensors(memory: Mapping[str, Tensor] | None) -> dict[str, float] | None:
    return None if memory is None else {name: float(value) for name, value in memory.items()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- a proxy that cuts -----------------------------------------------------------------------------------------------


@dataclass
class Cut:
    """After so many bytes in a direction a connection ends; None: never. Those beyond are swallowed."""

    up: int | None = None
    down: int | None = None


@dataclass(frozen=True)
class Harm:
    """After so many bytes in a direction, over all connections, the one that is there is cut; or a bit is changed."""

    at: int
    is_cut: bool


class Proxy:
    """Passes bytes on to a port, cuts connections as planned, and counts. ``stalled``: passes nothing on, and hangs."""

    def __init__(self, port: int, cuts: Sequence[Cut] = (), up: Sequence[Harm] = (), down: Sequence[Harm] = ()) -> None:
        """``up`` and ``down`` are in ascending order; a changed bit is one of a byte that is passed on all the same."""
        self.target, self.cuts = port, list(cuts)
        self._harm_up, self._harm_down = list(up), list(down)
        self.num_up, self.num_down, self.num_connections = 0, 0, 0
        self.num_cut, self.num_flipped = 0, 0
        self.stalled = False
        self.dies = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        cut = self.cuts.pop(0) if self.cuts else Cut()
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(back)
            pumps = [
                asyncio.ensure_future(self._pump(reader, back, cut.up, True)),
                asyncio.ensure_future(self._pump(there, writer, cut.down, False)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # nobody listens there now
        finally:
            for one in writers:
                one.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, is_up: bool
    ) -> None:
        left = limit
        while data := await reader.read(65_536):
            if self.dies.is_set():
                self.dies.clear()
                return
            while self.stalled:
                await asyncio.sleep(0.01)
            data, is_cut = self._harmed(data, is_up)
            if left is not None and len(data) >= left:
                data, is_cut = data[:left], True
            self.num_cut += is_cut  # also where nobody is there any more to take the last bytes
            writer.write(data)
            await writer.drain()
            self._count(data, is_up)
            if is_cut:
                return
            if left is not None:
                left -= len(data)

    def _harmed(self, data: bytes, is_up: bool) -> tuple[bytes, bool]:
        """Return what is left of these bytes, and whether the connection ends behind them."""
        harm, begun = (self._harm_up, self.num_up) if is_up else (self._harm_down, self.num_down)
        while harm and harm[0].at < begun + len(data):
            one = harm.pop(0)
            at = max(0, one.at - begun)
            if one.is_cut:
                return data[:at], True
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self.num_flipped += 1
        return data, False

    def _count(self, data: bytes, is_up: bool) -> None:
        if is_up:
            self.num_up += len(data)
        else:
            self.num_down += len(data)


__all__ = ["RUN"]

"""Devices without a network: threads that take tasks off a board and answer into its journal, as a front would."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import roundelay as rd
from roundelay import wire
from roundelay.client.exchange import Answered, Site, read_model
from roundelay.components import describe
from roundelay.deployment.board import Board
from roundelay.deployment.device.hands import CannotDo, TrainerHands
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import KeptTask
from roundelay.deployment.journal.records import Run as JournalRun
from roundelay.deployment.running.world import Deployed
from roundelay.load import IDLE
from roundelay.messages import Memory
from roundelay.prepared import Prepared
from roundelay.run import Run

HEARTBEAT_S = 0.2
ONE_AT_A_TIME = threading.Lock()
"""Devices are machines of their own: in one process, they would share torch's generator and its number of threads."""

LOOK_S = 0.005
LIMIT_S = 30.0
"""How long a test waits for what must come; planted bugs may make it wait for ever."""


class Vanishes(Exception):
    """Raised in place of an answer: the device is switched off, and was for long."""


Answering = Callable[[KeptTask, bytes], bytes | None]
"""What a device sends instead of its answer; None: it stays silent."""


def as_they_are(task: KeptTask, answer: bytes) -> bytes | None:
    return answer


class Device:
    """One client, in a thread of its own; from another one it shows that it lives, whatever it is about. Its memories
    are kept by task, as a device's folder keeps them.
    """

    def __init__(
        self, board: Board, prepared: Prepared, run: Run, client: str, memories: dict[int, Memory],
        answering: Answering = as_they_are,
    ) -> None:  # fmt: skip
        work = prepared.work
        site = Site(
            client, "run", work.seed, prepared.plan.num_rounds, describe(work.algorithm), run.trainer.layout, {}
        )
        self._hands = TrainerHands(work, site)
        self._board, self._client, self._memories, self._answering = board, client, memories, answering
        self.load: Callable[[], Mapping[str, float]] = lambda: IDLE.readings
        self._posted = threading.Event()
        self._left = False
        self.accepted: Callable[[KeptTask], None] = _nobody_asks
        self._silent: set[int] = set()
        self.tasks: list[KeptTask] = []
        self._gone = threading.Event()
        self._threads = [threading.Thread(target=what, daemon=True) for what in (self._work, self._show)]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        self._posted.set()

    @property
    def is_at_work(self) -> bool:
        """Whether it will still answer something that it was asked."""
        return not self._gone.is_set() and self._board.next_task(self._client, self._silent) is not None

    def leave(self) -> None:
        self._left = True
        self._posted.set()
        self._gone.set()
        for thread in self._threads:
            thread.join()

    def _show(self) -> None:
        self._board.saw(self._client)
        while not self._gone.wait(HEARTBEAT_S):
            self._board.saw(self._client)

    def _work(self) -> None:
        while not self._left:
            kept = self._board.next_task(self._client, self._silent)
            if kept is None:
                self._posted.wait(HEARTBEAT_S)
                self._posted.clear()
                continue
            self.tasks.append(kept)
            try:
                self._do(kept)
            except Vanishes:
                self._gone.set()
                self._threads[1].join()
                with self._board._lock:
                    self._board._seen[self._client] -= 2 * self._board.gone_after_s
                return

    def _do(self, kept: KeptTask) -> None:
        journal, task = self._board.journal, kept.task
        if task.kind == "load":
            self._send(kept, wire.to_bytes(Answered(task.id, 1.0, False, self.load()).frame()))
            return
        assert kept.sent is not None
        with journal.blobs.open(kept.sent) as file:
            received = read_model(wire.decode(bytearray(file.read())))
        try:
            with ONE_AT_A_TIME:
                done = self._hands.do(task, received, {} if kept.memory is None else self._memories[kept.memory])
        except CannotDo as failure:
            journal.tasks.lose(task.id, failure.reason, failure.traceback)
            self._board.came(task.id)
            return
        self._memories[task.id] = {name: value.clone() for name, value in done.memory.items()}
        self._send(kept, wire.to_bytes(done.answered.frame()))

    def _send(self, kept: KeptTask, answer: bytes) -> None:
        journal, task = self._board.journal, kept.task
        raw = self._answering(kept, answer)
        if raw is None:
            self._silent.add(task.id)
            return
        digest = journal.blobs.put(raw)
        assert digest == hashlib.sha256(raw).hexdigest()
        journal.accept(task.id, self._client, digest, len(raw), {})
        self._board.came(task.id)
        self.accepted(kept)


class Unhurried(Deployed):
    """Its clock stands still while somebody is at work who will answer: no deadline is too short for a busy machine."""

    devices: Mapping[str, Device] = {}

    def loop(self) -> asyncio.AbstractEventLoop:
        made = super().loop()
        passed_s, looked_s = 0.0, time.monotonic()

        def now_s() -> float:
            nonlocal passed_s, looked_s
            now_s = time.monotonic()
            if now_s - looked_s < LOOK_S:  # a loop asks often, and a look takes a while
                return passed_s
            if not any(device.is_at_work for device in list(self.devices.values())):
                passed_s += now_s - looked_s
            looked_s = now_s
            return passed_s

        made.time = now_s  # type: ignore[method-assign]
        return made


class Deployment:
    """A run, its board and its devices. ``memories`` outlive it, as devices outlive a server."""

    def __init__(
        self, prepared: Prepared, folder: Path | None = None, memories: dict[str, dict[int, Memory]] | None = None,
        answering: Mapping[str, Answering] = {}, wait_s: float = 60.0, heartbeat_s: float = HEARTBEAT_S,
        disk_of: Callable[[Path], Disk] = lambda folder: Disk(),
    ) -> None:  # fmt: skip
        self.run = Run(prepared, folder, world=self._made_world)
        assert self.run.folder is not None
        disk = disk_of(self.run.folder)
        self.journal = Journal(self.run.folder / "journal", JournalRun("run", prepared.resolved), disk=disk)
        self.board = Board(self.journal, heartbeat_s)
        self.rounds: list[rd.Round] = []
        self._world: Deployed | None = None
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._ending: BaseException | None = None
        self.memories = {} if memories is None else memories
        self.devices: dict[str, Device] = {}
        self._prepared, self._answering, self._wait_s = prepared, answering, wait_s
        self.board.listen_for_posts(self._wake)

    def join(self, client: str) -> None:
        self.journal.clients.admit(client, hashlib.sha256(client.encode()).hexdigest())
        memories = self.memories.setdefault(client, {})
        answering = self._answering.get(client, as_they_are)
        self.devices[client] = Device(self.board, self._prepared, self.run, client, memories, answering)

    # ---- a run that is watched while it goes on ----------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def finished(self) -> rd.History:
        """Wait for the end of the run."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the run waits for ever"
        if self._ending is not None:
            raise self._ending
        return self.run.history()

    def kill(self) -> None:
        """End the run where it stands; nothing is checkpointed any more."""
        self.run.standing.checkpoint = lambda: None  # type: ignore[method-assign]
        self.interrupt()

    def interrupt(self) -> None:
        if self._thread.ident is not None:
            eventually(lambda: self._world is not None or self.over)
            if self._world is not None:
                self._world.interrupt()
            self._thread.join(LIMIT_S)
            assert not self._thread.is_alive(), "the run does not end"

    def checkpointed(self) -> None:
        """Tell the journal that a checkpoint was written by hand."""
        version = self.run.standing.version
        assert self._world is not None
        assert version is not None
        self._world.checkpointed(version)

    @property
    def over(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def asked(self) -> list[int]:
        """The tasks that devices were given."""
        return [kept.task.id for device in self.devices.values() for kept in device.tasks]

    def _drive(self) -> None:
        try:
            self.rounds.extend(self.run)
        except BaseException as error:
            self._ending = error

    def leave(self) -> None:
        self.interrupt()
        for device in self.devices.values():
            device.leave()
        self.journal.close()

    def _wake(self, clients: object) -> None:
        for device in list(self.devices.values()):
            device.wake()

    def _made_world(self, run: Run) -> Deployed:
        standing = run.standing
        self._world = Unhurried(
            self.board, standing.flights, standing.virtual_ns, self._wait_s,
            lambda version: run.trainer.layout.sha256(version.vectors),
        )  # fmt: skip
        self._world.devices = self.devices
        return self._world


@contextmanager
def deployed(
    prepared: Prepared, folder: Path | None = None, memories: dict[str, dict[int, Memory]] | None = None,
    answering: Mapping[str, Answering] = {}, absent: Collection[str] = (), wait_s: float = 60.0,
    heartbeat_s: float = HEARTBEAT_S, disk_of: Callable[[Path], Disk] = lambda folder: Disk(),
) -> Iterator[Deployment]:  # fmt: skip
    """Begin, or go on with, a run on devices, all of which join but those that are absent; ``disk_of(run folder)`` is
    what its journal writes to.
    """
    # a run that ends gives torch its threads back, and a device of this process may still be at work: their number is
    # the process's, and changes sums
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    deployment = Deployment(prepared, folder, memories, answering, wait_s, heartbeat_s, disk_of)
    try:
        for client in prepared.work.data.clients:
            if client not in absent:
                deployment.join(client)
        yield deployment
    finally:
        deployment.leave()
        torch.set_num_threads(threads)


def _nobody_asks(kept: KeptTask) -> None: ...


class Turns:
    """The answers of every round come in this order; who is not named stays silent."""

    def __init__(self, order: Sequence[str]) -> None:
        self._order, self._news = order, threading.Condition()
        self._came: dict[tuple[int, int], list[str]] = {}

    def answering(self) -> dict[str, Answering]:
        return {f"c{i}": self._in_turn for i in range(6)}

    def watch(self, deployment: Deployment) -> None:
        for device in deployment.devices.values():
            device.accepted = self._accepted

    def _in_turn(self, kept: KeptTask, answer: bytes) -> bytes | None:
        task = kept.task
        if task.client not in self._order:
            return None
        came = self._came.setdefault((task.round, task.attempt), [])
        turn = self._order.index(task.client)
        with self._news:
            in_turn = self._news.wait_for(lambda: len(came) >= turn, LIMIT_S)
        return answer if in_turn else None

    def _accepted(self, kept: KeptTask) -> None:
        with self._news:
            self._came[kept.task.round, kept.task.attempt].append(kept.task.client)
            self._news.notify_all()


def eventually(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    until_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.005)

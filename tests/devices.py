"""Devices without a network: threads that take tasks off a board and answer into its journal, as a front would."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from roundelay import wire
from roundelay.client.exchange import Site, read_model
from roundelay.components import describe
from roundelay.deployment.board import Board
from roundelay.deployment.hands import CannotDo, TrainerHands
from roundelay.deployment.journal import Journal
from roundelay.deployment.records import KeptTask
from roundelay.deployment.records import Run as JournalRun
from roundelay.deployment.world import Deployed
from roundelay.messages import Memory
from roundelay.prepared import Prepared
from roundelay.run import Run

HEARTBEAT_S = 0.2
ONE_AT_A_TIME = threading.Lock()
"""Devices are machines of their own: in one process, they would share torch's generator and its number of threads."""

Answering = Callable[[KeptTask, bytes], bytes | None]
"""What a device sends instead of its answer; None: it stays silent."""


def as_they_are(task: KeptTask, answer: bytes) -> bytes | None:
    return answer


class Device:
    """One client, in a thread of its own. Its memories are kept by task, as a device's folder keeps them."""

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
        self._posted = threading.Event()
        self._left = False
        self._silent: set[int] = set()
        self.tasks: list[KeptTask] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._posted.set()

    def leave(self) -> None:
        self._left = True
        self._posted.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._left:
            self._board.saw(self._client)
            kept = self._board.next_task(self._client, self._silent)
            if kept is None:
                self._posted.wait(HEARTBEAT_S)
                self._posted.clear()
                continue
            self.tasks.append(kept)
            self._do(kept)

    def _do(self, kept: KeptTask) -> None:
        journal, task = self._board.journal, kept.task
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
        raw = self._answering(kept, wire.to_bytes(done.answered.frame()))
        if raw is None:
            self._silent.add(task.id)
            return
        digest = journal.blobs.put(raw)
        assert digest == hashlib.sha256(raw).hexdigest()
        journal.accept(task.id, self._client, digest, len(raw), {})
        self._board.came(task.id)


class Deployment:
    """A run, its board and its devices. ``memories`` outlive it, as devices outlive a server."""

    def __init__(
        self, prepared: Prepared, folder: Path | None = None, memories: dict[str, dict[int, Memory]] | None = None,
        answering: Mapping[str, Answering] = {}, wait_s: float = 60.0,
    ) -> None:  # fmt: skip
        self.run = Run(prepared, folder, world=self._world)
        assert self.run.folder is not None
        self.journal = Journal(self.run.folder / "journal", JournalRun("run", prepared.resolved))
        self.board = Board(self.journal, HEARTBEAT_S)
        self.memories = {} if memories is None else memories
        self.devices: dict[str, Device] = {}
        self._prepared, self._answering, self._wait_s = prepared, answering, wait_s
        self.board.listen_for_posts(self._wake)

    def join(self, client: str) -> None:
        self.journal.clients.admit(client, hashlib.sha256(client.encode()).hexdigest())
        memories = self.memories.setdefault(client, {})
        answering = self._answering.get(client, as_they_are)
        self.devices[client] = Device(self.board, self._prepared, self.run, client, memories, answering)

    def leave(self) -> None:
        for device in self.devices.values():
            device.leave()
        self.journal.close()

    def _wake(self, clients: object) -> None:
        for device in list(self.devices.values()):
            device.wake()

    def _world(self, run: Run) -> Deployed:
        standing = run.standing
        return Deployed(
            self.board, standing.flights, standing.virtual_ns, self._wait_s,
            lambda version: run.trainer.layout.sha256(version.vectors),
        )  # fmt: skip


@contextmanager
def deployed(
    prepared: Prepared, folder: Path | None = None, memories: dict[str, dict[int, Memory]] | None = None,
    answering: Mapping[str, Answering] = {},
) -> Iterator[Deployment]:  # fmt: skip
    """Begin, or go on with, a run on devices, all of which join."""
    deployment = Deployment(prepared, folder, memories, answering)
    try:
        for client in prepared.work.data.clients:
            deployment.join(client)
        yield deployment
    finally:
        deployment.leave()

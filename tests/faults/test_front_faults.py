"""A front whose clients hang up, stall, flood and repeat themselves, and whose disk fails: nothing is acknowledged that
is not on disk, nobody holds what others need, and all goes on where it was.
"""

import asyncio
import errno
import os
import random
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crashes import Model, Recorder, materialise, pictures
from fronts import RUN, Device, Place, head, part_of, place, within
from journals import quick_folder, sha256

from roundelay.deployment import protocol as p
from roundelay.deployment.front.desk import Desk
from roundelay.deployment.front.receiving import ROOM_BYTES, Body, Intake, Part
from roundelay.deployment.front.turns import Turns
from roundelay.deployment.journal.disk import Disk
from roundelay.deployment.journal.journal import Journal
from roundelay.deployment.journal.records import Verdict
from roundelay.errors import JournalError

ANSWER = bytes(range(256)) * 20
PART = 2_000
Plant = Callable[[pytest.MonkeyPatch], None]


def dialled(here: Place, timeout_s: float = 10.0) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", here.port), 10)
    sock.settimeout(timeout_s)
    return sock


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def ended(sock: socket.socket) -> bool:
    """Wait until the server hangs up; return whether it said nothing before."""
    try:
        return sock.recv(1_000) == b""
    except ConnectionResetError:
        return True


# ---- clients that hang up, or stall ---------------------------------------------------------------------------------


def check_a_cut(here: Place) -> None:
    """The contract: a part that did not come whole costs that part, and leaves nothing behind in memory."""
    intake = here.front._desk.intake

    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            assert (await device.part(1, ANSWER, 0, PART)).receipt().received == PART
            with dialled(here) as sock:
                sock.sendall(head(device, 1, ANSWER, PART, PART) + ANSWER[PART : PART + 500])
                await until(lambda: intake.in_flight == 500)
            await until(lambda: here.front.meters.in_flight == 0)
            assert intake.in_flight == 0
            assert (await device.announce(1, ANSWER)).receipt().received == PART
            settled = (await device.deliver(1, ANSWER, length=PART)).settled
            assert settled == p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)

    here.open_round()
    within(go())


def test_a_part_that_was_cut_is_sent_again_and_no_other() -> None:
    with place() as here:
        check_a_cut(here)


def test_the_check_of_cuts_catches_a_budget_that_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    close = Body.close

    def leaking(self: Body) -> None:
        if self._held != 500:
            close(self)

    monkeypatch.setattr(Body, "close", leaking)
    with place() as here, pytest.raises(AssertionError):
        check_a_cut(here)


def check_silence(patience_s: float = 0.3, timeout_s: float = 10.0) -> None:
    """The contract: who stops in the middle of a body is hung up on, whatever it has sent until then."""

    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            for begun in (head(device, 1, ANSWER, 0, PART), head(device, 1, ANSWER, 0, PART) + ANSWER[:100]):
                with dialled(here, timeout_s) as sock:
                    sock.sendall(begun)
                    assert await asyncio.to_thread(ended, sock)
            body = p.Poll().model_dump_json().encode()
            signed = "".join(f"{n}: {v}\r\n" for n, v in device.fields("POST", p.WORK, body))
            with dialled(here, timeout_s) as sock:
                sock.sendall(f"POST {p.WORK} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{signed}\r\n{{".encode())
                assert await asyncio.to_thread(ended, sock)
            assert (await device.deliver(1, ANSWER)).settled is not None

    with place(patience_s=patience_s) as here:
        here.open_round()
        within(go())


def test_who_sends_nothing_is_cut() -> None:
    check_silence()


def test_the_check_of_silence_catches_endless_patience() -> None:
    with pytest.raises(TimeoutError):
        check_silence(patience_s=3_600.0, timeout_s=0.2)


def test_who_takes_nothing_is_cut() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            path = f"{p.BLOBS}/{digest}"
            signed = "".join(f"{name}: {value}\r\n" for name, value in device.fields("GET", path))
            with dialled(here) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{signed}\r\n".encode())
                await until(lambda: here.front.meters.requests == 1)
                await until(lambda: here.front.meters.in_flight == 0)

    with place(patience_s=0.1) as here:
        digest = here.open_round(model=os.urandom(2**20) * 64)
        within(go())


def test_more_is_not_taken_at_a_time_than_there_is_room_for() -> None:
    long = bytes(p.PART_BYTES + 10)

    async def go() -> None:
        async with Device.of(here) as a, Device.of(here, "b") as b:
            await a.announce(1, long)
            await b.announce(2, ANSWER)
            with dialled(here) as sock:
                sock.sendall(head(a, 1, long, 0, p.PART_BYTES))
                await until(lambda: here.front._desk.intake.num_parts == 1)
                said = await b.part(2, ANSWER, 0, PART)
                assert (said.status, said.error, said.headers["Retry-After"]) == (503, "busy", "1")
                path, _ = part_of(1, long, 0, p.PART_BYTES + 1)
                fields = [("Content-Range", f"bytes 0-{p.PART_BYTES}/{len(long)}")]
                said = await b.ask("PUT", path, long[: p.PART_BYTES + 1], round=1, fields=fields)
                assert (said.status, said.error) == (413, "too_large")
            await until(lambda: here.front._desk.intake.num_parts == 0)
            assert (await b.deliver(2, ANSWER)).settled is not None

    with place(in_flight_bytes=ROOM_BYTES) as here:
        here.open_round()
        within(go())
        with pytest.raises(ValueError, match="expected at least 32768"):
            Intake(ROOM_BYTES - 1, 1.0, here.root, ThreadPoolExecutor(1), Turns())


READ_BYTES = 2**18
"""What asyncio reads at a time where no TLS is spoken: a body may be ahead by so much."""


def check_spilling(size: int = 3 * 2**20, budget_bytes: int = 16 * ROOM_BYTES) -> None:
    """The contract: what is too much for the memory goes through a file, and arrives as it was sent."""
    answer = random.Random(1).randbytes(size)

    async def go() -> int:
        peak = 0
        for number, (client, length) in enumerate({"a": size, "b": size // 3}.items()):
            async with Device.of(here, client) as device:
                work = asyncio.create_task(device.deliver(number + 1, answer, length=length))
                while not work.done():
                    peak = max(peak, here.front._desk.intake.in_flight)
                    await asyncio.sleep(0)
                settled = (await work).settled
                assert settled is not None
                assert settled.verdict is Verdict.ACCEPTED
        return peak

    with place(in_flight_bytes=budget_bytes) as here:
        here.open_round()
        assert within(go()) <= budget_bytes + READ_BYTES
        intake = here.front._desk.intake
        assert (intake.in_flight, intake.num_parts) == (0, 0)
        assert {here.journal.update(task).digest for task in (1, 2)} == {sha256(answer)}  # type: ignore[union-attr]


def test_what_is_too_much_for_the_memory_goes_through_a_file() -> None:
    check_spilling()


def nothing_spilled(patch: pytest.MonkeyPatch) -> None:
    async def keep(self: Body, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        self._intake.in_flight += len(piece)

    patch.setattr(Body, "_keep", keep)


def spilled_out_of_order(patch: pytest.MonkeyPatch) -> None:
    pieces = Body.pieces

    def swapped(self: Body) -> list[bytes]:
        came = b"".join(pieces(self))
        return [came[len(came) // 2 :], came[: len(came) // 2]]

    patch.setattr(Body, "pieces", swapped)


def spilled_to_one_place(patch: pytest.MonkeyPatch) -> None:
    spill = Body._spill

    def at_first(self: Body) -> None:
        self._written, written = 0, self._written
        spill(self)
        self._written = written

    patch.setattr(Body, "_spill", at_first)


@pytest.mark.parametrize("plant", [nothing_spilled, spilled_out_of_order, spilled_to_one_place])
def test_the_check_of_spilling_catches(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_spilling()


def test_a_part_takes_the_place_of_one_that_its_client_has_given_up() -> None:
    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            with dialled(here) as sock:
                sock.sendall(head(device, 1, ANSWER, 0, PART) + b"x")
                await until(lambda: here.front._desk.intake.in_flight == 1)
                assert (await device.part(1, ANSWER, 0, PART)).receipt().received == PART
                assert await asyncio.to_thread(ended, sock)
            await until(lambda: here.front._desk.intake.in_flight == 0)

    with place() as here:
        here.open_round()
        within(go())


class Slow(Disk):
    """A disk whose syncs wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.going, self.waiting = threading.Event(), threading.Event()
        self.going.set()

    def sync(self, file: int) -> None:
        if not self.going.is_set():
            self.waiting.set()
            self.going.wait(30)
        super().sync(file)


def check_hanging_up() -> None:
    """The contract: what is being written is written, counts as under way until then, and is told to the run."""
    disk = Slow()

    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            disk.going.clear()
            with dialled(here) as sock:
                sock.sendall(head(device, 1, ANSWER, 0, len(ANSWER)) + ANSWER)
                await until(disk.waiting.is_set)
            connections = here.server._runner.server.connections  # type: ignore[union-attr]
            await until(lambda: any(one.transport is None for one in connections) or not here.front.meters.in_flight)
            assert here.front._desk.intake.in_flight == len(ANSWER), "the thread has the bytes still"
            said = await device.announce(1, ANSWER)
            assert (said.status, said.error) == (503, "busy")
            disk.going.set()
            await until(lambda: here.front._desk.intake.in_flight == 0)
            assert here.news == [None, 1]
            settled = (await device.announce(1, ANSWER)).receipt().settled
            assert settled == p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=True)

    with place(disk=disk) as here:
        here.open_round()
        try:
            within(go())
        finally:
            disk.going.set()


def test_what_was_begun_on_disk_ends_there_whoever_hangs_up() -> None:
    check_hanging_up()


def test_the_check_of_hanging_up_catches_a_write_that_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def planted(self: Desk, write: Callable[..., p.Receipt], *args: object) -> p.Receipt:
        return await asyncio.get_running_loop().run_in_executor(self.writers, write, *args)

    monkeypatch.setattr(Desk, "_to_the_end", planted)
    with pytest.raises(AssertionError):
        check_hanging_up()


def test_what_is_no_http_is_refused_and_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with place() as here:
        for said in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n", b"nonsense\r\n\r\n",
            b"GET /v1/run HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /v1/run HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        ):  # fmt: skip
            with dialled(here) as sock:
                sock.sendall(said)
                assert b" 400 Bad Request" in sock.recv(100)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


# ---- a disk that fails ----------------------------------------------------------------------------------------------


class Moody(Disk):
    """Fails in what it is told to fail in, for as long as it is told."""

    failing, code = "", errno.ENOSPC

    def _check(self, call: str) -> None:
        if call == self.failing:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, file: int, data: memoryview, offset: int) -> int:
        self._check("write")
        return super().write(file, data, offset)

    def sync(self, file: int) -> None:
        self._check("sync")
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._check("replace")
        super().replace(source, target)

    def commit(self, connection: sqlite3.Connection) -> None:
        if self.failing == "commit":
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super().commit(connection)


def check_a_full_disk(failing: str) -> None:
    """The contract: what fails is not acknowledged, is said to be the disk, and is taken once there is room."""
    disk = Moody()

    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            disk.failing = failing
            said = await device.part(1, ANSWER, 0, len(ANSWER))
            assert (said.status, said.error, said.headers.get("Retry-After")) == (503, "disk", "10")
            assert str(here.root) not in said.json()["message"], "where its files are is nobody's business"
            assert here.journal.update(1) is None
            assert here.news in ([], [None])
            ready = await device.send("GET", p.READY)
            assert (ready.status, ready.json()["disk"]) == (503, False)
            disk.failing = ""
            receipt = (await device.announce(1, ANSWER)).receipt()
            if receipt.settled is None:
                receipt = await device.deliver(1, ANSWER)
            assert receipt.settled == p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)
            assert (await device.send("GET", p.READY)).status == 200

    with place(disk=disk) as here:
        here.open_round()
        within(go())


@pytest.mark.parametrize("failing", ["write", "replace", "commit"])
def test_a_full_disk_acknowledges_nothing_and_all_goes_on_once_there_is_room(failing: str) -> None:
    check_a_full_disk(failing)


def test_the_check_of_full_disks_catches_a_failure_that_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Desk._written

    def planted(self: Desk, client: str, task_id: int, part: Part, body: bytes) -> p.Receipt:
        try:
            return written(self, client, task_id, part, body)
        except JournalError:
            return p.Receipt(received=part.end)

    monkeypatch.setattr(Desk, "_written", planted)
    with pytest.raises(AssertionError):
        check_a_full_disk("write")


def test_a_disk_of_which_nothing_is_known_any_more_stops_everything() -> None:
    disk = Moody()

    async def go() -> None:
        async with Device.of(here) as device:
            await device.announce(1, ANSWER)
            disk.failing, disk.code = "sync", errno.EIO
            assert (await device.part(1, ANSWER, 0, PART)).error == "disk"
            disk.failing = ""
            for said in (await device.announce(1, ANSWER), await device.poll()):
                assert (said.status, said.error) == (503, "disk")
            assert (await device.send("GET", p.READY)).status == 503
            assert (await device.send("GET", p.HEALTH)).status == 200

    with place(disk=disk) as here:
        here.open_round()
        within(go())


# ---- a loss of power ------------------------------------------------------------------------------------------------


def delivered() -> Recorder:
    """Deliver an answer in parts; the record has every call of the disk, and what the client heard in between."""
    with quick_folder() as root:
        disk = Recorder(Path(root))

        async def go() -> None:
            async with Device.of(here) as device:
                receipt = (await device.announce(1, ANSWER)).receipt()
                while receipt.settled is None:
                    receipt = (await device.part(1, ANSWER, receipt.received, PART)).receipt()
                    disk.tell("part", receipt.received)
                disk.tell("settled", receipt.settled.number)

        with place(root=Path(root), disk=disk) as here:
            here.open_round(clients="a")
            within(go())
        return disk


def found_after(disk: Recorder) -> Iterator[tuple[list[tuple[object, ...]], Journal]]:
    """Yield what had been heard, and the journal that a loss of power may have left, for every call of the disk."""
    model, told = Model(), []
    for number, step in enumerate(disk.steps):
        if step.call == "told":
            told.append(step.told)
        else:
            model.take(step)
        if not told:
            continue
        for _, picture in pictures(model, step, number, draws=1):
            with quick_folder() as root:
                materialise(picture, Path(root), RUN)
                with Journal(Path(root) / RUN, None) as journal:
                    yield told, journal


def check_acknowledged() -> int:
    """The contract: what a client has heard is on disk, whenever power is lost. Return how many states were seen."""
    count = 0
    for count, (told, journal) in enumerate(found_after(delivered()), start=1):  # noqa: B007
        update = journal.update(1)
        if any(what == "settled" for what, _ in told):
            assert update is not None, "an answer that was acknowledged is lost"
        if update is not None:
            with journal.blobs.open(update.digest) as file:
                assert file.read() == ANSWER
        else:
            heard = max(at for what, at in told if what == "part")
            assert journal.uploads.begin("a", sha256(ANSWER), len(ANSWER)) >= heard, "a part is lost"  # type: ignore[operator]
    return count


def test_what_a_client_has_heard_is_on_disk() -> None:
    assert check_acknowledged() > 20


def accept_afterwards(patch: pytest.MonkeyPatch) -> None:
    """Say that an answer was accepted, and accept it then."""
    finished, tell, heard = Desk._finished, Recorder.tell, threading.Event()

    def noted(self: Recorder, *told: object) -> None:
        tell(self, *told)
        if told[0] == "settled":
            heard.set()

    def planted(self: Desk, client: str, task_id: int, digest: str, size: int) -> p.Receipt:
        def later() -> None:
            heard.wait(10)
            finished(self, client, task_id, digest, size)

        self.writers.submit(later)
        settled = p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)
        return p.Receipt(received=size, settled=settled)

    patch.setattr(Desk, "_finished", planted)
    patch.setattr(Recorder, "tell", noted)


def sync_nothing(patch: pytest.MonkeyPatch) -> None:
    def planted(self: Recorder, file: int) -> None: ...

    patch.setattr(Recorder, "sync", planted)


@pytest.mark.parametrize("planted", [accept_afterwards, sync_nothing])
def test_the_check_catches_what_is_acknowledged_too_early(
    planted: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch)
    with pytest.raises(AssertionError, match="is lost"):
        check_acknowledged()

"""A front under load, and one client or stranger that asks for more than its share: who is honest goes on as before.

In the short versions the server is a thread of this process; under the crowd it is a process, and so is the crowd.
"""

import asyncio
import itertools
import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from forked import TESTS, Forked
from fronts import Device, Place, head, place, within
from loads import LIMIT_S, Told, Watch, asked, beats, names, serving

from roundelay.deployment import protocol as p
from roundelay.deployment.front import front, problems, receiving
from roundelay.deployment.front.connections import Connections, Limits
from roundelay.deployment.front.front import Front
from roundelay.deployment.front.receiving import ROOM_BYTES, Body, Intake

NUM_CLIENTS, NUM_PLACES, BUDGET = 50, 4, 40 * ROOM_BYTES
NUM_OTHERS = 4
ANSWER = bytes(range(256)) * 20
Plant = Callable[[pytest.MonkeyPatch], None]


# ---- a crowd --------------------------------------------------------------------------------------------------------


def check_crowd(
    folder: Path, figures: Figures, seed: int, num_clients: int, side: int, mib: float, p99_s: float
) -> None:
    """The contract: every client of a crowd is counted, the server's memory grows by so much at most, and heartbeats of
    others are answered in time meanwhile.
    """
    others = names(num_clients + NUM_OTHERS)[num_clients:]
    with serving(folder, num_clients + NUM_OTHERS, side=side, num_rounds=1, seed=seed) as here:
        watch = Watch(here.pid)
        watch.start()
        began, tls = time.monotonic(), here.tls
        (folder / "errors").touch()
        words = ["load_crowd.py", here.folder, here.pid, here.url, here.run, seed, num_clients]
        with Forked(TESTS, [str(word) for word in words], path=[TESTS], errors=folder / "errors") as crowd:

            async def go() -> list[list[float]]:
                async with AsyncExitStack() as opened:
                    devices = [await opened.enter_async_context(here.client(name, tls)) for name in others]
                    return await asyncio.gather(
                        *(beats(one, 0.1, lambda: crowd.returncode is not None) for one in devices)
                    )

            took_s = sorted(itertools.chain.from_iterable(within(go(), LIMIT_S)))
            said = crowd.stdout.read()
        wall_s = time.monotonic() - began
        watch.stop()
    assert said, (folder / "errors").read_text()
    told = json.loads(said)
    p99 = took_s[len(took_s) * 99 // 100]
    figures("clients counted", told["verdicts"].get("accepted", 0))
    figures("told by Retry-After to come again", told["busy"])
    figures("growth of the server's memory", watch.grown_mib, "MiB")
    figures("heartbeats of others: number", len(took_s))
    figures(
        "median, 99th percentile, slowest",
        f"{1e3 * statistics.median(took_s):.0f}, {1e3 * p99:.0f}, {1e3 * took_s[-1]:.0f} ms",
    )
    figures("from the first connection to the last verdict", wall_s, "s")
    figures("CPU time of the server, of the crowd", f"{watch.cpu_s:.1f}, {told['cpu_s']:.1f} s")
    figures("open files of the server, most", watch.num_files)
    assert told["verdicts"] == {"accepted": num_clients}
    assert not told["without_time"]
    assert watch.grown_mib <= mib
    assert p99 <= p99_s


@pytest.mark.chaos
def test_a_crowd_is_counted_and_nobody_waits(tmp_path: Path, figures: Figures, chaos_seed: int) -> None:
    check_crowd(tmp_path, figures, chaos_seed, 1_000, 512, 200.0, 1.0)


# ---- more than there is room for ------------------------------------------------------------------------------------


def check_overflow() -> Told:
    """The contract: more answers than there is room for are told when to come again, and in the end all are taken."""
    told, clients = Told(), names(NUM_CLIENTS + NUM_PLACES)
    answer = bytes(range(256)) * 20

    async def one(here: Place, client: str, task: int, is_free: asyncio.Event) -> None:
        async with Device.of(here, client) as device:
            said = await asked(told, lambda: device.part(task, answer, 0, len(answer)), lambda _: is_free.wait())
            settled = said.receipt().settled
            assert settled is not None
            told.verdicts[settled.verdict.value] += 1

    async def go(here: Place) -> None:
        is_free = asyncio.Event()
        with many(here, [half_upload(here, client, task) for task, client in enumerate(clients[:NUM_PLACES], 1)]):
            await until(lambda: here.front._desk.intake.num_parts >= NUM_PLACES)
            work = [asyncio.create_task(one(here, client, task, is_free))
                    for task, client in enumerate(clients[NUM_PLACES:], NUM_PLACES + 1)]  # fmt: skip
            await until(lambda: told.busy + told.verdicts.total() >= NUM_CLIENTS or any(one.done() for one in work))
        await until(lambda: here.front._desk.intake.num_parts == 0)
        is_free.set()
        await asyncio.gather(*work)

    with place(members=clients, clients=clients, in_flight_bytes=NUM_PLACES * ROOM_BYTES) as here:
        here.open_round(clients=clients)
        within(go(here))
        assert len(here.journal.updates(1)) == NUM_CLIENTS
    assert told.verdicts == {"accepted": NUM_CLIENTS}
    assert told.busy >= NUM_CLIENTS
    assert not told.without_time
    return told


def test_an_overflow_of_answers_is_called_back_and_all_are_counted(figures: Figures) -> None:
    told = check_overflow()
    figures("answers counted", told.verdicts["accepted"])
    figures("told by Retry-After to come again", told.busy)


def unlimited(patch: pytest.MonkeyPatch) -> None:
    init = Intake.__init__

    def endless(self: Intake, *args: Any) -> None:
        init(self, *args)
        self.budget_bytes = 2**60

    patch.setattr(Intake, "__init__", endless)


def told_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(problems, "RETRY_AFTER_S", {})


# ---- those who ask for more than their share ------------------------------------------------------------------------


def dialled(here: Place) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", here.port), 10)
    sock.settimeout(1.0)
    return sock


def is_cut(sock: socket.socket) -> bool:
    try:
        return sock.recv(1_000) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@contextmanager
def many(here: Place, begun: Sequence[bytes]) -> Iterator[list[socket.socket]]:
    """A connection for each of these beginnings of a request."""
    opened = [dialled(here) for _ in begun]
    try:
        for sock, said in zip(opened, begun, strict=True):
            sock.sendall(said)
        yield opened
    finally:
        for sock in opened:
            sock.close()


async def until(holds: Callable[[], bool], timeout_s: float = 3.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, "it did not come to that"
        await asyncio.sleep(0.001)


def check_slow_headers() -> None:
    """The contract: who does not come to the end of a header is cut, however many there are, and nobody else is."""
    with place(limits=Limits(header_s=0.4)) as here:
        here.open_round()
        with many(here, [b"GET /healthz HTTP/1.1\r\nX-A: "] * 20) as slow:

            async def go() -> None:
                async with Device.of(here) as device:
                    assert (await device.poll(wait_s=1.5)).status == 200  # it is longer under way than a header may be
                    assert (await device.poll(1, wait_s=1.5)).status == 204
                    assert (await device.deliver(1, ANSWER)).settled is not None

            within(go())
            assert all(is_cut(sock) for sock in slow)


def check_room() -> None:
    """The contract: no more connections than are allowed, and those who ask nothing make room for those who ask."""
    with place(limits=Limits(max_connections=10)) as here, many(here, [b""] * 30) as silent:
        here.open_round()

        async def go() -> None:
            async with Device.of(here) as device:
                assert (await device.deliver(1, ANSWER)).settled is not None

        within(go())
        assert here.server.num_connections <= 10
        assert sum(map(is_cut, silent[:20])) == 20


def check_streams(patch: pytest.MonkeyPatch) -> None:
    """The contract: of one client's requests a few are served at once, the others are told to come again."""
    patch.setattr(front, "_TOO_MANY_S", 0.2)
    with place(requests_per_client=8) as here:

        async def go() -> None:
            async with Device.of(here) as greedy, Device.of(here, "b") as honest:
                polls = [asyncio.create_task(greedy.poll(wait_s=1.5)) for _ in range(40)]
                assert (await honest.ask("POST", p.BEAT, p.Beat(doing=[]))).status == 200
                said = await asyncio.gather(*polls)
                refused = [one for one in said if one.error == "busy"]
                assert len(refused) == 32
                assert all(one.headers["Retry-After"] for one in refused)
                assert not here.front._under_way

        within(go())


def half_upload(here: Place, client: str, task: int) -> bytes:
    """The beginning of a part of 1 MiB."""
    part = bytes(2**20)
    return head(Device.of(here, client), task, part, 0, len(part)) + part[:100_000]


def check_half_uploads() -> None:
    """The contract: half uploads, of many clients, take neither the memory nor the place of others."""
    clients = names(20)

    async def go() -> None:
        with many(here, [half_upload(here, client, task) for task, client in enumerate(clients, 1)]):
            intake = here.front._desk.intake
            await until(lambda: intake.num_parts >= len(clients))
            async with Device.of(here) as device:
                assert (await device.deliver(len(clients) + 1, ANSWER)).settled is not None
            await until(lambda: intake.in_flight <= BUDGET)

    with place(members=[*clients, "a"], clients=[*clients, "a"], in_flight_bytes=BUDGET) as here:
        here.open_round(clients=[*clients, "a"])
        within(go())


def test_slow_headers_are_cut_and_nobody_else_is() -> None:
    check_slow_headers()


def test_silent_connections_make_room() -> None:
    check_room()


def test_half_uploads_take_no_room_of_others() -> None:
    check_half_uploads()


def test_many_requests_of_one_client_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_streams(monkeypatch)


def no_header_timeout(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connections, "_look", lambda self: None)


def no_most_connections(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connections, "add", lambda self, one: self._open.update({one.inner: one}))


def kept_in_memory(patch: pytest.MonkeyPatch) -> None:
    async def keep(self: Body, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        self._intake.in_flight += len(piece)

    patch.setattr(Body, "_keep", keep)


def one_at_a_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(receiving, "ROOM_BYTES", BUDGET)


def uncounted(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def counted(self: Front, client: str) -> Iterator[int]:
        yield 0

    patch.setattr(Front, "_counted", counted)


def leaking_count(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def counted(self: Front, client: str) -> Iterator[int]:
        self._under_way[client] += 1
        yield self._under_way[client]

    patch.setattr(Front, "_counted", counted)


@pytest.mark.parametrize(
    ("plant", "check"),
    [(unlimited, check_overflow), (told_nothing, check_overflow), (no_header_timeout, check_slow_headers),
     (no_most_connections, check_room), (kept_in_memory, check_half_uploads), (one_at_a_time, check_half_uploads),
     (uncounted, check_streams), (leaking_count, check_streams)],
)  # fmt: skip
def test_the_checks_catch_planted_bugs(plant: Plant, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(monkeypatch) if check is check_streams else check()

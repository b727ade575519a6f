"""A front under load, and one client or stranger that asks for more than its share: who is honest goes on as before.

Here the server is a thread of this process; the long version of the load has it in a process of its own.
"""

import asyncio
import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from figures import Figures
from fronts import Device, Place, head, place, within
from loads import Told, asked, names

from roundelay.deployment import protocol as p
from roundelay.deployment.front import front, receiving
from roundelay.deployment.front.connections import Connections, Limits
from roundelay.deployment.front.front import Front
from roundelay.deployment.front.receiving import Intake

NUM_CLIENTS, NUM_BYTES, BUDGET = 50, 2**18, 8 * 2**20
ANSWER = bytes(range(256)) * 20
Plant = Callable[[pytest.MonkeyPatch], None]


def check_overflow() -> Told:
    """The contract: more answers than there is room for are told when to come again, and in the end all are taken."""
    told = Told()

    async def one(here: Place, client: str, task: int) -> None:
        answer = hashlib.sha256(client.encode()).digest() * (NUM_BYTES // 32)
        async with Device.of(here, client) as device:
            said = await asked(told, lambda: device.part(task, answer, 0, len(answer)))
            settled = said.receipt().settled
            assert settled is not None
            told.verdicts[settled.verdict.value] += 1

    async def go(here: Place) -> int:
        peak, work = 0, asyncio.gather(*(one(here, name, i + 1) for i, name in enumerate(clients)))
        while not work.done():
            peak = max(peak, here.front._desk.intake.in_flight)
            await asyncio.sleep(0.001)
        await work
        return peak

    clients = names(NUM_CLIENTS)
    with place(members=clients, clients=clients, in_flight_bytes=BUDGET) as here:
        here.open_round(clients=clients)
        peak = within(go(here), 60.0)
        assert peak <= BUDGET
        assert len(here.journal.updates(1)) == NUM_CLIENTS
    assert told.verdicts == {"accepted": NUM_CLIENTS}
    assert told.busy > 0
    assert not told.without_time
    return told


def test_an_overflow_of_answers_is_called_back_and_all_are_counted(figures: Figures) -> None:
    told = check_overflow()
    figures("answers counted", told.verdicts["accepted"])
    figures("told by Retry-After to come again", told.busy)


def unlimited(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def holding(self: Intake, client: str, length: int) -> Iterator[None]:
        self.in_flight += length
        yield
        self.in_flight -= length

    patch.setattr(Intake, "holding", holding)


def dialled(here: Place) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", here.port), 10)
    sock.settimeout(3.0)
    return sock


def is_cut(sock: socket.socket) -> bool:
    try:
        return sock.recv(1_000) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@contextmanager
def many(here: Place, number: int, begun: Callable[[], bytes]) -> Iterator[list[socket.socket]]:
    """So many connections that have begun to say this."""
    opened = [dialled(here) for _ in range(number)]
    try:
        for sock in opened:
            sock.sendall(begun())
        yield opened
    finally:
        for sock in opened:
            sock.close()


def check_slow_headers() -> None:
    """The contract: who does not come to the end of a header is cut, however many there are, and nobody else is."""
    with place(limits=Limits(header_s=0.4)) as here:
        here.open_round()
        with many(here, 20, lambda: b"GET /healthz HTTP/1.1\r\nX-A: ") as slow:

            async def go() -> None:
                async with Device.of(here) as device:
                    assert (await device.poll(wait_s=1.5)).status == 200  # it is longer under way than a header may be
                    assert (await device.poll(1, wait_s=1.5)).status == 204
                    assert (await device.deliver(1, ANSWER)).settled is not None

            within(go())
            assert all(is_cut(sock) for sock in slow)


def check_room() -> None:
    """The contract: no more connections than are allowed, and those who ask nothing make room for those who ask."""
    with place(limits=Limits(max_connections=10)) as here, many(here, 30, lambda: b"") as silent:
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


def half_upload(here: Place) -> bytes:
    """The beginning of a part of 4 MiB of client "b"."""
    part = bytes(BUDGET // 2)
    return head(Device.of(here, "b"), 2, part, 0, len(part)) + part[:1_000]


def check_half_uploads() -> None:
    """The contract: half uploads of one client, however many, take the room of one, and no other client's."""
    with place(in_flight_bytes=BUDGET) as here:
        here.open_round()
        with many(here, 20, lambda: half_upload(here)):

            async def go() -> None:
                async with Device.of(here) as device:
                    assert (await device.deliver(1, ANSWER)).settled is not None
                    assert here.front._desk.intake.in_flight <= BUDGET // 2

            within(go())


def test_slow_headers_are_cut_and_nobody_else_is() -> None:
    check_slow_headers()


def test_silent_connections_make_room() -> None:
    check_room()


def test_half_uploads_take_the_room_of_one() -> None:
    check_half_uploads()


def test_many_requests_of_one_client_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_streams(monkeypatch)


def no_header_timeout(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connections, "_look", lambda self: None)


def no_most_connections(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connections, "add", lambda self, one: self._open.update({one.inner: one}))


def no_place_is_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(receiving, "_cut", lambda request: None)


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
    [(unlimited, check_overflow), (no_header_timeout, check_slow_headers), (no_most_connections, check_room),
     (no_place_is_taken, check_half_uploads), (uncounted, check_streams), (leaking_count, check_streams)],
)  # fmt: skip
def test_the_checks_catch_planted_bugs(plant: Plant, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(monkeypatch) if check is check_streams else check()

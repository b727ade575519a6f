"""Rounds go on beside one client and strangers who ask for all they can; and after many rounds nothing has grown."""

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

import psutil
import pytest
from figures import Figures
from fronts import Device, Place, place, within
from test_load import half_upload, many

from roundelay.deployment.front.desk import Desk

ANSWER = bytes(range(256)) * 256
KIB = 1024


def honest_s(here: Place, number: int) -> float:
    """Return how long a round of two honest clients takes, in seconds; its tasks are new ones."""

    async def one(client: str, task: int) -> None:
        async with Device.of(here, client) as device:
            assert (await device.poll()).status == 200
            settled = (await device.deliver(task, ANSWER, round=number, length=len(ANSWER))).settled
            assert settled is not None

    async def go() -> None:
        await asyncio.gather(one("a", 100 + 2 * number), one("c", 101 + 2 * number))

    here.open_round(number, "ac", 100 + 2 * number)
    began = time.monotonic()
    within(go())
    return time.monotonic() - began


@contextmanager
def streams(here: Place, number: int) -> Iterator[None]:
    """So many polls of client "b" at once, each begun again at once, from a thread of their own."""
    loop, over = asyncio.new_event_loop(), threading.Event()

    async def ask(device: Device) -> None:
        while not over.is_set():
            await device.poll(2, wait_s=2.0)

    async def go() -> None:
        async with AsyncExitStack() as opened:  # a session has a hundred connections at most
            devices = [await opened.enter_async_context(Device.of(here, "b")) for _ in range(-(-number // 100))]
            await asyncio.gather(*(ask(devices[i % len(devices)]) for i in range(number)))

    thread = threading.Thread(target=loop.run_until_complete, args=(go(),))
    thread.start()
    until_s = time.monotonic() + 30.0
    while here.front._under_way["b"] < number and time.monotonic() < until_s:
        time.sleep(0.01)
    try:
        assert here.front._under_way["b"] >= number, "the abuse did not come about"
        yield
    finally:
        over.set()
        thread.join()
        loop.close()


def check_abuse(figures: Figures, num_loris: int, num_halves: int, num_streams: int, num_rounds: int) -> None:
    """The contract: a round of honest clients takes at most twice as long as without the abuse."""
    with place() as here, ExitStack() as abuse:
        here.open_round(1, "b", 2)
        for number in (2, 3):
            honest_s(here, number)
        quiet = statistics.median(honest_s(here, 10 + number) for number in range(num_rounds))
        abuse.enter_context(many(here, num_loris, lambda: b"GET /healthz HTTP/1.1\r\nX-A: "))
        abuse.enter_context(many(here, num_halves, lambda: half_upload(here)))
        abuse.enter_context(streams(here, num_streams))
        time_s = [honest_s(here, 1_000 + number) for number in range(num_rounds)]
    figures("a quiet round", 1e3 * quiet, "ms")
    figures("a round beside the abuse", 1e3 * statistics.median(time_s), "ms")
    figures("ratio", statistics.median(time_s) / quiet)
    assert statistics.median(time_s) <= 2 * quiet


@pytest.mark.chaos
def test_honest_rounds_beside_abuse(figures: Figures) -> None:
    check_abuse(figures, 200, 200, 500, 41)


def check_growth(figures: Figures, num_rounds: int, first: int, kib_per_round: float) -> None:
    """The contract: after the ``first`` rounds, files and threads are constant, and memory does not grow."""
    own = psutil.Process()
    with place() as here:
        rss, open_ = [], []
        for number in range(1, num_rounds + 1):
            honest_s(here, number)
            if number > first:
                rss.append(own.memory_info().rss / KIB)
                open_.append((own.num_fds(), own.num_threads()))
    slope = statistics.linear_regression(range(len(rss)), rss).slope
    figures("growth of RSS", slope, "KiB a round")
    figures("open files, first and last", f"{open_[0][0]}, {open_[-1][0]}")
    figures("threads, first and last", f"{open_[0][1]}, {open_[-1][1]}")
    assert min(files for files, _ in open_[-10:]) <= min(files for files, _ in open_[:10])
    assert open_[-1][1] <= open_[0][1]
    assert slope <= kib_per_round


def test_rounds_leave_nothing_behind(figures: Figures) -> None:
    check_growth(figures, 40, 15, 100.0)


@pytest.mark.chaos
def test_three_hundred_rounds_leave_nothing_behind(figures: Figures) -> None:
    check_growth(figures, 300, 50, 20.0)


def test_the_check_of_growth_catches_a_file_that_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    left, accepted = list[int](), Desk._accepted

    def leaking(self: Desk, client: str, task_id: int, digest: str, size: int) -> object:
        left.append(os.open(os.devnull, os.O_RDONLY))
        return accepted(self, client, task_id, digest, size)

    monkeypatch.setattr(Desk, "_accepted", leaking)
    try:
        with pytest.raises(AssertionError):
            check_growth(lambda *_: None, 25, 2, 1e9)
    finally:
        for file in left:
            os.close(file)

"""Rounds go on beside clients and strangers who ask for all they can; and after many rounds nothing has grown."""

import asyncio
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from figures import Figures
from forked import TESTS, Forked
from fronts import Device, Place, place, within
from loads import GREEDY, LIMIT_S, Told, halves, key_of, names, serving, take_part

from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, server_context
from roundelay.deployment.trust.pinning import client_context

ANSWER = bytes(range(256)) * 256
HONEST = ("a", "c")
KIB = 1024


# ---- beside abuse ---------------------------------------------------------------------------------------------------


def url_of(here: Place) -> str:
    return f"https://127.0.0.1:{here.port}"


async def honest_s(here: Place, devices: Sequence[Device], number: int) -> float:
    """Return how long a round of the honest takes, in seconds; its tasks are new ones."""

    async def one(device: Device, task: int) -> None:
        assert (await device.poll()).status == 200
        settled = (await device.deliver(task, ANSWER, round=number, length=len(ANSWER))).settled
        assert settled is not None

    first = 1_000 + len(devices) * number
    here.open_round(number, [device.client for device in devices], first)
    began = time.monotonic()
    await asyncio.gather(*(one(device, first + i) for i, device in enumerate(devices)))
    return time.monotonic() - began


@contextmanager
def abuse(here: Place, folder: Path, seed: int, num_loris: int, num_halves: int, num_streams: int) -> Iterator[None]:
    """Abuse that has come about, from another process."""
    words = ["load_abuse.py", url_of(here), folder / AUTHORITY_PUBLIC, seed, num_loris, num_halves, num_streams]
    (folder / "errors").touch()
    with Forked(TESTS, [str(word) for word in words], path=[TESTS], errors=folder / "errors") as process:
        intake, until_s = here.front._desk.intake, time.monotonic() + LIMIT_S
        while (
            here.server.num_connections < num_loris + num_halves + num_streams
            or intake.num_parts < num_halves
            or here.front._under_way[GREEDY] < num_streams
        ):
            assert process.returncode is None, (folder / "errors").read_text()
            assert time.monotonic() < until_s, "the abuse did not come about"
            time.sleep(0.05)
        yield
        assert process.returncode is None, (folder / "errors").read_text()


def check_abuse(folder: Path, figures: Figures, seed: int, numbers: tuple[int, int, int], num_rounds: int) -> None:
    """The contract: a round of honest clients takes at most twice as long as without the abuse."""
    clients = [*HONEST, GREEDY, *halves(numbers[1])]
    keys = {name: key_of(seed, name) for name in clients}
    tls = server_context(folder, ["127.0.0.1"], time.time())
    trusting = client_context((folder / AUTHORITY_PUBLIC).read_bytes())

    async def go() -> tuple[list[float], list[float]]:
        async with AsyncExitStack() as opened:
            honest = [Device(url_of(here), name, keys[name], tls=trusting) for name in HONEST]
            for device in honest:
                await opened.enter_async_context(device)
            for number in (2, 3):
                await honest_s(here, honest, number)
            quiet = [await honest_s(here, honest, 10 + number) for number in range(num_rounds)]
            with abuse(here, folder, seed, *numbers):
                return quiet, [await honest_s(here, honest, 100 + number) for number in range(num_rounds)]

    with place(members=clients, clients=clients, keys=keys, tls=tls) as here:
        here.open_round(1, clients[len(HONEST) + 1 :])
        an_hour_ago_s = time.time() - 3_600.0  # a roster that was written just now is read again at each request
        os.utime(here.root / "roster.json", (an_hour_ago_s, an_hour_ago_s))
        quiet_s, time_s = map(statistics.median, within(go(), LIMIT_S))
    figures("a quiet round", 1e3 * quiet_s, "ms")
    figures("a round beside the abuse", 1e3 * time_s, "ms")
    figures("ratio", time_s / quiet_s)
    assert time_s <= 2 * quiet_s


@pytest.mark.chaos
def test_honest_rounds_beside_abuse(tmp_path: Path, figures: Figures, chaos_seed: int) -> None:
    check_abuse(tmp_path, figures, chaos_seed, (200, 200, 500), 41)


# ---- after many rounds ----------------------------------------------------------------------------------------------

FOR_A_MOMENT = 3
"""So many files may be open because somebody looked while a model was read or a checkpoint written: what is left behind
in every round is more."""


def check_growth(
    folder: Path, figures: Figures, num_rounds: int, first: int, kib_per_round: float, planted: str = ""
) -> None:
    """The contract: after the ``first`` rounds a server's files and threads stay as many, and its memory as large."""
    clients = names(3)

    async def go() -> list[tuple[float, int, int]]:
        process, told = psutil.Process(here.pid), Told()
        async with AsyncExitStack() as opened:
            devices = [await opened.enter_async_context(here.client(name, here.tls)) for name in clients]
            looked = []
            for _ in range(num_rounds):
                await asyncio.gather(*(take_part(device, told, 1) for device in devices))
                looked.append((process.memory_info().rss / KIB, process.num_fds(), process.num_threads()))
        assert told.verdicts == {"accepted": num_rounds * len(clients)}
        return looked[first:]

    with serving(folder, len(clients), side=64, num_rounds=num_rounds + 1, planted=planted) as here:
        looked = within(go(), LIMIT_S)
    slope = statistics.linear_regression(range(len(looked)), [rss for rss, _, _ in looked]).slope
    figures("growth of RSS", slope, "KiB a round")
    for what, at in (("open files", 1), ("threads", 2)):
        begin, end = max(look[at] for look in looked[:10]), max(look[at] for look in looked[-10:])
        figures(f"{what}, at first and at last", f"{begin}, {end}")
        assert end <= begin + FOR_A_MOMENT, what
    assert slope <= kib_per_round, "memory"


def test_rounds_leave_nothing_behind(tmp_path: Path, figures: Figures) -> None:
    check_growth(tmp_path, figures, 40, 15, 200.0)


@pytest.mark.chaos
def test_three_hundred_rounds_leave_nothing_behind(tmp_path: Path, figures: Figures) -> None:
    check_growth(tmp_path, figures, 300, 50, 20.0)


LEAK = """

import threading
from roundelay.intake import Intake

kept, close = [], Intake.close


def leaking(self):
    kept.append({leaked})
    return close(self)


Intake.close = leaking
"""
SLEEPER = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
LEAKS = {
    "a file stays open": ("open(__file__)", "open files"),
    "a thread lives on": (SLEEPER, "threads"),
    "a MiB is kept": ('b"x" * 2**20', "memory"),
}


@pytest.mark.parametrize(("leaked", "what"), LEAKS.values(), ids=LEAKS)
def test_what_a_round_leaves_behind_is_seen(tmp_path: Path, leaked: str, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        check_growth(tmp_path, lambda *_: None, 26, 5, 200.0, LEAK.format(leaked=leaked))

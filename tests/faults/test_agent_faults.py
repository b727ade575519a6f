"""What a device survives: cuts in mid-transfer, a server that is killed, its own death, a full disk.

Nothing that was finished is lost, nothing counts twice, and no more is sent again than a part.
"""

import asyncio
import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Cut,
    Party,
    Proxy,
    answered,
    beside,
    is_doubled,
    model,
    over,
    sha256,
    tensors,
    until,
)
from fronts import RUN, Place, place, within
from journals import advance
from loopback import free_port

from roundelay.deployment.device import delivery
from roundelay.deployment.device.device import Device
from roundelay.deployment.device.link import Limits, Link
from roundelay.deployment.device.shelves import Answers, Models
from roundelay.deployment.journal.records import TaskState
from roundelay.errors import DeviceError

PART = 256 * 1024
LARGE = 500_000  # values: 2 MB, eight parts
SLACK = 64 * 1024
"""Heads of requests and answers."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PART_BYTES", PART)


# ---- cuts -----------------------------------------------------------------------------------------------------------


def check_cut_upload(folder: Path) -> None:
    with place(members="a") as here:
        data = model(LARGE)
        here.open_round(1, "a", 1, data)

        async def play() -> None:
            cuts = [Cut(up=900_000), Cut(up=700_000), Cut(up=100_000)]
            async with Proxy(here.port, cuts) as proxy:
                party = Party.of(here, folder, port=proxy.port)

                async def script() -> None:
                    await answered(here, 1)
                    over(here)

                await beside(party.take_part(), script)
                assert proxy.num_connections >= 4
                again = proxy.num_up - len(data)
                assert again <= 3 * PART + SLACK, f"{again} bytes were sent again"
                assert party.heard("waiting: ")

        within(play(), 60)
        assert is_doubled(here, 1, LARGE)


def test_a_cut_in_mid_upload_costs_a_part_at_most(tmp_path: Path) -> None:
    check_cut_upload(tmp_path)


def test_an_upload_that_begins_anew_after_each_cut_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = Link.announce

    async def forgetful(self: Link, task: int, round: int, digest: str, size: int) -> Any:
        await announce(self, task, round, sha256(b"something else"), size)
        return await announce(self, task, round, digest, size)

    monkeypatch.setattr(Link, "announce", forgetful)
    with pytest.raises(AssertionError, match="sent again"):
        check_cut_upload(tmp_path)


def check_cut_download(folder: Path) -> None:
    with place(members="a") as here:
        data = model(LARGE)
        here.open_round(1, "a", 1, data)

        async def play() -> None:
            async with Proxy(here.port, [Cut(down=900_000), Cut(down=5_000), Cut(down=600_000)]) as proxy:
                party = Party.of(here, folder, port=proxy.port)

                async def script() -> None:
                    await answered(here, 1)
                    over(here)

                await beside(party.take_part(), script)
                assert proxy.num_connections >= 4
                again = proxy.num_down - len(data)
                assert again <= SLACK, f"{again} bytes came again"

        within(play(), 60)
        assert is_doubled(here, 1, LARGE)


def test_a_cut_in_mid_download_costs_nothing(tmp_path: Path) -> None:
    check_cut_download(tmp_path)


def test_a_download_that_begins_anew_after_each_cut_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Models.part

    def emptied(self: Models, digest: str) -> Path:
        path = part(self, digest)
        path.unlink(missing_ok=True)
        return path

    put = Models.put
    monkeypatch.setattr(Models, "part", emptied)
    monkeypatch.setattr(Models, "put", lambda self, digest: _put_whole(self, digest, part, put, monkeypatch))
    with pytest.raises(AssertionError, match="came again"):
        check_cut_download(tmp_path)


def _put_whole(self: Models, digest: str, part: Any, put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as honest:
        honest.setattr(Models, "part", part)
        put(self, digest)


def test_a_part_of_a_model_that_was_damaged_meanwhile_is_fetched_anew(tmp_path: Path) -> None:
    with place(members="a") as here:
        data = model(LARGE)
        digest = here.open_round(1, "a", 1, data)
        party = Party.of(here, tmp_path)
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"{digest}.part").write_bytes(bytes(1_000_000))

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), script))
        assert is_doubled(here, 1, LARGE)
        assert party.heard("it is fetched anew")


def test_an_answer_whose_receipt_was_lost_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has taken it; the device does not hear so, and asks again."""
    put_part, cut = Link.put_part, []

    async def deaf(self: Link, *rest: Any) -> Any:
        receipt = await put_part(self, *rest)
        if receipt.settled is not None and not cut:
            cut.append(receipt)
            raise delivery.Unreachable("cut")
        return receipt

    monkeypatch.setattr(Link, "put_part", deaf)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await until(lambda: cut and not list((tmp_path / "answers" / RUN).glob("*.answer")), "the second receipt")
            over(here)

        within(beside(party.take_part(), script))
        assert len(here.journal.updates()) == 1
        assert here.news.count(1) == 1
    with Device(tmp_path) as device:
        assert tensors(device.memories.read(RUN, 1)) == {"num_done": 1.0}, "it counts, and so may its memory"


# ---- deaths ---------------------------------------------------------------------------------------------------------


def check_kept(folder: Path, server: Path) -> None:
    """The device dies after its answer was finished, before the server has it; it is not trained anew."""
    with place(root=server, members="a") as here:
        keys = here.keys
        here.open_round(1, "a", 1, model(LARGE))

        async def die() -> None:
            async with Proxy(here.port, [Cut(up=900_000)]) as proxy:
                party = Party.of(here, folder, port=proxy.port)
                working = asyncio.ensure_future(party.take_part())
                await until(lambda: proxy.num_connections >= 2, "the cut")
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

        within(die(), 60)
        assert here.journal.update(1) is None
    with place(root=server, members="a", keys=keys) as here:
        party = Party.of(here, folder)
        party.url = here.url

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), script), 60)
        assert is_doubled(here, 1, LARGE)
    assert party.hands.begun == [], "it was trained anew"
    assert party.heard("its answer was finished before")


def test_a_finished_answer_outlives_the_device_and_the_server(tmp_path: Path) -> None:
    check_kept(tmp_path / "device", tmp_path)


def test_a_device_that_keeps_no_answers_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "of", lambda self, run: ())
    with pytest.raises(AssertionError, match="trained anew"):
        check_kept(tmp_path / "device", tmp_path)


def test_a_task_that_was_under_way_is_offered_again_and_comes_to_the_same(tmp_path: Path) -> None:
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        party.hands.gate.clear()
        here.open_round(1, "a", 1, model())

        async def die() -> None:
            working = asyncio.ensure_future(party.take_part())
            await until(party.hands.inside.is_set, "training")
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working

        within(die())
        assert party.hands.num_closed == 1
        again = Party.of(here, tmp_path)

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(again.take_part(), script))
        assert is_doubled(here, 1, 100)


def test_a_server_that_was_killed_is_found_again(tmp_path: Path) -> None:
    """While the device trains, the server goes; the answer is finished meanwhile and waits."""
    port = free_port()
    device = tmp_path / "device"

    async def play() -> None:
        async with Proxy(port) as proxy:
            with place(root=tmp_path, members="a") as here:
                proxy.target, keys = here.port, here.keys
                party = Party.of(here, device, port=proxy.port)
                party.hands.gate.clear()
                here.open_round(1, "a", 1, model())
                working = asyncio.ensure_future(party.take_part())
                await until(party.hands.inside.is_set, "training")
                proxy.target = port  # where nobody listens
            party.hands.gate.set()
            await until(lambda: party.heard("waiting: "), "the search")
            await until(lambda: list((device / "answers" / RUN).glob("*.answer")), "the end of the training")
            party.clock.pauses.clear()
            await until(lambda: len(party.clock.pauses) > 20, "some tries")
            assert 20.0 < max(party.clock.pauses) <= 30.0
            with place(root=tmp_path, members="a", keys=keys) as here:
                proxy.target = here.port
                await answered(here, 1)
                over(here)
                assert await working == "the run has ended: it is done"
            said = [line for line in party.said if line.startswith("waiting")]
            assert len(said) <= 2 + party.clock.now_s / 60, "once a minute"
            assert party.hands.begun[0].id == 1
            assert len(party.hands.begun) == 1

    within(play(), 90)


def test_a_server_that_hangs_is_left_for_another_try(tmp_path: Path) -> None:
    async def play() -> None:
        with place(members="a") as here:
            async with Proxy(here.port) as proxy:
                proxy.stalled = True
                party = Party.of(here, tmp_path, port=proxy.port)
                party.limits = Limits(0.05, 0.05)
                working = asyncio.ensure_future(party.take_part())
                await until(lambda: party.heard("no answer in time"), "the limit")
                proxy.stalled = False
                party.limits = Limits()
                over(here)
                assert await working == "the run has ended: it is done"

    within(play(), 60)


# ---- disks ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_time_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, fulls = Answers.keep, [True, True, True]

    def full(self: Answers, *rest: Any) -> Any:
        if fulls:
            fulls.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return keep(self, *rest)

    monkeypatch.setattr(Answers, "keep", full)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), script))
        assert is_doubled(here, 1, 100)
    assert len(party.hands.begun) == 1
    assert party.heard("this device's disk: keeping a finished answer failed (No space left on device); make room")


def test_an_answer_that_was_damaged_on_the_disk_is_not_sent_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was damaged between its finishing and its sending: the task is done again."""
    keep, damaged = Answers.keep, []

    def damage(self: Answers, *rest: Any) -> Any:
        kept = keep(self, *rest)
        if not damaged:
            damaged.append(kept)
            data = bytearray(kept.path.read_bytes())
            data[-1] ^= 1
            kept.path.write_bytes(data)
        return kept

    monkeypatch.setattr(Answers, "keep", damage)
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model())

        async def script() -> None:
            await answered(here, 1)
            over(here)

        within(beside(party.take_part(), script))
        assert is_doubled(here, 1, 100)
    assert len(party.hands.begun) == 2
    assert party.heard("was damaged on this device's disk")


def test_an_answer_that_the_server_does_not_take_is_told_as_a_failure_and_not_repeated(tmp_path: Path) -> None:
    with place(members="a", max_answer_bytes=10_000) as here:
        party = Party.of(here, tmp_path)
        here.open_round(1, "a", 1, model(LARGE))

        async def script() -> None:
            await until(lambda: _lost(here, 1), "the loss")
            here.open_round(2, "a", 2, model())
            await answered(here, 2)
            over(here)

        within(beside(party.take_part(), script))
        kept = here.journal.tasks.get(1)
    assert kept is not None
    assert "the server does not take the answer" in kept.reason
    assert [task.id for task in party.hands.begun] == [1, 2]


def _lost(here: Place, task: int) -> bool:
    kept = here.journal.tasks.get(task)
    return kept is not None and kept.state is TaskState.LOST


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_a_request_is_never_sent_twice_by_itself(tmp_path: Path) -> None:
    """HTTP libraries repeat a GET or PUT on a connection that turns out dead. Ours must be signed anew for that."""

    async def play() -> None:
        with place(members="a") as here:
            async with Proxy(here.port, [Cut(), Cut()]) as proxy:
                party = Party.of(here, tmp_path, port=proxy.port)
                with Device(tmp_path) as device:
                    async with party.link(device) as link:
                        link.run = RUN
                        await link.briefing()
                        assert proxy.num_connections == 1
                        proxy.cuts = []
                        before = proxy.num_up
                        await _hang_up(proxy)
                        with pytest.raises(delivery.Unreachable):
                            await link.briefing()
                        assert proxy.num_up == before, "it was sent again on another connection"
                        await link.briefing()

    within(play())


async def _hang_up(proxy: Proxy) -> None:
    """Have the next bytes on the open connection meet a dead server."""
    proxy.dies.set()


def test_a_folder_that_came_back_from_a_copy_signs_anew_or_says_what_is_wrong(tmp_path: Path) -> None:
    """Its numbers are those of before. A few it skips by signing again, as after an answer that was lost."""
    with place(members="a") as here:
        party = Party.of(here, tmp_path)
        over(here)
        key = hashlib.sha256(here.keys["a"].public).hexdigest()
        assert advance(here.journal, "a", key, 2)
        assert within(party.take_part()) == "the run has ended: it is done"
        assert advance(here.journal, "a", key, 5_000)
        with pytest.raises(DeviceError, match="sequence number"):
            within(party.take_part())

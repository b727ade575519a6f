"""One roster, several processes: what an administrator changes holds at once, wherever it is read."""

import fcntl
import math
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from forked import Forked
from fronts import Device, joining, place, within

from roundelay.deployment import protocol
from roundelay.deployment.journal.records import TaskState
from roundelay.deployment.trust import members
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

KEY_A, KEY_B, NOW_S, DAY_S = b"a" * 32, b"b" * 32, 1.8e9, 86_400.0
INVITING = """
import fcntl
import sys
from pathlib import Path
from roundelay.deployment.trust.roster import Roster
roster = Roster(Path(sys.argv[1]))
with open(sys.argv[3]) as gate:
    print("ready")
    fcntl.flock(gate, fcntl.LOCK_SH)
for number in range(20):
    roster.invite(f"{sys.argv[2]}-{number}", 86_400.0, 1.8e9)
"""


def test_one_sees_what_another_changed(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    one, other = Roster(path), Roster(path)
    token = one.invite("a", DAY_S, NOW_S).reveal()
    assert other.enrol(token, KEY_A, NOW_S) == "a"
    assert one.public_key("a") == KEY_A
    other.revoke("a")
    with pytest.raises(IdentityError, match="not enrolled"):
        one.public_key("a")
    one.admit("b", KEY_B)
    other.refresh()
    assert [member.client for member in other.members()] == ["b"]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    (tmp_path / "inviting.py").write_text(INVITING)
    with ExitStack() as stack:
        with (tmp_path / "gate").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            lines = [["inviting.py", str(path), name, gate.name] for name in ("x", "y")]
            writers = [stack.enter_context(Forked(tmp_path, line)) for line in lines]
            for writer in writers:
                assert writer.stdout.readline() == "ready\n"
        assert [writer.communicate(timeout=60)[0] for writer in writers] == ["", ""]
        assert [writer.returncode for writer in writers] == [0, 0]
    assert Roster(path).clients() == sorted(f"{name}-{number}" for name in "xy" for number in range(20))


def test_what_was_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roster.json"
    Roster(path).admit("a", KEY_A)
    before_s = path.stat().st_mtime - 60
    os.utime(path, (before_s, before_s))  # long enough ago for its times to be believed
    roster = Roster(path)
    reads = []
    monkeypatch.setattr(members, "read_members", lambda path: reads.append(path))
    for _ in range(5):
        assert roster.public_key("a") == KEY_A
    assert not reads


def test_a_change_that_leaves_no_trace_in_the_times_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    roster = Roster(path)
    roster.admit("a", KEY_A)
    status, text = path.stat(), path.read_text()
    path.write_text(text.replace('"client": "a"', '"client": "b"'))  # same inode, same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IdentityError, match="not enrolled"):
        roster.public_key("a")


def test_a_roster_that_is_gone_or_spoilt_is_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    roster = Roster(path)
    roster.admit("a", KEY_A)
    text = path.read_text()
    for spoil in (path.unlink, lambda: path.write_text("{")):
        spoil()
        for use in (roster.refresh, lambda: roster.public_key("a"), lambda: roster.admit("b", KEY_B)):
            with pytest.raises(IdentityError, match="restore it"):
                use()
        path.write_text(text)
        path.chmod(0o600)
        assert roster.public_key("a") == KEY_A


def test_a_revoked_client_is_out_with_its_next_request_and_nobody_waits_for_it() -> None:
    async def go() -> None:
        async with Device.of(here) as device, Device.of(here, "b") as other:
            here.open_round()
            assert (await device.poll()).status == 200
            Roster(here.root / "roster.json").revoke("a")  # as another process does
            said = await device.ask("POST", protocol.BEAT, protocol.Beat())
            assert (said.status, said.error) == (401, "signature")
            kept = here.journal.tasks.get(1)
            assert kept is not None
            assert (kept.state, kept.reason) == (TaskState.LOST, "client 'a' was revoked")
            assert here.news[-1] == 1
            assert not here.board.is_present("a")
            assert here.board.silent_s("a") == math.inf, "what it is asked next is lost at once"
            assert (await other.poll()).status == 200

    with place() as here:
        within(go())


def test_a_roster_that_cannot_be_read_makes_devices_come_again() -> None:
    async def go() -> None:
        path = here.root / "roster.json"
        text = path.read_text()
        async with Device.of(here) as device:
            path.write_text("")
            for said in (
                await device.poll(),
                await device.send("POST", protocol.JOIN, joining("x", device.key).model_dump_json().encode()),
            ):
                assert (said.status, said.error) == (503, "disk")
                assert str(here.root) not in said.body.decode()
            path.write_text(text)
            assert (await device.poll()).status == 204

    with place() as here:
        within(go())


def test_a_worker_that_was_revoked_does_not_come_back_with_its_key_over_a_connection_that_reaches_it() -> None:
    with place(members="a") as here:
        admission = here.front._admission
        with pytest.raises(Exception, match="another key"):
            admission.join(joining("", DeviceKey.new()), dialled="a")
        here.roster.revoke("a")
        with pytest.raises(Exception, match="was revoked"):
            admission.join(joining("", here.keys["a"]), dialled="a")
        assert admission.join(joining("", DeviceKey.new()), dialled="a") == "a"

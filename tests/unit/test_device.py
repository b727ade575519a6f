"""A device's folder: whose it is, what lies in it, who may have it open."""

import os
import stat
from pathlib import Path

import pytest
import torch
from agents import payload, sha256

from roundelay import wire
from roundelay.client.exchange import Answered, model_frame
from roundelay.deployment.device.device import Device
from roundelay.deployment.protocol import Offer
from roundelay.deployment.trust.certificates import Authority
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.errors import DeviceError, IdentityError, WireError

NOW_S = 1_800_000_000.0
MODEL = wire.to_bytes(model_frame(payload()))


def offer(task: int = 7) -> Offer:
    return Offer(
        id=task, round=3, attempt=1, kind="train", config={"lr": 0.1}, sent=sha256(MODEL), size=len(MODEL), memory=5
    )


def answer(task: int = 7) -> wire.Frame:
    return Answered(task, 10.0, True, {"loss": 0.25}, payload()).frame()


def put(device: Device, data: bytes) -> str:
    digest = sha256(data)
    device.models.part(digest).write_bytes(data)
    device.models.put(digest)
    return digest


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_nobody_else_may_look_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir(mode=0o755)
    with Device(folder) as device:
        device.key()
        device.join("a", "https://server:1")
        device.memories.save("run", 1, {"c": torch.ones(3)})
        device.answers.keep("run", offer(), answer())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_one_process_has_it_open_and_may_open_it_again(tmp_path: Path) -> None:
    with Device(tmp_path), pytest.raises(DeviceError, match="another process takes part from this folder"):
        Device(tmp_path)
    with Device(tmp_path):
        pass


def test_where_no_folder_can_be_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="give another folder"):
        Device(tmp_path / "file")


def test_it_outlives_its_process(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        public, first = device.key().public, device.counter.next()
        device.join("a", "https://server:1")
        pem = Authority.new(NOW_S).pem
        device.trust(pem)
        (tmp_path / ".left.123.tmp").write_text("what a killed process had begun")
    with Device(tmp_path) as device:
        assert device.key().public == public
        assert device.counter.next() > first
        assert device.joined is not None
        assert (device.joined.client, device.joined.server) == ("a", "https://server:1")
        assert device.authority == pem
        assert not (tmp_path / ".left.123.tmp").exists()


def test_the_folder_of_one_client_is_not_for_another(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        assert device.require("a", "https://server:1") is None
        device.join("a", "http://127.0.0.1:1")
        with pytest.raises(DeviceError, match="belongs to client 'a', not to 'b'; give another folder"):
            device.require("b", "http://127.0.0.1:1")
        with pytest.raises(DeviceError, match="belongs to the server http://127"):
            device.require(None, "http://127.0.0.1:2")
        assert device.require(None, "http://127.0.0.1:1") == device.joined


def test_a_server_that_proves_who_it_is_may_move_and_no_other_takes_its_place(tmp_path: Path) -> None:
    ours, other = Authority.new(NOW_S), Authority.new(NOW_S)
    with Device(tmp_path) as device:
        device.trust(ours.pem)
        device.trust(ours.pem)
        device.join("a", "https://server:1")
        moved = device.require("a", "https://elsewhere:2")
        assert moved is not None
        assert moved.server == "https://elsewhere:2"
        with pytest.raises(DeviceError, match=f"trusts the server with pin {ours.pin}, and this is one with"):
            device.trust(other.pem)
        assert device.pin == ours.pin


def test_a_kits_key_takes_no_other_keys_place(tmp_path: Path) -> None:
    key = DeviceKey.new()
    with Device(tmp_path) as device:
        device.take_key(key)
        device.take_key(key)
        assert device.key().public == key.public
        with pytest.raises(DeviceError, match="has a key already, and the kit brings another one"):
            device.take_key(DeviceKey.new())


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("joined.json", b"{}", DeviceError, "does not say which client this is"),
        ("joined.json", b"\xff", DeviceError, "does not say which client this is"),
        ("sequence", b"many", IdentityError, "expected a whole number"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, error: type[Exception], words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        Device(tmp_path)
    (tmp_path / name).unlink()
    with Device(tmp_path):
        pass


def test_an_authority_that_is_none_is_named(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        (tmp_path / "authority.crt").write_text("nothing of that kind")
        with pytest.raises(IdentityError, match="expected a certificate in PEM"):
            device.pin  # noqa: B018


# ---- models ---------------------------------------------------------------------------------------------------------


def test_models_are_read_into_memory_of_their_own(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        digest = put(device, MODEL)
        assert device.models.has(digest, len(MODEL))
        assert not device.models.has(digest, len(MODEL) + 1)
        first, second = device.models.read(digest), device.models.read(digest)
        first.vectors["params"].zero_()
        assert torch.equal(second.vectors["params"], payload().vectors["params"])


@pytest.mark.parametrize("data", [b"", MODEL[:-1], MODEL[:200], MODEL + b"0", b"x" * 5_000])
def test_a_damaged_model_is_removed(tmp_path: Path, data: bytes) -> None:
    with Device(tmp_path) as device:
        digest = put(device, data)
        with pytest.raises(WireError):
            device.models.read(digest)
        assert not device.models.path(digest).exists()


def test_the_last_models_are_kept_and_one_part(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        digests = [put(device, b"model %d" % i) for i in range(5)]
        for i, digest in enumerate(digests):
            os.utime(device.models.path(digest), ns=(i, i)) if device.models.path(digest).exists() else None
        device.models.part("first").write_bytes(b"1")
        device.models.part("second").write_bytes(b"2")
        names = {path.name for path in (tmp_path / "models").iterdir()}
        assert names == {*digests[-2:], "second.part"}


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_is_kept_by_run_and_task_and_what_is_older_goes(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        for task in (9, 10, 11, 100):
            device.memories.save("run", task, {"c": torch.full((2,), float(task))})
        device.memories.save("other", 1, {})
        device.memories.forget_before("run", 11)
        assert [device.memories.read("run", task) is None for task in (9, 10, 11, 100)] == [True, True, False, False]
        kept = device.memories.read("run", 100)
        assert kept is not None
        assert torch.equal(kept["c"], torch.full((2,), 100.0))
        assert device.memories.read("other", 1) == {}, "nothing is not the same as lost"
        device.memories.forget("run", 11)
        device.memories.forget("run", 11)
        assert device.memories.read("run", 11) is None


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        device.memories.save("run", 1, {"c": torch.ones(100)})
        path = tmp_path / "memory" / "run" / "1"
        path.write_bytes(path.read_bytes()[:-5])
        assert device.memories.read("run", 1) is None


def test_of_many_runs_the_last_are_remembered(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        for i in range(12):
            device.memories.turn_to(f"run-{i}")
            device.memories.save(f"run-{i}", 1, {})
            os.utime(tmp_path / "memory" / f"run-{i}", ns=(i, i))
        device.memories.turn_to("run-11")
        left = sorted(path.name for path in (tmp_path / "memory").iterdir())
    assert left == sorted(f"run-{i}" for i in range(4, 12))


# ---- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_kept_with_their_offers_until_they_are_dropped(tmp_path: Path) -> None:
    with Device(tmp_path) as device:
        kept = [device.answers.keep("run", offer(task), answer(task)) for task in (10, 9)]
    with Device(tmp_path) as device:
        found = device.answers.of("run")
        assert found == (kept[1], kept[0])
        data = b"".join(found[0].read(at, 100) for at in range(0, found[0].size, 100))
        assert sha256(data) == found[0].digest
        assert Answered.read(wire.decode(data)).task_id == 9
        assert found[0].offer == offer(9)
        assert found[0].is_whole()
        device.answers.drop(found[0])
        device.answers.drop(found[0])
        assert device.answers.of("run") == (kept[0],)
        assert device.answers.drop_others("run") == 0
        assert device.answers.drop_others("another") == 1
        assert device.answers.of("run") == ()


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_an_answer_that_was_damaged_is_not_one(tmp_path: Path, keep: int) -> None:
    with Device(tmp_path) as device:
        kept = device.answers.keep("run", offer(), answer())
        kept.path.write_bytes(kept.path.read_bytes()[:keep])
        assert device.answers.of("run") == ()
        assert not kept.path.exists()


def test_an_answer_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (did.append("sync"), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (did.append("replace"), replace(a, b))[1])
    with Device(tmp_path) as device:
        device.memories.turn_to("run")
        device.answers.keep("run", offer(), answer())
        did.clear()
        device.answers.keep("run", offer(8), answer(8))
    assert did == ["sync", "replace", "sync"]

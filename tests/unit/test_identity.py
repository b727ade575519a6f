"""Keys and tokens: kept where nobody else reads them, good once, never shown."""

import importlib
import json
import logging
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from roundelay.deployment.trust import identity
from roundelay.deployment.trust.certificates import (
    AUTHORITY_SECRET,
    SERVER_SECRET,
    Authority,
    server_certificate,
)
from roundelay.deployment.trust.identity import (
    Counter,
    DeviceKey,
    checked_name,
    decode,
    encode,
    read_secret,
    write_secret,
)
from roundelay.deployment.trust.roster import Roster, Token
from roundelay.errors import IdentityError, MissingExtra

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
KEY_A, KEY_B = bytes(range(32)), bytes(range(1, 33))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("roundelay.deployment")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra, match=r"'cryptography' is not installed.*roundelay\[serve\]"):
        importlib.import_module("roundelay.deployment.trust.signing")


# ---- device keys ----------------------------------------------------------------------------------------------------


def test_a_device_keeps_its_key(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    key = DeviceKey.load_or_create(path)
    assert mode(path) == 0o600
    assert DeviceKey.load_or_create(path).public == key.public == DeviceKey.load(path).public
    assert len(key.public) == 32
    assert DeviceKey.new().public != key.public
    assert os.listdir(tmp_path) == ["device.key"]


def check_never_readable(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The contract: at the moment a secret is in the file, the file is its owner's, also under the widest umask."""
    seen: list[int] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            seen.append(stat.S_IMODE(status.st_mode))
        fsync(descriptor)

    patch.setattr(os, "fsync", look)
    before = os.umask(0)
    try:
        (folder / f".device.key.{os.getpid()}.tmp").touch(mode=0o666)  # left by a process of the same number
        DeviceKey.load_or_create(folder / "device.key")
        Authority.open(folder, NOW_S)
        server_certificate(folder, ["localhost"], NOW_S)
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600, 0o666, 0o600]  # the third is the authority's certificate, for everybody
    assert [mode(folder / name) for name in ("device.key", AUTHORITY_SECRET, SERVER_SECRET)] == [0o600] * 3


def test_a_secret_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_never_readable(tmp_path, monkeypatch)


def test_the_check_of_secrets_catches_a_mode_that_is_set_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: Path, content: bytes) -> None:
        identity.save_atomically(path, lambda file: file.write(content))
        path.chmod(0o600)

    monkeypatch.setattr(identity, "write_secret", late)
    with pytest.raises(AssertionError):
        check_never_readable(tmp_path, monkeypatch)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o644, 0o660, 0o610, 0o601, 0o666, 0o777])
def test_a_secret_that_others_may_open_is_refused(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    DeviceKey.new().save(path)
    path.chmod(bits)
    with pytest.raises(IdentityError, match=f"mode {bits:04o}.*`chmod 600 {path}`"):
        DeviceKey.load_or_create(path)
    path.chmod(0o400)
    DeviceKey.load(path)


def test_a_file_that_is_no_key_is_named_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    other = ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for content in (
        b"",
        b"top secret",
        b"-----BEGIN PRIVATE KEY-----\ntop secret\n-----END PRIVATE KEY-----\n",
        other.private_bytes(*form, serialization.NoEncryption()),
        other.private_bytes(*form, serialization.BestAvailableEncryption(b"word")),
    ):
        write_secret(path, content)
        with pytest.raises(IdentityError, match=r"device\.key: expected .*join anew") as caught:
            DeviceKey.load_or_create(path)
        assert "top secret" not in repr(caught.value)
        assert caught.value.__cause__ is None


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    for name in ("pipe", "folder"):
        with pytest.raises(IdentityError, match="plain file"):
            read_secret(tmp_path / name)
    with pytest.raises(IdentityError, match="No such file"):
        read_secret(tmp_path / "absent")
    write_secret(tmp_path / "long", b"x" * (64 * 1024 + 1))
    with pytest.raises(IdentityError, match="longer"):
        read_secret(tmp_path / "long")


@given(st.binary(max_size=64))
def test_texts_have_one_spelling(raw: bytes) -> None:
    text = encode(raw)
    assert decode(text, len(raw), "it") == raw
    for wrong in (text + "=", text + "A", text[:-1] + "!", text + "\n", " " + text, text + "é"):
        with pytest.raises(IdentityError):
            decode(wrong, len(raw), "it")


def test_a_text_that_ends_otherwise_is_refused() -> None:
    text = encode(KEY_A)
    twin = text[:-1] + chr(ord(text[-1]) + 1)  # differs in bits that no byte has
    with pytest.raises(IdentityError, match="the pin"):
        decode(twin, 32, "the pin")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a b", "-a", ".a", "a\n", "é", "a" * 65, "a\0", 'a"', "a\\"]
)
def test_names_that_could_be_paths_or_break_a_header_are_refused(name: str) -> None:
    with pytest.raises(IdentityError, match="letters"):
        checked_name(name)


def test_a_counter_never_says_a_number_twice(tmp_path: Path) -> None:
    path = tmp_path / "sequence"
    said = []
    for number in (1, 3, 2_500, 1):
        counter = Counter(path)  # as after a crash: nobody said goodbye
        said += [counter.next() for _ in range(number)]
    assert said == sorted(set(said))
    assert said[0] == 1
    path.write_text("minus one")
    with pytest.raises(IdentityError, match="whole number"):
        Counter(path)


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_opens_the_door_once(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    token = Roster(path).invite("a", valid_s=60, now_s=NOW_S).reveal()
    assert len(decode(token, 32, "the token")) == 32
    assert mode(path) == 0o600
    assert token not in path.read_text()
    assert Roster(path).enrol(token, KEY_A, NOW_S + 59) == "a"
    again = Roster(path)
    assert again.public_key("a") == KEY_A
    assert again.enrol(token, KEY_A, NOW_S + 3600) == "a", "the answer may have been lost"
    with pytest.raises(IdentityError, match="used with another key"):
        again.enrol(token, KEY_B, NOW_S + 1)
    assert Roster(path).public_key("a") == KEY_A


def test_a_token_runs_out_by_the_clock_that_is_given(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "roster.json")
    token = roster.invite("a", valid_s=DAY_S, now_s=NOW_S).reveal()
    with pytest.raises(IdentityError, match="ran out 2 days ago"):
        roster.enrol(token, KEY_A, NOW_S + 3 * DAY_S)
    with pytest.raises(IdentityError, match="ran out 0 seconds ago"):
        roster.enrol(token, KEY_A, NOW_S + DAY_S)
    with pytest.raises(IdentityError, match="not enrolled"):
        roster.public_key("a")
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(IdentityError, match="valid for some seconds"):
            roster.invite("b", seconds, NOW_S)


def test_a_new_token_voids_the_old_one_and_a_new_key_takes_the_place_of_the_old(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "roster.json")
    old = roster.invite("a", DAY_S, NOW_S).reveal()
    roster.enrol(old, KEY_A, NOW_S)
    new = roster.invite("a", DAY_S, NOW_S).reveal()
    assert roster.public_key("a") == KEY_A
    with pytest.raises(IdentityError, match="later one took its place"):
        roster.enrol(old, KEY_A, NOW_S)
    roster.enrol(new, KEY_B, NOW_S)
    assert roster.public_key("a") == KEY_B
    roster.admit("b", KEY_A)
    assert roster.clients() == ["a", "b"]
    roster.revoke("a")
    assert Roster(tmp_path / "roster.json").clients() == ["b"]
    for wrong in ("", new, new[:-1], "x" * 43, "\ud800"):
        with pytest.raises(IdentityError, match="not one that the server"):
            roster.enrol(wrong, KEY_A, NOW_S)
    with pytest.raises(IdentityError, match="32 bytes"):
        roster.admit("c", b"short")


def test_a_roster_stays_as_it_was_when_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = Roster(tmp_path / "roster.json")
    token = roster.invite("a", DAY_S, NOW_S).reveal()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            roster.enrol(token, KEY_A, NOW_S)
    with pytest.raises(IdentityError, match="not enrolled"):
        roster.public_key("a")
    assert Roster(tmp_path / "roster.json").enrol(token, KEY_B, NOW_S) == "a"


def table(clients: object, invitations: object = ()) -> str:
    return json.dumps({"clients": clients, "invitations": invitations})


def test_a_roster_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    row = {"client": "a", "token_sha256": "", "expires_s": 0.0, "public_key": encode(KEY_A)}
    for wrong in (
        "", "{}", "[1]", "\xff", "[]", table(clients=1), table([{"client": "a"}]), table([row, row]),
        table([{**row, "client": "../a"}]), table([{**row, "public_key": "A"}]),
    ):  # fmt: skip
        write_secret(path, wrong.encode("latin-1"))
        with pytest.raises(IdentityError):
            Roster(path)
    write_secret(path, table([row]).encode())
    assert Roster(path).public_key("a") == KEY_A
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        Roster(path)


# ---- secrets stay secret --------------------------------------------------------------------------------------------


def test_secrets_are_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, key, authority = Token.new(), DeviceKey.new(), Authority.open(tmp_path, NOW_S)
    roster = Roster(tmp_path / "roster.json")
    given_out = roster.invite("a", DAY_S, NOW_S)
    raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    seed = key._private.private_bytes(*raw)
    secrets = [token.reveal(), given_out.reveal(), seed.hex(), encode(seed), repr(seed)]
    secrets += (tmp_path / AUTHORITY_SECRET).read_text().splitlines()[1:4]
    said = [show(value) for show in (repr, str, "{}".format) for value in (token, given_out, key, authority, roster)]
    said.append(str(roster.__dict__))
    for attempt in (
        lambda: roster.enrol(given_out.reveal(), KEY_A, NOW_S + 2 * DAY_S),
        lambda: roster.enrol(token.reveal(), KEY_A, NOW_S),
        lambda: decode(token.reveal() + "!", 32, "the token"),
        lambda: decode(token.reveal() + "A", 32, "the token"),
        lambda: roster.enrol(given_out.reveal(), KEY_A, NOW_S) and roster.enrol(given_out.reveal(), KEY_B, NOW_S),
    ):
        with pytest.raises(IdentityError) as caught:
            attempt()
        said += [str(caught.value), repr(caught.value)]
    said += [caplog.text, (tmp_path / "roster.json").read_text()]
    for secret in secrets:
        assert not [text for text in said if secret in text]

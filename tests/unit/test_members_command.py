"""What an administrator types: clients list | invite | revoke | close, provision."""

import re
import time
from pathlib import Path

import pytest
from fronts import place
from typer.testing import CliRunner

from roundelay import cli
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import Authority, server_context
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.place import Place, last_address, settled
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

NOW_S = time.time()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def typed(*words: object) -> str:
    shown = CliRunner().invoke(cli.app, [str(word) for word in words])
    if shown.exception is not None:
        raise shown.exception
    return shown.stdout


def test_a_client_is_invited_listed_and_revoked(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with pytest.raises(IdentityError, match="--address"):
        typed("clients", "invite", "alice", "--folder", folder)
    with pytest.raises(IdentityError, match="no server keeps its clients there"):
        typed("clients", "list", "--folder", folder)
    folder.mkdir()
    line = typed("clients", "invite", "alice", "--address", "https://fl.example.org:8443", "--folder", folder)
    pin = Authority.open(folder, NOW_S).pin
    found = re.fullmatch(rf"roundelay join https://fl.example.org:8443 --token (\S+) --pin {pin}\n", line)
    assert found is not None
    assert "invited until" in typed("clients", "list", "--folder", folder)
    roster = Roster(folder / "roster.json")
    assert roster.enrol(found.group(1), DeviceKey.new().public, NOW_S) == "alice"
    Place(folder).note(Address("192.0.2.7", 9))
    again = typed("clients", "invite", "alice", "--days", "1", "--folder", folder)
    assert again.startswith("roundelay join https://192.0.2.7:9 ")
    roster.open_door(["bob", "carol"], 2, 3_600.0, NOW_S)
    Place(folder).note(Address("127.0.0.1", 1))
    listed = typed("clients", "list", "--folder", folder)
    assert "joined; its new machine is invited" in listed
    assert "2 seats left" in listed
    assert "last heard of" not in listed
    assert "could come in again" in typed("clients", "revoke", "alice", "--folder", folder)
    assert "alice" not in Roster(folder / "roster.json")
    with pytest.raises(IdentityError, match="no client 'alice'"):
        typed("clients", "revoke", "alice", "--folder", folder)
    assert "2 seats" in typed("clients", "close", "--folder", folder)
    assert "seats left" not in typed("clients", "list", "--folder", folder)
    Place(folder).note(Address("127.0.0.1", 1, secured=False))
    with pytest.raises(IdentityError, match="without TLS"):
        typed("clients", "invite", "alice", "--folder", folder)


def test_of_a_running_server_it_is_listed_who_was_heard_of(tmp_path: Path) -> None:
    context = server_context(tmp_path, ["127.0.0.1"], NOW_S)
    with place(root=tmp_path, tls=context) as here:
        Place(tmp_path).note(Address("127.0.0.1", here.port))
        here.board.saw("b")
        listed = typed("clients", "list", "--folder", tmp_path)
    assert re.search(r"b +│ joined +│ 0 s ago", listed)
    assert re.search(r"a +│ joined +│ not since it started", listed)


def test_kits_are_written_and_their_server_knows_its_names_and_its_port(tmp_path: Path) -> None:
    folder = tmp_path / "kits"
    words = ["--name", "fl.example.org", "--name", "192.0.2.7", "--site", "alice", "--site", "bob", "--port", 9443]
    said = typed("provision", folder, *words, "--days", "3")
    assert Authority.open(folder / "server", NOW_S).pin in said
    assert "--clients alice,bob" in said
    assert {path.name for path in (folder / "sites").iterdir()} == {"alice", "bob"}
    there = Place(folder / "server")
    assert (there.known_as(), there.listens_on()) == (["fl.example.org", "192.0.2.7"], 9443)
    told = Place(folder / "server", port=0, names=("other.example.org",))
    assert (told.known_as(), told.listens_on()) == (["other.example.org"], 0)
    assert last_address(folder / "server") is None
    readme = (folder / "sites" / "alice" / "README.md").read_text()
    assert "roundelay join https://fl.example.org:9443 --kit . --id alice --data " in readme


@pytest.mark.parametrize(
    "text", ["", "names = []", "names = 1\nport = 1", "names = ['a']\nport = 'x'", "names = ['a']\nport = 99999",
             "names = ['a']\nport = 1\nmore = 1", "names = ['a b']\nport = 1"],
)  # fmt: skip
def test_settings_that_are_none_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(IdentityError):
        settled(tmp_path)

"""Each thing that can be wrong between a site and its server, or with a server, has its line."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fronts import Place, place
from loopback import context_of, free_port, serving
from typer.testing import CliRunner

from roundelay import cli
from roundelay.deployment import protocol
from roundelay.deployment.device.device import Device
from roundelay.deployment.doctor import server as doctor_server
from roundelay.deployment.doctor.findings import Finding
from roundelay.deployment.doctor.server import examine_server
from roundelay.deployment.doctor.site import examine_site
from roundelay.deployment.trust.certificates import Authority, server_context
from roundelay.deployment.trust.kits import provision
from roundelay.deployment.trust.roster import Roster

NOW_S = time.time()
NAMES = ["127.0.0.1", "localhost"]
DAY_S = 86_400.0


def line(findings: Sequence[Finding], about: str) -> tuple[str, str]:
    """Return the worst state of what is said about something, and the words."""
    said = [one for one in findings if one.about == about]
    assert said, f"nothing about {about} in {[one.about for one in findings]}"
    worst = max(said, key=lambda one: ["ok", "warning", "wrong"].index(one.state))
    return worst.state.value, worst.text


def wrong(findings: Sequence[Finding]) -> list[str]:
    return [one.about for one in findings if one.state == "wrong"]


@contextmanager
def joined(tmp_path: Path) -> Iterator[tuple[Place, str, Path]]:
    """A server over TLS, its URL, and the folder of client a."""
    context = server_context(tmp_path / "server", NAMES, NOW_S)
    authority = Authority.open(tmp_path / "server", NOW_S)
    with place(tls=context, authority_pem=authority.pem) as here:
        url = f"https://127.0.0.1:{here.port}"
        with Device(tmp_path / "a") as device:
            device.trust(authority.pem)
            device.take_key(here.keys["a"])
            device.join("a", url)
        yield here, url, tmp_path / "a"


# ---- at a site ------------------------------------------------------------------------------------------------------


def test_where_all_is_well_all_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=10**9, f_frsize=4096, f_files=10**6, f_favail=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    with joined(tmp_path) as (here, url, folder):
        pin = Authority.open(tmp_path / "server", NOW_S).pin
        findings = examine_site(url, pin, folder)
        assert {one.state.value for one in findings} == {"ok"}, findings
        about = ["software", "disk", "name", "port", "TLS", "certificate", "clock", "server", "pin", "client"]
        assert [one.about for one in findings] == about
        assert "knows client 'a'" in line(findings, "client")[1]
        shown = CliRunner().invoke(cli.app, ["doctor", url, "--folder", str(folder), "--json"])
        assert shown.exit_code == 0
        assert json.loads(shown.stdout)["healthy"]
        with Device(folder) as device:  # while the client runs, its numbers are its own
            before = device.counter.next()
            assert "takes part at this moment" in line(examine_site(url, pin, folder), "client")[1]
            assert device.counter.next() == before + 1
        here.board.turn(here.board.phase.ENDED)
        assert line(examine_site(url, "", folder), "client")[0] == "ok"


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    findings = examine_site("https://fl.example.org:8443", "", None)
    assert wrong(findings) == ["name"]
    assert "no such host" in line(findings, "name")[1]
    assert wrong(examine_site("fl.example.org", "", None)) == ["address"]


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        findings = examine_site(f"https://127.0.0.1:{taken.getsockname()[1]}", "", None)
    assert wrong(findings) == ["port"]
    assert "nothing listens there" in line(findings, "port")[1]


def test_a_port_that_speaks_plain_http_and_one_that_is_no_server_of_ours(tmp_path: Path) -> None:
    with serving(None, b"<html>") as server:
        plain = server.address()
        findings = examine_site(f"https://127.0.0.1:{plain.port}", "A" * 43, None)
        assert wrong(findings) == ["TLS", "pin"]
        assert "does not speak TLS" in line(findings, "TLS")[1]
        findings = examine_site(f"http://127.0.0.1:{plain.port}", "", None)
        assert wrong(findings) == ["server"]
        assert "no roundelay server" in line(findings, "server")[1]


def test_a_wrong_pin_and_none(tmp_path: Path) -> None:
    with joined(tmp_path) as (_, url, folder):
        other = Authority.open(tmp_path / "other", NOW_S).pin
        findings = examine_site(url, other, None)
        assert wrong(findings) == ["pin"]
        assert "another server, or somebody stands between" in line(findings, "pin")[1]
        assert wrong(examine_site(url, other, folder)) == ["pin"]
        assert line(examine_site(url, "", None), "pin")[0] == "warning"


@pytest.mark.parametrize(("begun_s", "said"), [(-400 * DAY_S, "ran out on"), (400 * DAY_S, "begins on")])
def test_a_certificate_that_is_not_good_now(tmp_path: Path, begun_s: float, said: str) -> None:
    authority = Authority.new(NOW_S - 500 * DAY_S)
    context = context_of(tmp_path, authority, NAMES, NOW_S + begun_s, days=30)
    with serving(context, authority.pem) as server:
        findings = examine_site(f"https://127.0.0.1:{server.address().port}", authority.pin, None)
    assert {"certificate", "pin"} <= set(wrong(findings))
    assert said in line(findings, "certificate")[1]


def test_a_certificate_for_another_name_and_one_that_ends_soon(tmp_path: Path) -> None:
    authority = Authority.new(NOW_S)
    context = context_of(tmp_path, authority, ["fl.example.org"], NOW_S, days=5)
    with serving(context, authority.pem) as server:
        findings = examine_site(f"https://127.0.0.1:{server.address().port}", authority.pin, None)
    assert "is not for '127.0.0.1'" in line(findings, "pin")[1]
    assert line(findings, "certificate")[0] == "warning"


@pytest.mark.parametrize(
    ("off_s", "state"), [(0, "ok"), (-600, "warning"), (600, "warning"), (-8 * DAY_S, "wrong"), (8 * DAY_S, "wrong")]
)
def test_a_clock_that_is_off(tmp_path: Path, off_s: float, state: str) -> None:
    with joined(tmp_path) as (_, url, folder):
        findings = examine_site(url, "", folder, now_s=lambda: time.time() + off_s)
    assert line(findings, "clock")[0] == state
    assert line(findings, "client")[0] == ("wrong" if state == "wrong" else "ok"), "the server refuses such a date"


def test_a_client_that_was_revoked_or_never_joined(tmp_path: Path) -> None:
    with joined(tmp_path) as (here, url, folder):
        Roster(here.root / "roster.json").revoke("a")
        findings = examine_site(url, "", folder)
        assert wrong(findings) == ["client"]
        assert "must join with a token first" in line(findings, "client")[1]
        shown = CliRunner().invoke(cli.app, ["doctor", url, "--folder", str(folder)])
        assert shown.exit_code == 1
        assert "client: the server does not take client 'a'" in shown.stdout
        pin = Authority.open(tmp_path / "server", NOW_S).pin
        assert line(examine_site(url, pin, tmp_path / "nothing"), "client")[0] == "warning"
        assert not (tmp_path / "nothing").exists(), "looking makes no folder"


def test_another_version_of_the_program_or_of_the_protocol(tmp_path: Path) -> None:
    for number, about, state in ((protocol.PROTOCOL, "understand each other", "warning"), (99, "install", "wrong")):
        hello = protocol.Hello(protocol=number, version="0.0.1", run="one", joining=True)
        with serving(None, hello.model_dump_json().encode()) as server:
            findings = examine_site(f"http://127.0.0.1:{server.address().port}", "", None)
        assert line(findings, "server")[0] == state
        assert about in line(findings, "server")[1]


@pytest.mark.parametrize(
    ("free", "files", "state"), [(100, 10**6, "wrong"), (10**6, 10**6, "warning"), (10**9, 3, "warning")]
)
def test_a_disk_that_is_full_or_nearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, files: int, state: str
) -> None:
    disk = SimpleNamespace(f_bavail=free, f_frsize=4096, f_files=10**6, f_favail=files)
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert line(examine_site("https://[", "", tmp_path / "not" / "yet"), "disk")[0] == state
    assert line(examine_server(tmp_path / "s", tmp_path / "runs", "127.0.0.1", 1), "disk")[0] == state


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise findings_module.PackageNotFoundError(name)

    findings_module = sys.modules["roundelay.deployment.doctor.findings"]
    monkeypatch.setattr(findings_module, "version", missing)
    assert "pip install" in line(examine_site("x", "", None), "software")[1]


# ---- at a server ----------------------------------------------------------------------------------------------------


def server_folder(tmp_path: Path, port: int = 8443) -> Path:
    provision(tmp_path / "kits", NAMES, ["a", "b"], now_s=NOW_S, port=port)
    return tmp_path / "kits" / "server"


def test_a_server_that_was_never_started_and_one_that_is_ready_to_be(tmp_path: Path) -> None:
    port = free_port()
    assert not wrong(examine_server(tmp_path / "none", tmp_path, "127.0.0.1", port))
    folder = server_folder(tmp_path, port)
    findings = examine_server(folder, tmp_path / "runs", "127.0.0.1", None)
    assert not wrong(findings)
    assert line(findings, "port") == ("ok", f"port {port} is free; no server runs there now")
    assert "0 have joined, 2 more are invited" in line(findings, "clients")[1]
    shown = CliRunner().invoke(cli.app, ["doctor", "--server", str(folder), "--host", "127.0.0.1"])
    assert shown.exit_code == 0, shown.stdout


def test_secrets_that_others_may_read_and_such_that_are_spoilt(tmp_path: Path) -> None:
    folder = server_folder(tmp_path)
    (folder / "authority.key").chmod(0o644)
    (folder / "server.key").write_text("no key")
    folder.chmod(0o777)
    findings = examine_server(folder, tmp_path, "127.0.0.1", free_port())
    assert set(wrong(findings)) == {"folder", "secrets", "certificate"}
    assert "chmod 600" in line(findings, "secrets")[1]


def test_an_authority_near_its_end_and_behind_it(tmp_path: Path) -> None:
    folder, port = server_folder(tmp_path), free_port()
    for years, state in ((19.5, "warning"), (21, "wrong"), (-1, "wrong")):
        later_s = NOW_S + years * 365 * DAY_S
        findings = examine_server(folder, tmp_path, "127.0.0.1", port, now_s=lambda later_s=later_s: later_s)
        assert line(findings, "authority")[0] == state
        assert line(findings, "clients")[0] == ("warning" if years > 0 else "ok"), "tokens ran out"
    assert "behind what was written here" in line(findings, "clock")[1]


def test_a_port_that_our_server_has_and_one_that_another_program_has(tmp_path: Path) -> None:
    folder = server_folder(tmp_path)
    context = server_context(folder, NAMES, NOW_S)
    with place(tls=context) as here:
        findings = examine_server(folder, tmp_path, "127.0.0.1", here.port)
        assert line(findings, "port") == ("ok", f"the server of this folder serves port {here.port}")
        here.board.turn(here.board.phase.DRAINING)
        assert "about to stop" in line(examine_server(folder, tmp_path, "127.0.0.1", here.port), "server")[1]
    with serving(None, b"something else") as other:
        findings = examine_server(folder, tmp_path, "127.0.0.1", other.address().port)
        assert wrong(findings) == ["port"]
        assert "is taken, and not by the server of this folder" in line(findings, "port")[1]
    assert "no address 192.0.2.1" in line(examine_server(folder, tmp_path, "192.0.2.1", 8443, timeout_s=0.1), "port")[1]


def test_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, state in ((1024, "warning"), (10**6, "ok"), (-1, "ok")):
        monkeypatch.setattr(doctor_server.resource, "getrlimit", lambda _, limit=limit: (1024, limit))
        assert line(examine_server(tmp_path, tmp_path, "127.0.0.1", free_port()), "open files")[0] == state


def test_the_command_wants_one_end() -> None:
    for words in ([], ["https://fl.example.org", "--server", "x"]):
        assert isinstance(CliRunner().invoke(cli.app, ["doctor", *words]).exception, ValueError)

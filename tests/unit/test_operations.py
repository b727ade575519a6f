"""The pages for whoever runs a server say what is so: their commands are taken and run, their tests are there."""

import ast
import json
import re
import shlex
import time
from pathlib import Path

import pytest
from typed import require_accepted
from typer.testing import CliRunner

from roundelay.cli import app, logs
from roundelay.deployment import protocol as p
from roundelay.deployment.board import Phase
from roundelay.deployment.journal.records import Fate, Verdict
from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.kits import ROSTER, provision
from roundelay.deployment.trust.roster import Roster

ROOT = Path(__file__).parents[2]
OPERATIONS, SECURITY = (ROOT / name for name in ("docs/operations.md", "SECURITY.md"))
PAGES = (OPERATIONS, SECURITY)


def typed(page: str) -> list[str]:
    """Return what is to be typed behind ``roundelay``: of console blocks, of shell blocks, and within a line."""
    text = page.replace("\\\n", " ")
    return re.findall(r"(?:^|`|bin/)roundelay ((?:--)?[a-z].*?)(?:`|$)", text, flags=re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_is_one(page: Path) -> None:
    found = typed(page.read_text())
    assert len(found) >= (18 if page is OPERATIONS else 0)
    for words in found:
        require_accepted(shlex.split(words))


def test_the_commands_that_need_no_server_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    provision(Path("federation"), ["fl.example.org"], ["alice", "bob"], now_s=time.time())
    roster = Roster(Path("federation/server") / ROSTER)
    roster.admit("alice", DeviceKey.new().public)
    roster.open_door(["carol"], 1, 1e6, time.time())
    said = {}
    blocks = re.findall(r"```console\n(.*?)```", OPERATIONS.read_text(), flags=re.S)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)[1:]
        if words[0] in ("clients", "doctor", "runs"):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{line}: {done.output}"
            said[" ".join(words[:2])] = done.output
    assert "is out" in said["clients revoke"]
    assert re.search(r"roundelay join https://fl\.example\.org:8443 --token \S+ --pin \S+", said["clients invite"])
    assert "1 seats that were left are closed" in said["clients close"]
    assert json.loads(said["doctor --server"])["healthy"]
    roster.refresh()
    assert not roster.invitations()
    assert not next(member for member in roster.members() if member.client == "alice").public_key


def test_the_page_names_all_that_is_logged_and_counted() -> None:
    page = OPERATIONS.read_text()
    for field in (*logs.FIELDS, "time", "level", "logger", "message", "traceback"):
        if field != "run":
            assert f"`{field}`" in page, field
    assert {f"`{phase.name.lower()}`" for phase in Phase} <= set(re.findall(r"`\w+`", page))
    for name in (*Verdict, *Fate, "waiting", "duplicate"):
        assert f"`{name}`" in page, name
    for status, error in re.findall(r"^\| a site: (\d+) `(\w+)`", page, flags=re.M):
        assert p.ERRORS[error].startswith(status)


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_claim_of_the_page_on_security_names_a_test_that_is_there() -> None:
    page = SECURITY.read_text()
    named = re.findall(r"`(tests/\S+?\.py)::(\w+)`", page)
    assert len(named) >= 25
    for path, name in named:
        assert name in names_in(ROOT / path), f"{path} has no {name}"
    for row in re.findall(r"^\| (?!cannot|---)(.*) \|$", page, flags=re.M):
        assert "::test_" in row, f"a claim without a test: {row}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", page.read_text())):
        there = page if not target else (page.parent / target).resolve()
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, anchor
    for path in re.findall(r"`(packaging/\S+)`", page.read_text()):
        assert (ROOT / path).exists(), path

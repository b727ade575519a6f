"""Secrets stay where they belong: not in a log, an error, a metric, the state of a server, or a run's folder."""

import base64
import io
import logging
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asked import ready
from commands import commands
from figures import Figures
from fronts import DAY_S, Device, joining, place, within
from projects import invited, write_job
from secrets_found import files, forms, found, of_key
from typer.testing import CliRunner

from roundelay.cli import app
from roundelay.cli.logs import JsonLines
from roundelay.deployment import protocol as p
from roundelay.deployment.device import joining as joining_module
from roundelay.deployment.device.device import Device as DeviceFolder
from roundelay.deployment.device.joining import _unpacked
from roundelay.deployment.front import front, problems
from roundelay.deployment.front.meters import SYNC_BOUNDS_S, Durations, Meters
from roundelay.deployment.trust import roster as rosters
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import AUTHORITY_SECRET, SERVER_SECRET, server_context
from roundelay.deployment.trust.identity import DeviceKey, write_secret
from roundelay.deployment.trust.kits import DEVICE_KEY, JOIN_LINE, ROSTER, TOKEN
from roundelay.deployment.trust.questions import ask
from roundelay.deployment.trust.roster import Roster
from roundelay.errors import IdentityError

prometheus_client = pytest.importorskip("prometheus_client", reason="it comes with the extra 'metrics'")
metrics = pytest.importorskip("roundelay.deployment.front.metrics")
NOW_S = 1_800_000_000.0
WORDS = b"correct horse battery staple"


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that roundelay and aiohttp log, down to the last detail, as JSON."""
    stream, loggers = io.StringIO(), [logging.getLogger(name) for name in ("roundelay", "aiohttp", "asyncio")]
    handler, levels = logging.StreamHandler(stream), [one.level for one in loggers]
    handler.setFormatter(JsonLines())
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)


def exposed(told: metrics.Server) -> bytes:
    """What Prometheus reads."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(told)
    return prometheus_client.generate_latest(registry)


def check_server(folder: Path) -> None:
    """The contract: whatever strangers and clients say wherever, a server repeats no secret of it, and keeps none."""
    folder.mkdir(exist_ok=True)
    said: list[bytes] = []
    with logged() as log, place(root=folder, members="abc") as here:
        syncs = Durations(SYNC_BOUNDS_S)
        told = metrics.Server(here.front.meters, here.board, here.roster, syncs, rounds=lambda: (0, 1), num_clients=3,
                              num_connections=lambda: 1)  # fmt: skip
        ready(here)
        tokens = [here.roster.invite(name, DAY_S, 4e9).reveal() for name in "def"]
        secrets = {f"token {at}": token.encode() for at, token in enumerate(tokens)} | {"words": WORDS}
        key, spoken = DeviceKey.new(), WORDS.decode()

        async def go() -> None:
            async with Device.of(here) as device:
                quoted = spoken.replace(" ", "%20")
                for secret in (*tokens, quoted):
                    for path in (f"/v1/{secret}", f"{p.BLOBS}/{secret}", f"/v1/work?token={secret}"):
                        said.append((await device.ask("POST", path)).body)
                        said.append((await device.send("GET", path, fields=[("Authorization", secret)])).body)
                    for body in (
                        joining(secret[:128], key, "a").model_dump_json(), f'{{"token": "{secret}", "x": "{secret}"}}',
                        f'{{"token": ["{secret}"]}}', f'"{secret}"', secret,
                    ):  # fmt: skip
                        said.append((await device.send("POST", p.JOIN, body.encode())).body)
                        said.append((await device.ask("POST", p.DATA, body.encode())).body)
                joined = await device.send("POST", p.JOIN, joining(tokens[0], key, "d").model_dump_json().encode())
                assert joined.status == 200
                said.append(joined.body)
                said.append((await device.send("GET", p.STATS)).body)

        within(go())
        said.append(exposed(told))
        problems_said = [answer for answer in said if b'"error"' in answer]
        assert len(problems_said) > 30
        written = {"answers": b"\n".join(said), "log": log.getvalue().encode(), **files(folder)}
    assert '"status": "403"' in log.getvalue()
    leaks = [(name, form, where) for name, form, where in found(secrets, written)]
    assert not leaks, leaks


def test_a_server_repeats_and_keeps_no_secret(tmp_path: Path) -> None:
    check_server(tmp_path)


def paths_in_the_log(patch: pytest.MonkeyPatch) -> None:
    note = front.Front._note

    def planted(self: front.Front, request: front.web.Request, *rest: object) -> None:
        front.log.info("%s", request.path_qs)
        note(self, request, *rest)  # type: ignore[arg-type]

    patch.setattr(front.Front, "_note", planted)


def fields_in_the_log(patch: pytest.MonkeyPatch) -> None:
    note = front.Front._note

    def planted(self: front.Front, request: front.web.Request, *rest: object) -> None:
        front.log.debug("%r", dict(request.headers))
        note(self, request, *rest)  # type: ignore[arg-type]

    patch.setattr(front.Front, "_note", planted)


def input_in_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(problems, "_faults", str)


def tokens_in_the_clear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rosters, "_hash", lambda token: token)


def paths_as_labels(patch: pytest.MonkeyPatch) -> None:
    end, note = Meters.end, front.Front._note

    def planted(self: front.Front, request: front.web.Request, *rest: object) -> None:
        patch.setattr(Meters, "end", lambda meters, route, *more: end(meters, request.path, *more))
        note(self, request, *rest)  # type: ignore[arg-type]

    patch.setattr(front.Front, "_note", planted)


PLANTS = [(paths_in_the_log, "log"), (fields_in_the_log, "log"), (input_in_errors, "answers"),
          (tokens_in_the_clear, "roster.json"), (paths_as_labels, "answers")]  # fmt: skip


@pytest.mark.parametrize(("plant", "where"), PLANTS, ids=lambda one: getattr(one, "__name__", ""))
def test_the_check_of_secrets_catches(
    plant: Callable[[pytest.MonkeyPatch], None], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=f"'{where}'"):
        check_server(tmp_path)


@pytest.mark.parametrize("form", forms(WORDS))
@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"xyz"])
def test_a_secret_is_found_in_whatever_form(form: str, before: bytes) -> None:
    written = before + forms(WORDS)[form] + b"..."
    assert ("words", form, "here") in set(found({"words": WORDS}, {"here": written}))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert list(found({"words": WORDS}, {"here": encode(before + WORDS + b"after")}))
    assert not list(found({"words": WORDS}, {"here": encode(before + WORDS[:-1] + b"?")}))


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_whole_run_leaves_secrets_only_where_they_belong(
    tmp_path: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server and two sites, from kits to the end, with all that is logged, shown, counted and kept."""
    write_job(tmp_path, num_rounds=2)
    kits, sites = tmp_path / "federation", ("c0", "c1")
    serve, joins = invited(tmp_path, sites, "federation/sites")
    tokens = {f"token of {site}": (kits / "sites" / site / TOKEN).read_bytes().strip() for site in sites}
    proxy = f"http://admin:{WORDS.decode().replace(' ', '-')}@127.0.0.1:9"
    environment = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "ALL_PROXY": proxy}
    as_json = ["--log-format", "json"]
    with commands(tmp_path, [*as_json, *serve, "--metrics", "0"], environment=environment) as (server,):
        where = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", server.line("metrics: "))
        assert where is not None
        server.line("roundelay join")
        with commands(tmp_path, *([*as_json, *join] for join in joins), environment=environment) as there:
            measured = ask(Address("127.0.0.1", int(where[1]), secured=False), "/metrics", None).body
            outputs = {f"output of {site}": one.end().encode() for site, one in zip(sites, there, strict=True)}
        outputs["output of the server"] = server.end().encode()
    monkeypatch.chdir(tmp_path)
    for words in (["doctor", "--server", "federation/server"], ["clients", "list", "--folder", "federation/server"]):
        outputs[" ".join(words)] = CliRunner().invoke(app, words).output.encode()
    assert b"c1" in outputs["clients list --folder federation/server"]
    homes = {AUTHORITY_SECRET, SERVER_SECRET, DEVICE_KEY, TOKEN, JOIN_LINE}
    secrets = tokens | {"words": WORDS.replace(b" ", b"-")}
    for path in kits.rglob("*.key"):
        secrets[str(path.relative_to(kits))] = of_key(path.read_bytes())
        secrets[f"PEM of {path.relative_to(kits)}"] = b"".join(path.read_bytes().split(b"-----")[2].split())
    assert len(secrets) == 2 + 1 + 2 * 4
    written = outputs | {"metrics": measured} | files(tmp_path)
    assert b'"row"' in outputs["output of the server"]
    assert b"roundelay_rounds_total" in measured
    assert any(name.startswith("runs/") and name.endswith("journal.db") for name in written)
    leaks, kept = [], set()
    for name, form, place_ in found(secrets, written):
        if place_.rpartition("/")[2] in homes and place_.startswith("federation/"):
            kept.add(name)
        else:
            leaks.append((name, form, place_))
    assert not leaks, leaks
    assert set(tokens) <= kept, "what looks for secrets does not find those that are there"
    figures("secrets looked for", len(secrets))
    figures("files, outputs and answers searched", len(written))


# ---- files that others may open -------------------------------------------------------------------------------------


def authority(folder: Path) -> Path:
    server_context(folder, ["localhost"], NOW_S)
    return folder / AUTHORITY_SECRET


def of_the_server(folder: Path) -> Path:
    return authority(folder).with_name(SERVER_SECRET)


def roster(folder: Path) -> Path:
    Roster(folder / ROSTER).invite("a", DAY_S, NOW_S)
    return folder / ROSTER


def of_the_device(folder: Path) -> Path:
    DeviceKey.load_or_create(folder / DEVICE_KEY)
    return folder / DEVICE_KEY


def token(folder: Path) -> Path:
    authority(folder)
    write_secret(folder / TOKEN, b"a token")
    return folder / TOKEN


def begun_as_a_site(folder: Path) -> None:
    with DeviceFolder(folder / "client") as device:
        _unpacked(device, folder, "")


def begun_as_a_device(folder: Path) -> None:
    with DeviceFolder(folder) as device:
        device.key()


def begun_with_a_token_file(folder: Path) -> None:
    joining_module.token_in(folder / TOKEN)


def begun_as_a_server(folder: Path) -> None:
    server_context(folder, ["localhost"], NOW_S)
    Roster(folder / ROSTER)


OTHERS = [mode for mode in range(0o600, 0o1000) if mode & 0o077 and mode & 0o600 == 0o600]
FILES = [(authority, begun_as_a_server), (of_the_server, begun_as_a_server), (roster, begun_as_a_server),
         (of_the_device, begun_as_a_device), (of_the_device, begun_as_a_site), (token, begun_as_a_site),
         (token, begun_with_a_token_file)]  # fmt: skip


@pytest.mark.parametrize(("made", "begin"), FILES, ids=lambda one: one.__name__)
def test_nobody_begins_with_a_secret_that_others_may_open(
    made: Callable[[Path], Path], begin: Callable[[Path], None], tmp_path: Path
) -> None:
    if begin is begun_as_a_site:
        authority(tmp_path)
    path = made(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in OTHERS:
        path.chmod(mode)
        with pytest.raises(IdentityError) as caught:
            begin(tmp_path)
        said = str(caught.value)
        assert said.startswith(f"{path}: others than its owner may open this secret (mode {mode:04o}, expected 0600)")
        assert f"`chmod 600 {path}`" in said
    path.chmod(0o600)
    begin(tmp_path)
    path.chmod(0o400)
    begin(tmp_path)


def check_token_file(folder: Path) -> None:
    """The contract: whoever joins with a token that others may read is told so, and nothing is asked or made."""
    path = folder / TOKEN
    path.write_text("a token\n")
    path.chmod(0o644)
    words = ["join", "https://127.0.0.1:1", "--token-file", str(path), "--folder", str(folder / "client")]
    raised = CliRunner().invoke(app, words).exception
    assert isinstance(raised, IdentityError), raised
    assert str(raised).startswith(f"{path}: others than its owner may open this secret (mode 0644, expected 0600)")
    assert not (folder / "client").exists()


def test_a_token_file_that_others_may_open_is_refused(tmp_path: Path) -> None:
    check_token_file(tmp_path)


def test_the_check_of_token_files_catches_one_that_is_just_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining_module, "token_in", lambda path: path.read_text().strip())
    with pytest.raises(AssertionError):
        check_token_file(tmp_path)

"""What stands in packaging/ fits the command, the project and itself. No container is built here."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fronts import place
from typed import require_accepted

from roundelay import config
from roundelay.deployment import protocol as p
from roundelay.deployment.front.meters import SYNC_BOUNDS_S, Durations
from roundelay.deployment.trust.certificates import server_context

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))
DOCKERFILE = (PACKAGING / "Dockerfile").read_text()
COMPOSE: Any = yaml.safe_load((PACKAGING / "compose.yaml").read_text())


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(path)
    return parser


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


# ---- lines that are typed -------------------------------------------------------------------------------------------


def test_the_check_of_typed_lines_finds_what_is_wrong() -> None:
    assert require_accepted(["clients", "list", "--folder", "x"]) == "clients list"
    for wrong in ("serve", "serve a b", "serve job.toml --no-such 1", "no-such", "clients",
                  "serve job.toml --folder", "join"):  # fmt: skip
        with pytest.raises(AssertionError, match="roundelay"):
            require_accepted(wrong.split())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_of_the_composition_is_a_command(name: str) -> None:
    service = COMPOSE["services"][name]
    said = require_accepted([str(word) for word in service["command"]])
    assert said == {"kits": "provision", "server": "serve"}.get(name, "join")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_each_unit_starts_a_command(path: Path) -> None:
    program, *words = shlex.split(unit(path)["Service"]["ExecStart"])
    assert program == "/opt/roundelay/bin/roundelay"
    assert (
        require_accepted(words) == {"roundelay-server.service": "serve", "roundelay-client.service": "join"}[path.name]
    )
    named = set(re.findall(r"\$\{(\w+)\}", " ".join(words)))
    explained = set(re.findall(r"^#   (\w+)=", path.read_text(), flags=re.M))
    assert named == explained, "variables of the unit, and those that its head explains"


# ---- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_hardened_and_come_back(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["User"] == service["Group"] == "roundelay"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["UMask"]) == ("yes", "strict", "0077")
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert service["Restart"] == ("always" if "client" in path.name else "on-failure")
    assert "130" in service["SuccessExitStatus"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path in UNITS:  # what is not on this machine: the program, and its account
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text(), flags=re.M)
        (tmp_path / path.name).write_text(re.sub(r"^(User|Group)=roundelay", r"\1=root", text, flags=re.M))
    units = [str(path) for path in tmp_path.iterdir()]
    assert len(units) == 2
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "roundelay-server.service").write_text(
        f"{Path(units[0]).read_text()}\nNoSuchSetting=yes\n[Service]\nUser\n"
    )
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert done.returncode or done.stderr, "what is wrong is found"


# ---- the container --------------------------------------------------------------------------------------------------


def test_the_container_is_made_of_what_is_there_and_runs_as_nobody_in_particular() -> None:
    steps = instructions()
    assert sum(name == "FROM" for name, _ in steps) == 2
    kept = [
        line.removeprefix("!") for line in (PACKAGING / "Dockerfile.dockerignore").read_text().split() if "!" in line
    ]
    for words in (value.split() for name, value in steps if name == "COPY" and "--from" not in value):
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept, f"{source} is ignored"
    last = [name for name, _ in steps]
    (user,) = (value for name, value in steps if name == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert last.index("USER") < last.index("ENTRYPOINT")
    told = dict(steps)
    assert told["WORKDIR"] == told["VOLUME"] == "/var/lib/roundelay"
    assert json.loads(told["ENTRYPOINT"]) == ["roundelay"]
    require_accepted(["runs", "list"] if json.loads(told["CMD"]) == ["--help"] else json.loads(told["CMD"]))
    assert told["EXPOSE"] == "8443"
    (chosen,) = re.findall(r"ARG EXTRAS=(\S+)", DOCKERFILE)
    for names in (chosen, COMPOSE["services"]["kits"]["build"]["args"]["EXTRAS"]):
        assert set(names.split(",")) <= extras()
        assert {"serve", "metrics"} <= set(names.split(","))


def test_the_check_of_health_tells_a_server_that_answers(tmp_path: Path) -> None:
    check = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    assert f"https://localhost:8443{p.HEALTH}" in check[2]
    folder = tmp_path / "federation" / "server"
    folder.mkdir(parents=True)

    def healthy(port: int) -> bool:
        words = [sys.executable, "-I", "-c", check[2].replace("8443", str(port))]
        return not subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60).returncode

    with place(tls=server_context(folder, ["server", "localhost"], time.time())) as here:
        assert healthy(here.port)
    assert not healthy(here.port)


def test_the_composition_is_one() -> None:
    services = COMPOSE["services"]
    kits = services["kits"]["command"]
    sites = [kits[at + 1] for at, word in enumerate(kits) if word == "--site"]
    names = [kits[at + 1] for at, word in enumerate(kits) if word == "--name"]
    assert set(services) == {"kits", "server", *sites}
    assert {"server", "localhost"} <= set(names), "clients and the check of its health reach it so"
    assert ",".join(sites) in services["server"]["command"]
    for site in sites:
        command, (volume,) = services[site]["command"], services[site]["volumes"]
        assert command[command.index("--id") + 1] == site
        assert volume["volume"]["subpath"] == f"federation/sites/{site}", "its own kit, and no other"
        assert volume["target"].endswith(f"/{command[command.index('--kit') + 1]}")
        assert services[site]["depends_on"] == {"server": {"condition": "service_healthy"}}
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])
    job = config.load(PACKAGING / "job.toml")
    assert f"num_clients = {len(sites)}\n" in (PACKAGING / "job.toml").read_text()
    assert job.num_rounds == 5


# ---- alerts ---------------------------------------------------------------------------------------------------------


def test_alerts_are_about_numbers_that_there_are() -> None:
    metrics = pytest.importorskip("roundelay.deployment.front.metrics")
    (group,) = yaml.safe_load((PACKAGING / "prometheus" / "alerts.yaml").read_text())["groups"]
    with place() as here:
        here.front.meters.end("work", "200", 0.1)
        told = metrics.Server(here.front.meters, here.board, here.roster, Durations(SYNC_BOUNDS_S),
                              rounds=lambda: (0, 1), num_clients=1, num_connections=lambda: 0)  # fmt: skip
        families = list(told.collect())
    known = {family.name for family in families} | {sample.name for family in families for sample in family.samples}
    labels = {family.name: set(family._labelnames) for family in families}
    page = (ROOT / "docs" / "operations.md").read_text()
    for rule in group["rules"]:
        for name, chosen in re.findall(r"(roundelay_\w+)(\{.*?\})?(?=[\s\[)]|$)", rule["expr"]):
            if name in ("roundelay_phase",):
                assert chosen in ('{roundelay_phase="paused"}', '{roundelay_phase="running"}')
                continue
            total = name.removesuffix("_total").removesuffix("_bucket")
            assert name in known or total in known, f"{rule['alert']}: there is no {name}"
            assert set(re.findall(r"(\w+)=", chosen)) <= labels[total]
        assert f"`{rule['alert']}`" in page, f"{rule['alert']} is not explained"
    for family in families:
        assert f"`{family.name}" in page, f"{family.name} is not explained"

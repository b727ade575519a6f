"""Loaded clients over a real network: a server of processes waits for them, and goes on waiting after kill -9.

The clients measure themselves as they always do; what psutil tells them is what a file says.
"""

import json
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from commands import commands, join_line, only, outcome, serve, simulated
from test_served import JOB, OURS

pytest.importorskip("psutil")

WAIT_S = 60.0
READINESS = """
stopping = {metric = "client_loss", patience = 50, min_delta = 1e-4}
[workflow]
use = "rounds"
[workflow.readiness]
cpu_percent = 40
memory_percent = 100
gpu_percent = 100
battery_percent = 0
first_wait_s = 0.2
longest_wait_s = 0.8
"""
FAKED = """
import sys
from pathlib import Path

import psutil

ID = sys.argv[sys.argv.index("--id") + 1] if "--id" in sys.argv else ""


def cpu_percent(interval):
    return 97.0 if ID in Path("loaded").read_text().split() else 3.0


psutil.cpu_percent = cpu_percent
"""


def stats(url: str) -> dict[str, Any]:
    """Return what the server tells of itself, once it does."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            with urlopen(f"{url}/stats", context=context, timeout=10) as answer:
                told: dict[str, Any] = json.load(answer)
                return told
        except (URLError, ConnectionError):
            assert time.monotonic() < until_s, "the server does not answer"
            time.sleep(0.05)


def eventually(url: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    until_s = time.monotonic() + WAIT_S
    while not holds(told := stats(url)):
        assert time.monotonic() < until_s, told
        time.sleep(0.05)
    return told


def waits(told: dict[str, Any]) -> bool:
    return told["phase"] == "paused" and "1 of 3 clients are ready" in told["reason"]


def sites(line: Sequence[str]) -> list[list[str]]:
    return [["join", *line, "--id", f"{n}", "--data", "ours:examples", "--shard", f"{n}/3", "--folder", f"site-{n}"]
            for n in range(3)]  # fmt: skip


@pytest.mark.slow
def test_a_server_waits_for_clients_that_are_loaded_and_is_killed_while_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head, _, tables = JOB.partition("[partition]")
    (tmp_path / "job.toml").write_text(f"{head}{READINESS}[partition]{tables}")
    (tmp_path / "ours.py").write_text(FAKED + OURS)
    loaded = tmp_path / "loaded"
    loaded.write_text("0 2")
    idle = simulated(tmp_path, "job.toml", "idle", "simulation.executor=serial")
    line = serve("job.toml", "joined")
    with commands(tmp_path, line) as (first,):
        joining = join_line(first)
        url = joining[0]
        with commands(tmp_path, *sites(joining)) as there:
            told = eventually(url, waits)
            assert "0 (cpu_percent 97), 2 (cpu_percent 97)" in told["reason"]
            assert told["progress"]["rounds"] == {}, "no round began"
            first.stop()
            port = url.rpartition(":")[2]
            line[line.index("--port") + 1] = port
            with commands(tmp_path, line) as (second,):
                eventually(url, waits)
                loaded.write_text("")
                for site in there:
                    assert "over: " in site.end()
                second.end()
    sha256, rows, clients = outcome(only(tmp_path / "joined"))
    assert rows[0].pop("waits") >= 1  # type: ignore[operator]
    assert idle[1][0].pop("waits") == 0
    assert (sha256, rows, clients) == idle

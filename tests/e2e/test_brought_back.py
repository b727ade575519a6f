"""The page on operations, followed: a run is stopped, packed, removed, unpacked and goes on to the same end."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from commands import commands, only, simulated

from roundelay.deployment.trust.kits import provision

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SITES = ("c0", "c1")
JOB = """
num_rounds = 40
seed = 7
model = "networks:Awkward"
data = "two:clients"
[learner]
lr = 0.1
batch_size = 4
[deployment]
heartbeat_s = 2.0
"""


@pytest.mark.slow
def test_a_run_that_was_stopped_and_packed_is_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = re.search(r"^tar -C /var/lib/roundelay (-czf) \S+ (.*)$", PAGE, flags=re.M)
    assert packed is not None
    there = tmp_path / "server"
    there.mkdir()
    for folder in (there, tmp_path):
        (folder / "job.toml").write_text(JOB)
        (folder / "two.py").write_text("from networks import federated\n\n\ndef clients():\n    return federated(2)\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    provision(there / "federation", ["127.0.0.1"], SITES, now_s=time.time(), port=port)
    for site in SITES:
        (there / "federation" / "sites" / site).rename(tmp_path / site)
    serve = ["serve", "job.toml", "--host", "127.0.0.1", "--folder", "federation/server", "--clients", ",".join(SITES)]
    joins = [["join", f"https://127.0.0.1:{port}", "--kit", site, "--id", site, "--data", "two:clients", "--allow",
              "networks:Awkward"] for site in SITES]  # fmt: skip
    with commands(tmp_path, *joins) as clients:
        with commands(there, serve) as (first,):
            first.line("round 8/")
            first._process.terminate()
            first._process.wait(100)
            assert first._process.returncode in (130, -signal.SIGTERM)
        assert 8 <= json.loads((only(there / "runs") / "state.json").read_text())["rounds_done"] < 40
        words = packed[2].split()
        subprocess.run(["tar", "-C", there, packed[1], tmp_path / "copy.tar.gz", *words], check=True)
        shutil.rmtree(there / "federation")
        shutil.rmtree(there / "runs")
        subprocess.run(["tar", "-C", there, "-xzf", tmp_path / "copy.tar.gz"], check=True)
        with commands(there, serve) as (second,):
            said = second.end()
        for client in clients:
            assert "over: " in client.end()
    run = only(there / "runs")
    assert json.loads((run / "state.json").read_text())["state"] == "finished"
    monkeypatch.syspath_prepend(tmp_path)
    sha256, *_ = simulated(tmp_path, "job.toml", "simulated", "simulation.executor=serial")
    assert f"sha256: {sha256}" in said

"""The page on operations, followed: a run is stopped, packed, removed, unpacked and goes on to the same end."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from commands import commands, only, simulated
from projects import invited, write_job

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
SITES = ("c0", "c1")


@pytest.mark.slow
def test_a_run_that_was_stopped_and_packed_is_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = re.search(r"^tar -C /var/lib/roundelay (-czf) \S+ (.*)$", PAGE, flags=re.M)
    assert packed is not None
    there = tmp_path / "server"
    there.mkdir()
    for folder in (there, tmp_path):
        write_job(folder, num_rounds=40)
    serve, joins = invited(there, SITES, "kits")
    (there / "federation" / "sites").rename(tmp_path / "kits")
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

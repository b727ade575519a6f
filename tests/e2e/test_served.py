"""A job ends in the same bits wherever its clients are: in this process, in workers, on devices that join or listen."""

from pathlib import Path

import pytest
from commands import on_workers, serve, served, simulated
from scripts import BODY, write

JOB = """
num_rounds = 2
seed = 3
algorithm = "scaffold"
data = "ours:examples"
[partition]
use = "iid"
num_clients = 3
[model]
use = "mlp"
num_features = 12
hidden = [16]
num_classes = 3
[learner]
lr = 0.1
batch_size = 20
[evaluation]
clients_every = 2
"""
OURS = """
import roundelay as rd
import torch

def examples():
    inputs = torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    labels = inputs[:, :3].argmax(1)
    return rd.Data((inputs[:300], labels[:300]), (inputs[300:], labels[300:]))
"""


def test_a_job_ends_in_the_same_bits_in_this_process_in_workers_on_devices_that_join_and_that_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "ours.py").write_text(OURS)
    sites = [["--id", f"{number}", "--data", "ours:examples", "--shard", f"{number}/3"] for number in range(3)]
    serial = simulated(tmp_path, "job.toml", "serial", "simulation.executor=serial")
    assert simulated(tmp_path, "job.toml", "processes", "simulation.num_workers=2") == serial
    joined = served(tmp_path, serve("job.toml", "joined"), "joined", sites)
    assert joined == serial
    assert on_workers(tmp_path, "job.toml", "listening", sites) == serial


ENCODED = """
[uplink]
codec = {use = "top_k", fraction = 0.05}
feedback = "error"
[downlink]
codec = {use = "int8"}
"""


def test_updates_that_travel_encoded_end_in_the_bits_of_the_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours.py").write_text(OURS)
    (tmp_path / "job.toml").write_text(JOB + ENCODED)
    (tmp_path / "scripts.toml").write_text(SCRIPT_JOB + ENCODED)
    write(tmp_path, BODY)
    sites = [["--id", f"{number}", "--data", "ours:examples", "--shard", f"{number}/3"] for number in range(3)]
    serial = simulated(tmp_path, "job.toml", "serial", "simulation.executor=serial")
    assert served(tmp_path, serve("job.toml", "joined"), "joined", sites) == serial
    scripts = [["--id", f"site-{number}", "--script", "client.py"] for number in (1, 2)]
    simulation = simulated(tmp_path, "scripts.toml", "simulated", "simulation.executor=threads")
    assert served(tmp_path, serve("scripts.toml", "scripted"), "scripted", scripts) == simulation


def test_a_client_alone_ends_in_the_bits_of_its_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "ours.py").write_text(OURS)
    alone = "partition.num_clients=1"
    site = ["--id", "0", "--data", "ours:examples", "--shard", "0/1"]
    simulation = simulated(tmp_path, "job.toml", "serial", "simulation.executor=serial", alone)
    assert served(tmp_path, serve("job.toml", "joined", alone), "joined", [site]) == simulation


SCRIPT_JOB = """
num_rounds = 2
seed = 7
model = "networks:Awkward"
script = "client.py"
[simulation]
num_clients = 2
"""


def test_scripts_that_join_or_listen_end_in_the_bits_of_those_that_are_simulated(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(SCRIPT_JOB)
    write(tmp_path, BODY)
    sites = [["--id", f"site-{number}", "--script", "client.py"] for number in (1, 2)]
    simulation = simulated(tmp_path, "job.toml", "simulated", "simulation.executor=threads")
    assert served(tmp_path, serve("job.toml", "joined"), "joined", sites) == simulation
    alone = simulated(tmp_path, "job.toml", "alone", "simulation.executor=threads", "simulation.num_clients=1")
    assert alone != simulation
    assert on_workers(tmp_path, "job.toml", "listening", sites[:1]) == alone

"""A small job of real devices as files: its data beside it, and a kit for each of its sites."""

import time
from collections.abc import Sequence
from pathlib import Path

from loopback import free_port

from roundelay.deployment.trust.kits import provision

JOB = """
num_rounds = {num_rounds}
seed = 7
model = "networks:Awkward"
data = "parts:clients"
algorithm = "{algorithm}"
[learner]
lr = 0.1
batch_size = 4
[deployment]
heartbeat_s = 2.0
{tables}
"""
PARTS = """
from networks import federated

def clients():
    return federated({num_clients})
"""
BRINGS = ("--data", "parts:clients", "--allow", "networks:Awkward")
"""What each client's command says of its data."""


def write_job(
    folder: Path, num_rounds: int, num_clients: int = 2, *, algorithm: str = "fedavg", tables: str = ""
) -> None:
    """``tables`` are what else the job says."""
    (folder / "job.toml").write_text(JOB.format(num_rounds=num_rounds, algorithm=algorithm, tables=tables))
    (folder / "parts.py").write_text(PARTS.format(num_clients=num_clients))


def invited(folder: Path, sites: Sequence[str], kits: str) -> tuple[list[str], list[list[str]]]:
    """Make a federation in ``folder``; return the words that serve it, and those of each site, which has its kit in
    ``kits`` below where it types them.
    """
    port = free_port()
    provision(folder / "federation", ["127.0.0.1"], sites, now_s=time.time(), port=port)
    serve = ["serve", "job.toml", "--host", "127.0.0.1", "--folder", "federation/server", "--clients", ",".join(sites)]
    join = ["join", f"https://127.0.0.1:{port}", *BRINGS]
    return serve, [[*join, "--kit", f"{kits}/{site}", "--id", site] for site in sites]

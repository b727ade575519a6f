"""Scripts as a user writes them, as text, and jobs whose clients they are."""

import textwrap
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

from networks import Awkward

import roundelay as rd
from roundelay.hosting.forkserver import context
from roundelay.simulation.executors.scripts import PRELOAD

HEAD = """
import os, sys
import torch
from torch.utils.data import DataLoader
import roundelay.client as fl
from networks import Awkward, Plain, examples

def train(net, optimizer, data, epochs=1, **settings):
    net.train()
    losses = []
    for _ in range(epochs):
        for inputs, targets in DataLoader(data, batch_size=4, shuffle=True, **settings):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)

def note(name, text):
    with open(name, "a") as file:
        file.write(str(text) + "\\n")

"""
"""Before every script: the ordinary training loop, with dropout's draws and the shuffles of a DataLoader."""

BEGIN = """
fl.init()
number = fl.get_config()["partition"]["number"]
data = examples(10 + 2 * number, seed=number)
net = Awkward()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
"""

TURN = """
model = fl.receive()
net.load_state_dict(model.params)
loss = train(net, optimizer, data)
fl.send(fl.FLModel(params=net.state_dict(), metrics={"loss": loss}, num_examples=len(data)))
"""

BODY = BEGIN + "while fl.is_running():\n" + textwrap.indent(TURN, "    ")
"""What ``HEAD`` goes before: five lines of the framework, and a user's own."""


def write(folder: Path, text: str, name: str = "client.py", head: str = HEAD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(head + textwrap.dedent(text))
    return path


def script_job(folder: Path, text: str, simulation: rd.Simulation, **changes: object) -> rd.Job:
    """A job whose script is HEAD and ``text``; each has a run folder of its own, "run-1" and so on, in ``folder``."""
    count = len(list(folder.glob("run-*"))) + 1
    (folder / f"run-{count}").mkdir(parents=True)
    settings: dict[str, object] = {
        "model": Awkward,
        "script": write(folder / f"script-{count}", text),
        "num_rounds": 2,
        "seed": 7,
        "simulation": simulation,
        "tracking": rd.Tracking(root=str(folder / f"run-{count}"), name="run", checkpoint_every_s=0),
    }
    return rd.Job(**{**settings, **changes})  # type: ignore[arg-type]


def threads(num_clients: int = 2, **changes: object) -> rd.Simulation:
    return rd.Simulation(executor="threads", num_clients=num_clients, **changes)  # type: ignore[arg-type]


def processes(num_clients: int = 2, **changes: object) -> rd.Simulation:
    context(PRELOAD)
    forkserver.ensure_running()  # before a task's time begins
    return rd.Simulation(num_clients=num_clients, **changes)  # type: ignore[arg-type]


def timeless(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def outcome(history: rd.History) -> tuple[str, list[dict[str, object]], list[dict[str, object]]]:
    """What a run comes to, real time left out."""
    return history.sha256, timeless(history.rows), history.clients()


WAIT_S = 20.0  # for what happens at once, on a machine that has other things to do


def in_mid_training(line: str, only: str = "number == 1 and model.current_round == 1") -> str:
    """The usual script; in round 2 the second client does something else as well."""
    return BODY.replace("    loss = train", f"    if {only}:\n        {line}\n    loss = train")


def reasons(history: rd.History) -> dict[tuple[int, str], str]:
    return {(row["round"], row["client"]): row["reason"] for row in history.clients() if "reason" in row}


def check_lost(history: rd.History, *words: str) -> None:
    """The contract: the second client is lost in the second round, with the reason; nobody else, and in no other."""
    assert [(row["admitted"], row["lost"]) for row in history.rows] == [(2, 0), (1, 1), (2, 0)]
    told = reasons(history)
    assert set(told) == {(2, "site-2")}
    for word in ("client 'site-2'", *words):
        assert word in told[2, "site-2"]


HANGS = {
    "in silence": "import threading; threading.Event().wait()",
    "talking all the while": "import threading\n        while not threading.Event().wait(0.05): fl.log('x', 1.0)",
}

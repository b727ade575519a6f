"""What docs/scripts.md says that a script's mistake reads like is what it reads like."""

import logging
import re
from pathlib import Path

import pytest
from forked import Forked
from torch import nn

import roundelay as rd
from roundelay.errors import RoundelayError

PAGE = Path(__file__).parents[2] / "docs" / "scripts.md"

SCRIPT = """
import sys
import torch
from torch import nn
import roundelay.client as fl

mistake = sys.argv[1]
if mistake == "no init":
    sys.exit(0)
net = nn.Sequential()
net.layers = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
fl.init()
if mistake == "init twice":
    fl.init()
if mistake == "foreign patch":
    fl.patch(torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1))
while fl.is_running():
    params = dict(fl.receive().params)
    if mistake == "no send":
        continue
    if mistake == "end":
        sys.exit(0)
    if mistake == "another model":
        params["layers.0.weight"] = torch.zeros(3, 3)
    if mistake == "missing":
        del params["layers.0.weight"]
    if mistake == "nan":
        params = {name: value * float("nan") for name, value in params.items() if value.is_floating_point()} | {
            "layers.1.num_batches_tracked": params["layers.1.num_batches_tracked"]
        }
    if mistake == "state":
        fl.state["note"] = "text"
    num_examples = 3 if mistake == "mixed" and fl.get_site_name() == "site-1" else None
    metrics = {"a": "good"} if mistake == "metric" else {}
    fl.send(fl.FLModel(None if mistake == "no params" else params, num_examples=num_examples, metrics=metrics))
    if mistake == "send twice":
        fl.send(fl.FLModel(params))
"""

MISTAKES = {
    "it never called `init`": "no init",
    "`init` twice": "init twice",
    "no `send`": "no send",
    "`send` twice": "send twice",
    "it ended in the middle": "end",
    "no `params` from training": "no params",
    "another model": "another model",
    "NaN": "nan",
    "a metric that is no number": "metric",
    "text in the state": "state",
    "SCAFFOLD without `patch`": "none",
    "`patch` of another model's optimizer": "foreign patch",
    "`num_examples` from some only": "mixed",
    "no number of clients": "none",
    '`executor="serial"`': "none",
}
"""What the page calls a mistake -> the argument by which the script above makes it."""

ELSEWHERE = {"you ran the script by hand", "it hangs, in processes"}
"""The first is tested below; the other takes as long as a hung script is waited for."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def shown_on_the_page() -> dict[str, str]:
    """Return the rows of the page's table of mistakes: what went wrong -> what is read."""
    table = PAGE.read_text().split("| what went wrong | what you read |\n|---|---|\n")[1].split("\n\n")[0]
    rows = (line.strip("| ").split(" | ", 1) for line in table.splitlines())
    return dict(rows)


def assert_read(row: str, shown: str) -> None:
    """Check every quoted piece of what the page says; an ellipsis stands for anything."""
    quoted = re.findall(r"`([^`]+)`", shown_on_the_page()[row])
    pieces = [piece.strip() for text in quoted[:1] for piece in text.split("...") if piece.strip(" ;,)")]
    assert pieces
    for piece in pieces:
        assert piece in shown, f"the page promises {piece!r}"


def what_is_read(mistake: str, row: str, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    (folder / "client.py").write_text(SCRIPT)
    job = rd.Job(
        model=Net,
        script=folder / "client.py",
        script_args=[mistake],
        num_rounds=2,  # a script that fails after its answer is heard of with its next task
        algorithm=rd.Scaffold() if "SCAFFOLD" in row else rd.FedAvg(),
        tracking=rd.Tracking(root=str(folder / "runs")),
    )
    simulation = rd.Simulation(
        executor="serial" if "serial" in row else "processes", num_clients=None if "number of clients" in row else 2
    )
    with caplog.at_level(logging.WARNING):
        try:
            history = job.run(simulation)
        except RoundelayError as error:
            return str(error)
    return "\n".join([*(report.get("reason", "") for report in history.clients()), *caplog.messages])


@pytest.mark.parametrize("row", MISTAKES)
def test_a_mistake_reads_as_the_page_says(row: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_read(row, what_is_read(MISTAKES[row], row, tmp_path, caplog))


def test_a_tensor_that_is_missing_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown = what_is_read("missing", "another model", tmp_path, caplog)
    assert "tensor 'layers.0.weight' of shape (16, 2) is missing" in shown


def test_a_script_that_is_run_by_hand_says_how_to_start_it(tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(SCRIPT)
    with Forked(tmp_path, ["client.py", "none"]) as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert_read("you ran the script by hand", said)


def test_the_page_lists_no_other_mistake() -> None:
    assert set(shown_on_the_page()) == set(MISTAKES) | ELSEWHERE

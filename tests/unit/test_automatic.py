"""``executor = "auto"``: the rule, case by case, and what of a job it looks at."""

import json
import logging
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import Awkward, Plain, small_job
from torch import Tensor, nn
from typer.testing import CliRunner

import roundelay as rd
from roundelay import cli
from roundelay.chosen import asked
from roundelay.errors import ConfigError
from roundelay.federation import Plan
from roundelay.simulation.executors import automatic
from roundelay.simulation.executors.automatic import Facts, choose, examine
from roundelay.trainer import Trainer
from roundelay.workflows.own import as_workflow

TINY = Facts(False, "cpu", 200, 200, False, None, 610, 15_000, 4_000.0)
"""The smallest of the benchmarks: logistic regression, a batch of 10."""

CASES = {
    "a tiny model": (TINY, "vectorized", "4,000 floating-point"),
    "scripts, whatever else": (replace(TINY, scripts=True), "processes", "scripts"),
    "a layer that cannot be stacked": (replace(TINY, alone="layer 'lstm' (LSTM) has no"), "processes", "LSTM"),
    "one client at a time": (replace(TINY, at_once=1, together=1), "serial", "one client"),
    "one that cannot be stacked either": (replace(TINY, at_once=1, together=1, alone="no"), "serial", "one client"),
    "one at a time, but all measure": (replace(TINY, at_once=1, together=1, measures=True), "processes", "1 clients"),
    "asked one by one": (replace(TINY, together=1), "processes", "1 clients are asked together"),
    "just too few": (replace(TINY, together=15), "processes", "15 clients are asked together"),
    "just enough": (replace(TINY, together=16), "vectorized", ""),
    "a block of too few": (replace(TINY, rows=15), "processes", "15 clients fit into a block"),
    "a block of just enough": (replace(TINY, rows=16), "vectorized", ""),
    "as many parameters as pays": (replace(TINY, num_params=2**16), "vectorized", "65,536"),
    "one more": (replace(TINY, num_params=2**16 + 1, flops_a_call=math.inf), "processes", "65,537 parameters"),
    "as much arithmetic as pays": (replace(TINY, flops_a_call=1e5), "vectorized", "100,000"),
    "more": (replace(TINY, flops_a_call=814_650.0), "processes", "814,650"),
    "a large model on an accelerator": (
        replace(TINY, device="cuda", num_params=10**6, flops_a_call=math.inf, rows=40), "vectorized", "40 clients fit"
    ),
    "one too large for it": (replace(TINY, device="cuda", num_params=10**8, rows=1), "processes", "1 clients fit"),
    "an LSTM on an accelerator": (replace(TINY, device="cuda", alone="LSTM"), "processes", "LSTM"),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "executor", "said"), CASES.values(), ids=CASES)
def test_the_rule(facts: Facts, executor: str, said: str) -> None:
    choice = choose(facts)
    assert choice.executor == executor
    assert said in choice.reason


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(7, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x[:, None])[0][:, -1])
        return out


def facts(job: rd.Job, block_bytes: int = 2**20) -> Facts:
    trainer = Trainer(job.prepared().work)
    return examine(trainer, device="cpu", block_bytes=block_bytes, at_once=6, together=6,
                   own_settings=job.client_config is not None, measures=False)  # fmt: skip


def test_what_is_counted_of_a_model() -> None:
    """Plain is 7 x 13 and 13 x 3 products, which are two calls of torch, with a transposition before each, and one
    more for the ReLU between.
    """
    for size, expected in ((1, 1), (4, 4), (0, 10)):  # the first client has 10 examples
        found = facts(small_job(model=Plain, learner=rd.LocalSGD(lr=0.1, batch_size=size)))
        assert found.num_params == 7 * 13 + 13 + 13 * 3 + 3
        assert found.flops_a_call == pytest.approx(2 * expected * (7 * 13 + 13 * 3) / 5)
        assert found.alone is None
    once, twice = (facts(small_job(model=Plain), size).rows for size in (2**20, 2**21))
    assert once > 16
    assert twice // once == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Recurrent}, r"layer 'lstm' \(LSTM\)"),
        ({"model": Plain, "learner": lambda model, data, task: None}, "FunctionLearner"),
        ({"model": Plain, "client_config": lambda round, client: {"lr": 0.1}}, "client_config"),
    ],
    ids=["LSTM", "a function", "settings of tasks' own"],
)
def test_what_keeps_clients_from_training_side_by_side(changes: dict[str, object], said: str) -> None:
    found = facts(small_job(**changes))
    assert found.alone is not None
    assert re.search(said, found.alone)
    assert choose(found).executor == "processes"


class Counting(nn.Module):
    """Draws when it trains, and counts how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.calls = nn.Linear(7, 3), nn.Dropout(0.5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.drop(self.layer(x))
        return out


def test_looking_at_a_job_changes_nothing_of_it() -> None:
    """A batch is looked at as in training: a product and its transposition, and the dropout's draws and products."""
    torch.manual_seed(3)
    job = small_job(model=Counting)
    trainer = Trainer(job.prepared().work)
    params, before = trainer.bound.params().clone(), torch.get_rng_state()
    found = examine(trainer, device="cpu", block_bytes=2**20, at_once=6, together=6,
                    own_settings=False, measures=False)  # fmt: skip
    assert found.flops_a_call < 2 * 4 * 7 * 3 / 2
    assert torch.equal(trainer.bound.params(), params)
    assert all(p.grad is None for p in trainer.bound.parameters)
    assert torch.equal(torch.get_rng_state(), before)
    assert automatic._flops_a_call(trainer) == found.flops_a_call
    assert trainer.bound.module.calls == 1  # by what works out how many fit into a block


class Own:
    async def run(self, fed: rd.Server) -> None: ...


@pytest.mark.parametrize(
    ("workflow", "at_once", "together"),
    [
        (rd.Rounds(), 20, 20),
        (rd.Rounds(goal=5), 20, 20),
        (rd.CrossSite(then=rd.Rounds()), 20, 20),
        (rd.Cyclic(), 1, 1),
        (rd.Buffered(buffer_size=3), 20, 1),
        (rd.Buffered(buffer_size=3, concurrency=8), 8, 1),
        (rd.Hierarchical(edges={"a": ["00", "01"], "b": [f"{i:02d}" for i in range(2, 40)]}), 20, 1),
        (Own(), 20, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_many_a_workflow_asks(workflow: object, at_once: int, together: int) -> None:
    clients = [f"{number:02d}" for number in range(40)]
    assert asked(as_workflow(workflow), Plan(num_rounds=1, clients_per_round=0.5), clients) == (at_once, together)


def small_models(**changes: object) -> rd.Job:
    parts = {f"c{i:02d}": (torch.randn(6, 7), torch.randint(0, 3, (6,))) for i in range(20)}
    settings = {"model": Plain, "data": rd.FederatedData.from_datasets(parts), "clients_per_round": 16,
                "simulation": rd.Simulation("auto"), "num_rounds": 2}  # fmt: skip
    return small_job(**{**settings, **changes})


def test_a_run_logs_notes_and_takes_what_was_chosen(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    job = small_models(tracking=rd.Tracking(str(tmp_path), "it"))
    with caplog.at_level(logging.INFO, "roundelay"):
        history = job.run()
    (said,) = [record.message for record in caplog.records if record.name == "roundelay.chosen"]
    assert said.startswith("executor: vectorized, since ")
    noted = json.loads((tmp_path / "it" / "executor.json").read_text())
    assert noted == history.records["executor"] == {"executor": "vectorized", "reason": said.partition("since ")[2]}
    assert history.sha256 == replace(job, simulation=rd.Simulation("vectorized"), tracking=None).run().sha256
    assert history.sha256 != replace(job, simulation=rd.Simulation("serial"), tracking=None).run().sha256


def test_a_resumed_run_takes_what_the_first_part_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rule has become another one since."""
    job = small_models(num_rounds=4, tracking=rd.Tracking(str(tmp_path), "it", checkpoint_every_s=0))
    whole = replace(job, simulation=rd.Simulation("vectorized"), tracking=None).run().sha256
    for _ in job.rounds():
        break
    monkeypatch.setattr(automatic, "MAX_PARAMS", 1)
    assert replace(job, tracking=None).start().job.simulation.executor == "processes"
    resumed = job.start(tmp_path / "it")
    assert resumed.standing.records["executor"] == json.loads((tmp_path / "it" / "executor.json").read_text())
    for _ in resumed:
        pass
    assert resumed.history().sha256 == whole


def test_a_note_that_cannot_be_read_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    job = small_models(num_rounds=3, tracking=rd.Tracking(str(tmp_path), "it", checkpoint_every_s=0))
    for _ in job.rounds():
        break
    (tmp_path / "it" / "executor.json").write_text('{"executor": "vectorized"}')
    with pytest.raises(ConfigError, match=r"executor\.json.*simulation\.executor=processes"):
        job.start(tmp_path / "it")


def test_where_the_job_names_its_executor_nothing_is_noted() -> None:
    history = small_job(model=Awkward, num_rounds=1).run()
    assert "executor" not in history.records


def test_the_command_line_names_the_executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text('num_rounds = 1\nmodel = "networks:Plain"\ndata = "networks:federated"\n'
                                "clients_per_round = 1\n[learner]\nlr = 0.1\n[tracking]\nname = 'it'\n")  # fmt: skip
    result = CliRunner().invoke(cli.app, ["run", "job.toml", "--executor", "auto"], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(Path("runs/it/executor.json").read_text())["executor"] == "serial"
    assert 'executor = "auto"' in Path("runs/it/job.toml").read_text()
    result = CliRunner().invoke(cli.app, ["run", "job.toml", "--executor", "fibres"])
    assert "known are processes, serial, vectorized, ray, threads, auto" in str(result.exception)

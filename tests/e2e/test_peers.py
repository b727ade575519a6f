"""Roundelay beside other frameworks: the same model on all of them, and a table of what each takes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarked import BENCHMARKS, script
from torch import nn

compare = script("peers/compare.py")
runner = script("peers/runner.py")
ROOT = BENCHMARKS.parent
VENVS = ROOT / ".venv-peers"


def test_a_peer_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    assert list(compare.commands(tmp_path, "tiny")) == ["floor", "roundelay"]
    torchrun = tmp_path / "pfl" / "bin" / "torchrun"
    torchrun.parent.mkdir(parents=True)
    torchrun.touch()
    assert list(compare.commands(tmp_path, "tiny")) == ["floor", "roundelay", "pfl"]


def test_pins_are_those_of_the_project_and_exact() -> None:
    ours = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for peer in ("flower", "pfl"):
        lines = (BENCHMARKS / "peers" / f"requirements-{peer}.txt").read_text().splitlines()
        pins = dict(line.split("==") for line in lines if not line.startswith("#"))
        assert {name: pins[name] for name in ("torch", "numpy")} == {name: ours[name] for name in ("torch", "numpy")}


def test_a_run_without_draws_has_clients_of_one_batch_that_all_take_part() -> None:
    for name in compare.CHECKED:
        workload = runner.resolved(name, True)
        assert workload.cohort == workload.num_clients == runner.CHECKED
        assert workload.batch_size == workload.examples_per_client
        assert runner.resolved(name, False) is compare.WORKLOADS[name]


def test_a_peers_epoch_is_plain_sgd_on_every_example_once() -> None:
    workload = replace(runner.resolved("tiny", False), num_clients=3)
    rows = runner.rows_of(2, workload)
    assert sorted(rows.tolist()) == list(range(40, 60))
    inputs, targets = workload.make_data()
    model, by_hand = runner.first_model(workload), runner.first_model(workload)
    runner.train(model, inputs[rows], targets[rows], workload.batch_size)
    for at in (slice(0, 10), slice(10, 20)):
        loss = torch.nn.functional.cross_entropy(by_hand(inputs[rows[at]]), targets[rows[at]])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        for param, gradient in zip(by_hand.parameters(), gradients, strict=True):
            param.data -= 0.1 * gradient
    for param, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(param, expected)


def test_roundelay_arrives_at_the_model_of_a_plain_loop_and_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--executor", "vectorized", "tiny", "--rounds", "3", "--folder", str(tmp_path), "--check"]
    monkeypatch.setattr("sys.argv", ["run_roundelay.py", *asked])
    script("peers/run_roundelay.py").main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(told["ended"]) == 3
    assert told["ended"] == sorted(told["ended"])
    workload = runner.resolved("tiny", True)
    model, (inputs, targets) = runner.first_model(workload), workload.make_data()
    params = first = flat(model)
    for _ in range(3):
        ends = []
        for x, y in zip(inputs.split(workload.batch_size), targets.split(workload.batch_size), strict=True):
            nn.utils.vector_to_parameters(params.clone(), model.parameters())  # views
            runner.train(model, x, y, workload.batch_size)
            ends.append(flat(model))
        params = torch.stack(ends).mean(dim=0)
    torch.testing.assert_close(torch.load(tmp_path / "run_roundelay.pt"), params)
    assert (params - first).norm() > 0.1


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_what_a_run_took_is_counted_without_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = [110.0, 112.0, 113.0, 114.0, 116.0]  # started at 100: a first round of 10 s, of which 9 are the start
    told = {"ended": ended, "versions": {"torch": "2"}}
    monkeypatch.setattr(compare, "run", lambda command, rounds, folder: (told, 100.0, 7))
    measured = compare.Measured()
    compare.measure(measured, ["x"], 3, tmp_path)
    assert measured.round_s == [1.0, 1.0, 2.0]
    assert measured.start_s == [9.0]
    assert measured.peak_bytes == [7]


def test_a_script_that_fails_or_tells_nothing_is_named_with_what_it_said(tmp_path: Path) -> None:
    for ending in ("raise SystemExit(3)", "pass"):
        command = [sys.executable, "-c", f"print('no such workload'); {ending}"]
        with pytest.raises(compare.Failed, match=r"(?s)-c print.*no such workload"):
            compare.run(command, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not VENVS.is_dir(), reason="`make bench-peers` has not made the peers' environments")
def test_every_peer_arrives_at_the_floors_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.check(["tiny"], VENVS, tmp_path)
    shown = capsys.readouterr().out
    for framework in ("roundelay", "flower", "pfl"):
        assert f"tiny: {framework} is" in shown

"""The examples on a modelled cell, as their commands say, on a network of a few thousand parameters for two rounds."""

import re
from pathlib import Path

import pytest
from forked import ran

from roundelay.config import load

EXAMPLES = Path(__file__).parents[2] / "examples" / "wireless"
TINY = ("--set", "num_rounds=2", "--set", "model.channels=[2,2]", "--set", "learner.batch_size=100")


def shown(script: str, out: Path, *arguments: str) -> str:
    return ran(out, str(EXAMPLES / script), "--out", str(out), "--target", "0.01", *TINY, *arguments)


def speedups(said: str, row: str) -> list[float]:
    """How many times shorter a round was than the first setting's, in each table."""
    return [float(line.split("|")[4]) for line in said.splitlines() if line.startswith(f"| {row}")]


def test_codecs_are_trained_once_and_put_on_three_clocks(tmp_path: Path) -> None:
    settings = ("--seeds", "1", "--only", "fp32", "eden-1bit")
    said = shown("codec_sweep.py", tmp_path, *settings)
    ratios = re.findall(r"transmit / compute (\S+)\. fp32", said)
    assert ratios == ["0.1", "1", "10"]
    gains = speedups(said, "eden-1bit")
    assert 1 <= gains[0] <= gains[1] <= gains[2]
    bounds = [float(text) for text in re.findall(r"beyond it\) (\S+)", said)]
    assert all(gain <= bound + 0.006 for gain, bound in zip(gains, bounds, strict=True)), (gains, bounds)
    assert len(re.findall(r"^\| alone", said, re.MULTILINE)) == 3
    assert (tmp_path / "told-10" / "table.md").exists()
    again = shown("codec_sweep.py", tmp_path, *settings)
    assert "trained 0 runs" in again
    assert speedups(again, "eden-1bit") == gains


@pytest.mark.slow
@pytest.mark.parametrize(("script", "settings"), [
    ("schedules.py", ("synchronous", "deadline", "fedbuff")), ("events.py", ("always", "delta-1"))
])  # fmt: skip
def test_schedules_and_events_are_told_of(script: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    said = shown(script, tmp_path, "--seeds", "1", "--only", *settings)
    assert all(speedups(said, setting) for setting in settings)


@pytest.mark.parametrize("file", ["job.toml", "schedules.toml"])
def test_the_settings_are_of_one_cell(file: str) -> None:
    job, other = load(EXAMPLES / file), load(EXAMPLES / "job.toml")
    assert job.simulation.network is not None
    assert other.simulation.network is not None
    assert job.simulation.network.cell == other.simulation.network.cell
    assert job.partition.num_clients == 20  # type: ignore[union-attr]

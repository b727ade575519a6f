"""A server that folds a large model holds two copies of it: the one that was sent, and the running mean."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import Plain
from torch import nn

from roundelay.layout import Layout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL, COPIES = 80 * 10**6, 2.5

FURTHER_MEAN = """
from roundelay import fold
add, kept = fold.RunningMean.add, []
def adding(self, value, weight):
    add(self, value, weight)
    kept[:] = [self.mean.clone()]
fold.RunningMean.add = adding
"""
KEPT_MODULE = """
from roundelay.trainer import Trainer
Trainer.rest = lambda self: None
"""


def copies(way: str, num_bytes: int, planted: str = "") -> float:
    code = f"{planted}\nimport json, large_models\nprint(json.dumps(large_models.measured({way!r}, {num_bytes})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=280,
                           check=False)  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    own, _ = json.loads(shown.stdout.splitlines()[-1])
    return float(own)


@pytest.mark.parametrize("way", [pytest.param("direct", marks=pytest.mark.slow), "processes"])
def test_a_fold_takes_no_more_than_two_copies_and_a_half(way: str) -> None:
    assert 1.5 < copies(way, SMALL) <= COPIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "planted"), [("direct", FURTHER_MEAN), ("processes", FURTHER_MEAN), ("processes", KEPT_MODULE)]
)
def test_a_copy_too_many_shows(way: str, planted: str) -> None:
    assert copies(way, SMALL, planted) > COPIES


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "processes"])
def test_a_gibibyte_takes_no_more_either(way: str) -> None:
    assert copies(way, 2**30) <= COPIES


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = Plain(), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.net(x))


@pytest.mark.parametrize("keep_local", [(), ("net.second.*",)])
def test_parameters_that_were_put_away_come_back_with_the_next_ones_and_nothing_else_is_lost(
    keep_local: tuple[str, ...],
) -> None:
    module = Buffered()
    layout = Layout.of(module, keep_local)
    bound = layout.bind(module)
    inputs, expected = torch.randn(4, 7), {k: v.clone() for k, v in module.state_dict().items()}
    params = bound.params().clone()
    bound.put_away()
    assert all(
        p.untyped_storage().nbytes() <= 8 for p in bound.parameters[: len(layout.specs) - 5 - len(keep_local) * 2]
    )
    assert [tuple(p.shape) for p in module.parameters()] == [tuple(p.shape) for p in Buffered().parameters()]
    bound.load_params(params)
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.data_ptr() % 64 == 0
    module.eval()(inputs).sum().backward()
    with torch.no_grad():
        module.net.first.weight.add_(1.0)
    assert torch.equal(bound.params()[: 7 * 13], expected["net.first.weight"].flatten() + 1.0)

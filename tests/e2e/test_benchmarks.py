"""A benchmark that starts a server and devices still does, and tells what it is there to tell."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "deployment.py"


@pytest.mark.slow
def test_serving_is_measured_beside_its_floor(tmp_path: Path) -> None:
    asked = [sys.executable, str(BENCHMARK), "--repeats", "1", "--rounds", "2", "--bytes", "248024", "--folder", "."]
    shown = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for what in ("a round of the floor", "floor / round", "own work", "to ready", "growth"):
        assert what in shown.stdout
    assert list(tmp_path.iterdir()) == []

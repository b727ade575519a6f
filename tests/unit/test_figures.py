"""Figures reach the terminal from wherever the test ran, of failed tests too."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
INNER = """
import pytest

@pytest.mark.parametrize("one", [1, 2])
def test_one(figures, one):
    figures("requests", 1000 * one)
    figures("p99", 12.5, "ms")

def test_fails(figures, chaos_seed):
    figures("seen", chaos_seed)
    assert False
"""


def test_figures_are_printed_though_the_tests_ran_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {TESTS}\n")
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, env={"ROUNDELAY_CHAOS_SEED": "7", "PATH": ""},
    ).stdout  # fmt: skip
    figures = [
        line for line in said[said.index("= figures =") :].splitlines()[1:] if not line.startswith(("=", "FAILED"))
    ]
    assert figures[:9] == [
        "test_inner.py::test_fails", "    seed: 7", "    seen: 7",
        "test_inner.py::test_one[1]", "    requests: 1,000", "    p99: 12.5 ms",
        "test_inner.py::test_one[2]", "    requests: 2,000", "    p99: 12.5 ms",
    ]  # fmt: skip

"""A served run whose processes are asked to end: they end in order, and the same commands go on from there."""

import os
import subprocess
import sys
from pathlib import Path

import roundelay


def test_what_is_asked_to_end_does_so_in_order_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(roundelay.__file__).parents[1]), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "ended", str(tmp_path / "run")], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path}, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

"""What the pages on codecs show is run; the scripts that measure them still do."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from forked import ran

from roundelay.config import parts_of
from roundelay.stages import codecs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "codecs.md").read_text()


def test_the_page_runs_and_names_every_codec(capsys: pytest.CaptureFixture[str]) -> None:
    code, of_a_job = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    shown: dict[str, Any] = {}
    exec(of_a_job, shown)
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert parts_of(tomllib.loads(table))["uplink"] == shown["job"].uplink
    assert capsys.readouterr().out == "5080 5080 True\n"
    rows = [name.replace("_", "") for name in re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)]
    rows.remove("use")  # the heading
    assert sorted(rows) == sorted(name.lower() for name in codecs.__all__)


def test_errors_are_measured_beside_their_closed_forms(tmp_path: Path) -> None:
    script = ROOT / "examples" / "reproductions" / "codec_error.py"
    said = ran(tmp_path, str(script), "--values", "2048", "--draws", "20")
    ratios = [float(line.split("│")[-2]) for line in said.splitlines() if line.startswith("│")]
    assert len(ratios) == 30
    assert all(0.7 < ratio < 1.4 for ratio in ratios)


@pytest.mark.slow
def test_the_cost_of_codecs_is_measured() -> None:
    asked = [sys.executable, str(ROOT / "benchmarks" / "codecs.py"), "--values", "100000", "--repeats", "1"]
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=200, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "MB/s of both" in shown.stdout

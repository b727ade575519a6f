"""What the page on scale says of a million clients runs as it is shown, and so does its benchmark."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import ran

from roundelay import config

ROOT = Path(__file__).parents[2]
SECTION = "## A million clients"


def test_the_section_on_a_million_clients_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "scale.md").read_text().split(f"\n{SECTION}\n")[1].split("\n## ")[0]
    (script,), (table,) = (re.findall(rf"```{kind}\n(.*?)```", page, flags=re.S) for kind in ("python", "toml"))
    (tmp_path / "my_phones.py").write_text(script)
    rows = [line.split(maxsplit=2) for line in ran(tmp_path, "my_phones.py").splitlines()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1][1]) > 0.7
    asked = [re.findall(r"'(\d{6})'", row[2]) for row in rows]
    assert all(len(clients) == 3 for clients in asked)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "job.toml").write_text(
        "num_rounds = 1\nclients_per_round = 2\n[model]\nuse = 'logistic'\nnum_features = 4\nnum_classes = 2\n"
        f"[learner]\nuse = 'local_sgd'\nlr = 0.5\n{table}"
    )
    assert len(config.load(tmp_path / "job.toml").prepared().work.data.clients) == 1_000_000


@pytest.mark.slow
def test_populations_are_measured_side_by_side(tmp_path: Path) -> None:
    asked = [sys.executable, str(ROOT / "benchmarks" / "population.py"), "compare", "serial",
             "--repeats", "1", "--rounds", "3", "--few", "200", "--many", "2000"]  # fmt: skip
    shown = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert re.findall(r"│ serial +│ +(200|2,000) ", shown.stdout) == ["200", "2,000"]
    assert list(tmp_path.iterdir()) == []

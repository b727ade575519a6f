"""Bars of benchmarks: what counts as reached, and that a run's account holds all of them."""

import math
from pathlib import Path

import pytest
from benchmarked import script
from typer.testing import CliRunner

bars = script("bars.py")


@pytest.mark.parametrize(
    ("value", "side", "reached"),
    [
        (2.0, "at least", True), (3.0, "at least", True), (1.9, "at least", False), (math.nan, "at least", False),
        (2.0, "at most", True), (1.9, "at most", True), (3.0, "at most", False), (math.nan, "at most", False),
    ],
)  # fmt: skip
def test_a_bar_is_reached_on_its_own_side_and_not_by_what_is_no_number(value: float, side: str, reached: bool) -> None:
    assert bars.Bar("speed", value, 2.0, "x", side).reached is reached


def test_what_every_script_tells_is_in_the_account_and_a_miss_fails_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, app = tmp_path / "bars", bars.typer.Typer()
    monkeypatch.setenv(bars.FILE, str(path))
    app.command()(bars.main)
    run = CliRunner().invoke
    assert run(app, [str(path)]).exit_code == 0
    assert run(app, [str(path), "--strict"]).exit_code == 1  # nothing was measured: nothing was reached
    bars.tell([bars.Bar("one", 1.0, 0.9)])
    bars.tell([bars.Bar("two", 7.0, 5.0, "ms", "at most", floor="the loop")])
    assert bars.read(path)[1] == bars.Bar("two", 7.0, 5.0, "ms", "at most", floor="the loop")
    shown = run(app, [str(path)])
    assert shown.exit_code == 0
    assert "1 of 2 bars reached" in shown.output
    assert run(app, [str(path), "--strict"]).exit_code == 1
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert run(app, [str(path), "--strict"]).exit_code == 0
    monkeypatch.delenv(bars.FILE)
    bars.tell([bars.Bar("three", 1.0, 0.9)])
    assert len(bars.read(path)) == 1
    assert "three" in capsys.readouterr().out


def test_make_bench_begins_a_new_account_and_ends_with_it() -> None:
    lines = (Path(__file__).parents[2] / "Makefile").read_text().splitlines()
    first = lines.index("bench: .venv/dev.stamp") + 1
    recipe = lines[first : lines.index("", first)]
    assert recipe[0] == "\trm -f $(BENCH_BARS)"
    assert recipe[-1] == "\t$(BIN)/python benchmarks/bars.py $(BENCH_BARS) $(STRICT)"
    assert any("aggregation.py" in line for line in recipe)

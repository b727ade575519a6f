"""Clients in a report: the last evaluation, worst first, whatever a run folder holds beside it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from roundelay.report import runs
from roundelay.report.clients import last_evaluations, worst_table
from roundelay.report.plots import plot_clients

ROWS = [
    {"round": 1, "attempt": 0, "client": "a", "status": "evaluated", "num_examples": 3.0, "f1": 0.1, "loss": 9.0},
    {"round": 2, "attempt": 0, "client": "a", "status": "admitted", "num_examples": 5.0, "f1": 0.9},
    {"round": 2, "attempt": 0, "client": "a", "status": "evaluated", "num_examples": 3.0, "f1": 0.5, "loss": 1.0},
    {"round": 2, "attempt": 0, "client": "b", "status": "evaluated", "num_examples": 2.0, "f1": 0.75, "loss": 3.0},
    {"round": 2, "attempt": 0, "client": "c", "status": "evaluated", "num_examples": 1.0, "f1": None, "loss": 2.0},
    {"round": 3, "attempt": 0, "client": "a", "status": "admitted", "num_examples": 5.0, "f1": 0.95},
]


def run_folder(folder: Path, rows: list[dict] = ROWS, cut: str = "") -> Path:
    (folder / "job.toml").write_text("")
    (folder / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)
    (folder / "metrics.jsonl").write_text(json.dumps({"round": 3, "pooled_f1": 0.6}) + "\n")
    return folder


@pytest.mark.parametrize("cut", ["", '{"round": 4, "cli'])
def test_the_last_evaluation_is_found_behind_rounds_that_had_none(tmp_path, cut):
    found = last_evaluations(run_folder(tmp_path, cut=cut))
    assert found.round == 2
    assert [row["client"] for row in found.rows] == ["a", "b", "c"]
    assert list(found.by_client("f1").items()) == [("a", 0.5), ("b", 0.75)], "the least is the worst"
    assert list(found.by_client("loss")) == ["b", "c", "a"], "of a loss, the most is"


def test_where_no_client_evaluated_there_is_nothing_to_tell(tmp_path):
    assert last_evaluations(run_folder(tmp_path, ROWS[1:2])) is None
    (tmp_path / "clients.jsonl").unlink()
    assert last_evaluations(tmp_path) is None


def test_the_clients_own_metric_stands_behind_that_of_all(tmp_path):
    found = last_evaluations(run_folder(tmp_path))
    assert [found.like(name) for name in ("pooled_f1", "client_f1", "f1", "loss", "train_loss")] == [
        "f1", "f1", "f1", "loss", "f1"
    ]  # fmt: skip


def test_the_table_counts_each_client_once_and_lists_the_worst_first(tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(worst_table(last_evaluations(run_folder(tmp_path)), "f1"))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "│" in line]
    assert lines == [
        ["mean", "of", "3", "6", "0.6250", "2.0000"],
        ["a", "3", "0.5000", "1.0000"],
        ["b", "2", "0.7500", "3.0000"],
        ["c", "1", "2.0000"],
    ]


def test_many_clients_are_cut_short_in_a_terminal(tmp_path):
    many = [{**ROWS[2], "client": f"{number:03}", "f1": number / 100} for number in range(100)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(worst_table(last_evaluations(run_folder(tmp_path, many)), "f1"))
    shown = console.export_text()
    assert "and 80 more" in shown
    assert "│ 019 " in shown
    assert "│ 020 " not in shown


def test_a_bar_a_client_and_a_line_at_their_mean(monkeypatch):
    pytest.importorskip("matplotlib", reason="no plots: matplotlib is not installed")
    figures: list = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: figures.append(figure))
    plot_clients({"a": 0.25, "b": 0.75}, "macro_f1", "p.png")
    plot_clients({f"{n}": n / 100 for n in range(100)}, "macro_f1", "p.svg")
    few, many = (figure.axes[0] for figure in figures)
    assert [bar.get_height() for bar in few.containers[0]] == [0.25, 0.75]
    assert [label.get_text() for label in few.get_xticklabels()] == ["a", "b"]
    assert few.lines[0].get_ydata()[0] == 0.5
    assert many.patches[0].get_data().values.tolist() == [n / 100 for n in range(100)]


def test_a_run_folder_gets_the_picture(tmp_path, monkeypatch):
    drawn: list = []
    monkeypatch.setattr(runs, "plot_clients", lambda *given: drawn.append(given))
    monkeypatch.setattr(runs, "plot_rounds", lambda *given: None)
    pictures = runs.plot_run(run_folder(tmp_path), "pooled_f1")
    assert drawn == [({"a": 0.5, "b": 0.75}, "f1", tmp_path / "clients.png")]
    assert tmp_path / "clients.png" in pictures

"""Plots: what matplotlib is told to draw is what was given; files are what their names say."""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
import torch
from forked import ran

from roundelay.errors import ConfigError, MissingExtra
from roundelay.report.plots import plot_partition, plot_rounds
from roundelay.report.plots.partition import _class_colours

pytest.importorskip("matplotlib", reason="no plots: matplotlib is not installed")

RUNS = {
    "fedavg": [{"round": r, "loss": 2.0 / (r + 1), "accuracy": r / 10} for r in range(5)],
    "scaffold": [{"round": 0, "loss": 2.0}, {"round": 1}, {"round": 2, "loss": 0.5}],
    "crashed": [{"round": 0}],
}


@pytest.fixture
def drawn(monkeypatch) -> Iterator[list]:
    """The figures that were saved, in order; nothing is written."""
    figures: list = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: figures.append(figure))
    return figures


def test_bars_are_the_counts(drawn):
    counts = torch.tensor([[3, 0, 2], [1, 4, 0]])
    plot_partition(counts, ["ann", "bob"], "p.png", class_names=["cat", "dog", "owl"])
    axes = drawn[0].axes[0]
    heights = torch.tensor([[bar.get_height() for bar in bars] for bars in axes.containers])
    bottoms = torch.tensor([[bar.get_y() for bar in bars] for bars in axes.containers])
    assert torch.equal(heights.T, counts.float())
    assert torch.equal(bottoms.T, (counts.cumsum(1) - counts).float())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ann", "bob"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["owl", "dog", "cat"]
    assert "2 clients, 10 examples" in axes.get_title(loc="left")


def test_many_clients_are_steps_by_size(drawn):
    counts = torch.randint(0, 9, (300, 2), generator=torch.Generator().manual_seed(1))
    plot_partition(counts, [f"{n:03d}" for n in range(300)], "p.png")
    axes = drawn[0].axes[0]
    steps = [patch.get_data() for patch in axes.patches]
    heights = torch.tensor([(step.values - step.baseline).tolist() for step in steps]).T
    order = counts.sum(1).argsort(descending=True, stable=True)
    assert torch.equal(heights, counts[order].double().to(heights.dtype))
    assert axes.get_xlabel() == "clients, largest first"


@pytest.mark.parametrize(("num_clients", "num_classes"), [(1, 1), (2, 62), (30, 15), (61, 20), (200, 10), (1000, 21)])
def test_any_number_of_clients_and_classes_can_be_laid_out(drawn, num_clients, num_classes):
    plot_partition(torch.ones(num_clients, num_classes), [f"client {n}" for n in range(num_clients)], "p.svg")
    axes = drawn[0].axes[0]
    named = [label for label in axes.get_xticklabels() if label.get_text()]
    assert len(named) <= 30
    assert (axes.get_legend() is None) == (num_classes > 20)


def test_classes_have_colours_of_their_own():
    for num_classes in (1, 10, 11, 20, 62):
        assert len(set(_class_colours(num_classes))) == num_classes


def test_long_names_stay_apart(drawn):
    names = ["A Midsummer Night's Dream, Bottom", "A Midsummer Night's Dream, Puck"]
    plot_partition(torch.ones(2, 2), names, "p.png")
    shown = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert len(set(shown)) == 2
    assert max(map(len, shown)) <= 24


def test_lines_are_the_rows_that_have_the_metric(drawn):
    plot_rounds(RUNS, "loss", "r.png")
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert set(lines) == {"fedavg", "scaffold"}
    assert lines["scaffold"].get_xydata().tolist() == [[0.0, 2.0], [2.0, 0.5]]
    assert lines["fedavg"].get_ydata().tolist() == [row["loss"] for row in RUNS["fedavg"]]
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["fedavg", "scaffold"]


def test_no_two_of_28_lines_look_alike(drawn):
    plot_rounds({f"run {n}": RUNS["fedavg"] for n in range(28)}, "loss", "r.png")
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].get_lines()}
    assert len(looks) == 28


def test_one_run_is_named_in_the_title(drawn):
    plot_rounds({"fedavg": RUNS["fedavg"][:1]}, "accuracy", "r.png")
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "Accuracy by round: fedavg"
    assert axes.get_legend() is None


def test_files_are_what_their_names_say(tmp_path):
    plot_partition(torch.tensor([[3, 1]]), ["0"], tmp_path / "p.png")
    plot_rounds(RUNS, "loss", tmp_path / "r.svg")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(tmp_path / "r.svg").getroot().tag.endswith("svg")


def test_the_same_numbers_give_the_same_svg(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_rounds(RUNS, "loss", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ConfigError, match="metric: expected one of accuracy, loss, got 'acuracy'"):
        plot_rounds(RUNS, "acuracy", tmp_path / "r.png")
    with pytest.raises(ConfigError, match="the runs are empty"):
        plot_rounds({}, "loss", tmp_path / "r.png")
    for counts, clients in ((torch.ones(2, 3), ["a"]), (torch.ones(0, 3), []), (torch.ones(2), ["a", "b"])):
        with pytest.raises(ConfigError, match="counts: expected"):
            plot_partition(counts, clients, tmp_path / "p.png")
    with pytest.raises(ConfigError, match="class_names: expected 3, one a class, got 1"):
        plot_partition(torch.ones(1, 3), ["a"], tmp_path / "p.png", class_names=["x"])
    with pytest.raises(ConfigError, match=r"ends in \.png or \.svg"):
        plot_rounds(RUNS, "loss", tmp_path / "r.bmp")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[plot\]"):
        plot_rounds(RUNS, "loss", tmp_path / "r.png")


def test_matplotlib_is_imported_when_a_plot_is_asked_for_and_pyplot_never(tmp_path):
    code = (
        "import sys\n"
        "from roundelay.report.plots import plot_rounds\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plot_rounds({{'a': [{{'round': 1, 'loss': 1.0}}]}}, 'loss', {str(tmp_path / 'r.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    (tmp_path / "plotting.py").write_text(code)
    ran(tmp_path, "plotting.py")

"""Pictures of a network: what matplotlib is told to draw is what was counted, and everything has its unit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from roundelay.errors import ConfigError
from roundelay.report.accounts import Doing, Journey, Split, Stretch, account
from roundelay.report.comparing import Compared, Told, compared, curve_of, settings_of
from roundelay.report.plots import Place, plot_cell, plot_costs, plot_gantt, plot_staleness
from roundelay.report.plots.gantt import busy

pytest.importorskip("matplotlib", reason="no plots: matplotlib is not installed")

S = 1_000_000_000


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that were saved, in order; nothing is written."""
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: figures.append(figure))
    return figures


def journey(task: int, client: str, *parts: tuple[Doing, float, float], outcome: str = "arrived") -> Journey:
    stretches = tuple(Stretch(doing, round(start * S), round(end * S)) for doing, start, end in parts)
    done = max((part.end_ns for part in stretches if part.doing != "waiting"), default=0)
    return Journey(task, client, 1, "update", outcome, stretches[0].start_ns, done, stretches)


JOURNEYS = [
    journey(1, "ann", ("receiving", 0, 1), ("computing", 1, 3), ("queueing", 3, 4), ("sending", 4, 6)),
    journey(2, "ben", ("receiving", 0, 1), ("computing", 1, 2), ("sending", 2, 4), ("waiting", 4, 6)),
    journey(3, "ben", ("computing", 6, 9), ("sending", 9, 10), outcome="late"),
]


def told(run: str, scale: float, seed: int = 1, **job: Any) -> Told:
    rows = [
        {"round": n, "accuracy": n / 10, "virtual_s": n * scale, "uplink_bits": round(2e6 * scale), "joules": scale}
        for n in range(1, 6)
    ]
    found = account([JOURNEYS[0]], {}, buffered=False)
    return Told(run, {"seed": seed, **job}, curve_of(rows, "accuracy"), found)


def three() -> list[Compared]:
    runs = [told("raw1", 4, 1), told("raw2", 6, 2, name="x"), told("coded", 2, codec="q"), told("slow", 8, codec="s")]
    return compared(settings_of(runs), "accuracy", 0.5)


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_line_a_setting_a_band_where_there_are_seeds_and_the_bound_beside_every_speed_up(drawn: list[Any]) -> None:
    assert plot_costs(three(), "time_s", "accuracy", 0.5, "t.png")
    (figure,) = drawn
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert len(lines) == 3
    assert lines[1].get_xydata().tolist() == [[2.0 * n, n / 10] for n in range(1, 6)]
    assert len(axes.collections) == 1, "one band"
    assert Split(2 * S, 3 * S).bound == 2.5
    bound = r"(bound $1 + T_{tx}/T_{comp}$ = 2.50)"
    assert legend(axes) == ["raw (2 seeds)", f"coded: speed-up 2.50 {bound}", f"slow: speed-up 0.62 {bound}"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("simulated time, s", "accuracy")
    assert axes.texts[0].get_text() == "target 0.5"


def test_bits_and_joules_are_drawn_in_units_of_ten_and_named(drawn: list[Any]) -> None:
    for axis in ("uplink_bits", "energy_j"):
        assert plot_costs(three(), axis, "accuracy", 0.5, "t.png")
    bits, joules = (figure.axes[0] for figure in drawn)
    assert bits.get_xlabel() == "uplink, Mbit"
    coded = next(line for line in bits.get_lines() if line.get_label().startswith("coded"))
    assert coded.get_xdata().tolist() == [4.0, 8.0, 12.0, 16.0, 20.0]  # 1 M is 1e6
    assert legend(bits)[1:] == ["coded: 2.50 times fewer bits", "slow: 1.60 times more bits"]
    assert joules.get_xlabel() == "energy of the UEs, J"
    assert legend(joules)[1] == "coded: 2.50 times less energy"


def test_who_never_gets_there_says_so_and_what_nobody_modelled_is_not_drawn(drawn: list[Any]) -> None:
    never = compared(settings_of([told("raw", 4), told("coded", 2, codec="q")]), "accuracy", 0.7)
    assert plot_costs(never, "time_s", "accuracy", 0.7, "t.png")
    assert legend(drawn[0].axes[0]) == ["raw: at the target never", "coded: at the target never"]
    bare = Told("bare", {}, curve_of([{"round": 1, "accuracy": 0.5}], "accuracy"))
    assert not plot_costs(compared(settings_of([bare]), "accuracy", 0.5), "time_s", "accuracy", 0.5, "t.png")
    assert len(drawn) == 1


def bars(axes: Any) -> set[tuple[float, float, float]]:
    """(row, from, to) of every stretch that a UE has."""
    return {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches
    }


def test_a_gantt_chart_has_a_row_for_each_ue_and_two_for_the_base_station(drawn: list[Any]) -> None:
    plot_gantt(JOURNEYS, {1: 6 * S, 2: 10 * S}, (1, 2), "g.png", "raw")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ann", "ben", "BS sends", "BS receives"]
    rows = {"ann": 0, "ben": 1}
    assert bars(axes) == {
        (rows[one.client], part.start_ns / S, part.end_ns / S) for one in JOURNEYS for part in one.stretches
    }
    assert busy(JOURNEYS, "sending", 0, 10 * S) == [(2 * S, 6 * S), (9 * S, 10 * S)]
    assert axes.get_xlabel() == "simulated time, s"
    assert axes.get_title(loc="left") == "raw: rounds 1 to 2"
    assert legend(axes) == ["receiving", "computing", "queueing for the band", "on air, sending", "waiting",
                            "broken off or lost"]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["end of 1", "end of 2"]


def test_one_round_is_cut_out_of_a_gantt_chart_and_short_ones_are_in_milliseconds(drawn: list[Any]) -> None:
    plot_gantt(JOURNEYS, {1: 6 * S, 2: 10 * S}, (2, 2), "g.png")
    (axes,) = drawn[0].axes
    assert bars(axes) == {(0, 6.0, 9.0), (0, 9.0, 10.0)}
    assert axes.get_title(loc="left") == "Round 2"
    short = [journey(1, "ann", ("computing", 0, 0.25), ("sending", 0.25, 0.5))]
    plot_gantt(short, {1: S // 2}, (1, 1), "g.png")
    assert bars(drawn[1].axes[0]) == {(0, 0.0, 250.0), (0, 250.0, 500.0)}
    assert drawn[1].axes[0].get_xlabel() == "simulated time, ms"
    with pytest.raises(ConfigError, match="raw has 2 rounds, and 7 to 9 shall be drawn"):
        plot_gantt(JOURNEYS, {1: 6 * S, 2: 10 * S}, (7, 9), "g.png", "raw")


def test_many_ues_are_not_all_drawn_and_the_title_says_so(drawn: list[Any]) -> None:
    many = [journey(n, f"{n:03d}", ("computing", 0, 1), ("sending", 1, 2)) for n in range(100)]
    plot_gantt(many, {1: 2 * S}, (1, 1), "g.png")
    (axes,) = drawn[0].axes
    assert len(axes.get_yticks()) == 42
    assert axes.get_title(loc="left") == "Round 1, 40 of 100 UEs"


def test_staleness_is_shares_side_by_side(drawn: list[Any]) -> None:
    plot_staleness({"sync": {0: 4}, "buffered": {0: 1, 1: 2, 3: 1}, "none": {}}, "s.png")
    (axes,) = drawn[0].axes
    heights = [[bar.get_height() for bar in container] for container in axes.containers]
    assert heights == [[100.0], [25.0, 50.0, 25.0]]
    assert legend(axes) == ["sync: mean 0.00, 4 updates", "buffered: mean 1.25, 4 updates"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("staleness, versions", "updates, %")
    with pytest.raises(ConfigError, match="no update landed"):
        plot_staleness({"none": {}}, "s.png")


PLACES = [
    Place("ann", 100.0, 50.0, True, 40e6),
    Place("ben", -200.0, 10.0, False, 2e6),
    Place("col", 30.0, -90.0, False, 0.0),
]


@pytest.mark.parametrize("places", [PLACES, PLACES[:1], PLACES[2:]], ids=["three", "one", "mute"])
def test_a_map_shows_who_is_where_in_metres_and_how_fast_in_megabits(drawn: list[Any], places: Sequence[Place]) -> None:
    plot_cell(places, "c.png", "raw")
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("east of the base station, m", "north of it, m")
    assert {text.get_text() for text in axes.texts} == {place.client for place in places}
    spots = {tuple(spot) for marks in axes.collections for spot in marks.get_offsets().tolist()}
    assert spots == {(0.0, 0.0), *((place.x_m, place.y_m) for place in places)}
    rates = [rate for marks in axes.collections if marks.get_array() is not None for rate in marks.get_array()]
    assert rates == [place.uplink_bps / 1e6 for place in places if place.uplink_bps]
    if len(places) == 3:
        assert legend(axes) == ["in line of sight (1)", "out of sight (1)", "no rate (1)", "base station"]
        assert drawn[0].axes[1].get_ylabel() == "mean uplink rate alone in the band, Mbit/s"


def test_files_are_what_their_names_say_and_the_same_numbers_give_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_gantt(JOURNEYS, {1: 6 * S}, (1, 1), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    plot_cell(PLACES, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")

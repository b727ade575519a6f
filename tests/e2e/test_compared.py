"""``roundelay runs compare`` on runs over a modelled network, small but real."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import small_job
from typer.testing import CliRunner

import roundelay as rd
from roundelay.cli import app
from roundelay.errors import ConfigError
from roundelay.report.comparing import Told
from roundelay.report.network import comparison, places_of, told_of
from roundelay.report.runs import read_run
from roundelay.simulation.network.cell import Fifo, Links
from roundelay.simulation.network.devices import Cycles
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.radio import Disc, Radio
from roundelay.tracking.run_folder import read_rows

pytest.importorskip("matplotlib", reason="no pictures: matplotlib is not installed")

CELL = Network(cell=Radio(placement=Disc(radius_m=200.0), bandwidth_hz=2e5), computing=Cycles(cycles_per_sample=1e7))
WIRE = Network(cell=Links(uplink_bps=1e5, downlink_bps=1e9), computing=Cycles(cycles_per_sample=1e6), header_bits=0)


def ran(root: Path, name: str, network: Network | None, **changes: Any) -> Path:
    simulation = rd.Simulation(executor="serial", network=network)
    small_job(simulation=simulation, tracking=rd.Tracking(str(root), name), **changes).run()
    return root / name


def shown(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["runs", *map(str, arguments)], env={"COLUMNS": "200"})
    if status:
        return repr(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    fifo = replace(CELL, sharing=Fifo())
    return [
        ran(root, "equal-1", CELL), ran(root, "equal-2", CELL, seed=8), ran(root, "fifo", fifo),
        ran(root, "buffered", CELL, workflow=rd.Buffered(buffer_size=2, concurrency=4), num_rounds=5),
    ]  # fmt: skip


def told(folders: list[Path], metric: str = "loss") -> list[Told]:
    return [told_of(read_run(folder), metric) for folder in folders]


def test_the_tables_and_all_pictures_come_from_run_folders(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    said = shown("compare", *folders, "--metric", "loss", "--out", out, "--rounds", "1-2")
    assert "equal (2" in said
    assert re.search(r"to loss \d", said)
    assert "bound 1 + T_tx/T_comp" in said
    assert "wrote" in said
    of_runs = [f"{kind}-{folder.name}.png" for folder in folders for kind in ("gantt", "cell")]
    expected = {"loss_time.png", "loss_uplink.png", "loss_energy.png", "staleness.png", *of_runs}
    assert {path.name for path in out.iterdir()} == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())
    said = shown("compare", *folders[:1], "--target", "loss=1e9", "--svg", "--out", tmp_path / "svg")
    assert "to loss 1e+09" in said
    assert {path.suffix for path in (tmp_path / "svg").iterdir()} == {".svg"}
    assert "never" in shown("compare", *folders[:1], "--target", "loss=-1", "--out", tmp_path / "never")
    assert "such as 1-3" in shown("compare", *folders, "--rounds", "3-1", status=1)


def test_a_run_s_own_pictures_and_its_account(folders: list[Path]) -> None:
    assert "gantt.png" in shown("plot", folders[0], "--metric", "loss")
    assert (folders[0] / "cell.png").exists()
    assert "time queueing" in shown("show", folders[0])


def test_accounts_agree_with_the_rows_of_the_run(folders: list[Path]) -> None:
    for run, folder in zip(told(folders), folders, strict=True):
        rows, ledger = read_rows(folder / "metrics.jsonl"), read_rows(folder / "ledger.jsonl")
        uploads = [row for row in ledger if row["row"] == "message" and row["direction"] == "up"]
        assert run.account is not None
        last = run.curve[-1]  # a loss may be no number in the end
        until = [row for row in ledger if row["round"] <= last.round]
        bits = sum(row["bits"] for row in until if row in uploads)
        assert last.uplink_bits == sum(row["uplink_bits"] for row in rows[: last.round]) == bits
        assert last.energy_j == pytest.approx(sum(row["energy_j"] for row in until))
        assert last.time_s == rows[last.round - 1]["virtual_s"]
        assert run.account.fired == len(uploads)
        assert sum(run.account.shares.values()) == pytest.approx(1)
        assert sum(run.account.staleness.values()) == sum(row["admitted"] for row in rows)
    assert set(told(folders)[0].account.staleness) == {0}  # type: ignore[union-attr]


def test_staleness_from_the_ledger_is_what_the_workflow_wrote_down(folders: list[Path]) -> None:
    from roundelay.report.accounts import ends_of, staleness_of

    run = told(folders)[3]
    assert run.account is not None
    assert max(run.account.staleness) > 0
    assert staleness_of(run.journeys, ends_of(read_rows(folders[3] / "metrics.jsonl"))) == run.account.staleness


def test_the_map_shows_the_channel_that_the_run_had(folders: list[Path]) -> None:
    record = read_run(folders[0])
    places = places_of(record, told(folders[:1])[0])
    job = tomllib.loads((folders[0] / "job.toml").read_text())
    channel = CELL.cell.channel(job["seed"], [place.client for place in places])  # type: ignore[union-attr]
    assert [round((p.x_m**2 + p.y_m**2) ** 0.5, 6) for p in places] == channel.distance_m.round(6).tolist()
    assert [place.line_of_sight for place in places] == channel.line_of_sight.tolist()
    assert len({place.uplink_bps for place in places}) > 1
    assert all(place.uplink_bps < 2e5 * 5.56 for place in places), "bits per second, not megabits, nor bytes"


def test_with_one_ue_no_faster_link_beats_the_bound_and_the_fastest_reaches_it(tmp_path: Path) -> None:
    """Amdahl: shorter messages at most take away what sending took. A link that is q times faster stands for a codec
    whose messages are q times shorter.
    """
    runs = []
    for faster in (1, 2, 16, 10_000_000):
        wire = Links(uplink_bps=1e5 * faster, downlink_bps=1e12)
        folder = ran(tmp_path, f"x{faster}", replace(WIRE, cell=wire), clients_per_round=1)
        runs.append(told_of(read_run(folder), "loss"))
    found = comparison(runs, "loss", None).compared
    speedups = [one.ratios["time_s"] for one in found[1:]]
    bound = found[1].bound
    assert bound is not None
    assert bound > 1.2
    assert sorted(speedups) == speedups
    assert all(speedup < bound for speedup in speedups)
    assert speedups[-1] == pytest.approx(bound, rel=1e-5)


def test_runs_without_a_network_are_compared_as_before_and_nothing_is_drawn(tmp_path: Path) -> None:
    folder = ran(tmp_path, "plain", None)
    said = shown("compare", folder, "--metric", "loss", "--out", tmp_path / "out")
    assert "plain" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="never measured accuracy"):
        comparison([told_of(read_run(folder), "nothing")], "accuracy", 0.5)

"""A finished run on another clock is the run that was trained under that clock: same trace, same rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from networks import small_job
from test_network_clock import NARROW, timeless
from typer.testing import CliRunner

import roundelay as rd
from roundelay.cli import app
from roundelay.errors import ConfigError
from roundelay.reclocking import reclocked
from roundelay.simulation import reclocked as module
from roundelay.simulation.delivery import Sent
from roundelay.simulation.network.cell import Backhaul, Fifo, Links, MinMax
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.packets import Arq
from roundelay.stages.codecs import TopK
from roundelay.stages.triggers import SendOnDelta
from roundelay.tracking.run_folder import Tracking, read_rows

EVEN = replace(NARROW, transmit_over_compute=1.0)
TOP = rd.Uplink(codec=TopK(fraction=0.1), feedback="error")
EVENTS = rd.Uplink(trigger=SendOnDelta(threshold=0.4), on_silence="zero")
NETWORKS: dict[str, tuple[Network, rd.Uplink | None]] = {
    "top-k": (EVEN, TOP),
    "events": (EVEN, EVENTS),
    "no codec": (EVEN, None),
    "unicast and wire": (replace(EVEN, downlink="unicast", backhaul=Backhaul(rate_bps=1e5, latency_s=0.01)), None),
    "lossy": (replace(EVEN, errors=Arq(packet_bits=512, loss_probability=0.1)), TOP),
    "queue": (replace(EVEN, cell=Links(uplink_bps=1e5, downlink_bps=1e6), sharing=Fifo()), EVENTS),
    "min-max": (replace(EVEN, sharing=MinMax()), TOP),
}
OWN = "simulation.network.transmit_over_compute"


def ran(root: Path, name: str, network: Network | None, **changes: object) -> Path:
    simulation = rd.Simulation(executor="serial", network=network)
    job = small_job(simulation=simulation, tracking=Tracking(str(root), name), **changes)
    job.run()
    return root / name


def told(folder: Path) -> tuple[str, str, str, list[str], str]:
    """The hash of the ledger, its rows, those of the table, those of the clients, and what computing was scaled by."""
    return (
        json.loads((folder / "state.json").read_text())["trace_hash"], repr(read_rows(folder / "ledger.jsonl")),
        timeless(read_rows(folder / "metrics.jsonl")), (folder / "clients.jsonl").read_text().splitlines(),
        (folder / "calibration.json").read_text(),
    )  # fmt: skip


def check(root: Path, network: Network, uplink: rd.Uplink | None) -> None:
    """The contract: on its own clock a run is itself, and on another what is trained under that one."""
    one = ran(root, "one", network, uplink=uplink)
    assert told(reclocked(one, tracking=Tracking(str(root), "same"))) == told(one)
    ten = ran(root, "ten", replace(network, transmit_over_compute=10.0), uplink=uplink)
    assert told(ten)[0] != told(one)[0]
    again = reclocked(one, [f"{OWN}=10.0"], Tracking(str(root), "ten again"))
    assert told(again) == told(ten)
    assert json.loads((again / "state.json").read_text()) == json.loads((ten / "state.json").read_text())


@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_another_clock_tells_what_training_under_it_tells(
    case: tuple[Network, rd.Uplink | None], tmp_path: Path
) -> None:
    check(tmp_path, *case)


def test_planted_a_clock_of_bytes_and_a_ratio_that_is_not_heard_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(module, "Sent", lambda bits, kind: Sent(bits // 8, kind=kind))
        with pytest.raises(AssertionError):
            check(tmp_path / "bytes", EVEN, TOP)
    one = ran(tmp_path, "one", EVEN, uplink=TOP)
    ten = ran(tmp_path, "ten", replace(EVEN, transmit_over_compute=10.0), uplink=TOP)
    assert told(reclocked(one, tracking=Tracking(str(tmp_path), "deaf"))) != told(ten)


def test_weights_and_what_else_is_in_the_folder_are_kept_and_the_command_says_where(tmp_path: Path) -> None:
    one = ran(tmp_path, "one", EVEN)
    result = CliRunner().invoke(app, ["runs", "reclock", str(one), "--set", f"{OWN}=10"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    again = tmp_path / "one-reclocked"
    assert f"wrote {again}" in result.output
    assert (again / "last.pt").read_bytes() == (one / "last.pt").read_bytes()
    assert json.loads((again / "run.json").read_text())["reclocked_from"] == "one"
    assert "transmit_over_compute = 10" in (again / "job.toml").read_text()
    with pytest.raises(ConfigError, match="is there already"):
        reclocked(one)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "deadline": ({"workflow": rd.Rounds(deadline_s=5.0)}, "deadline_s = 5.0"),
    "goal": ({"workflow": rd.Rounds(goal=2)}, "goal = 2"),
    "readiness": ({"workflow": rd.Rounds(readiness=rd.Readiness())}, "readiness = "),
    "over-selection": ({"workflow": rd.Rounds(over_selection=0.2)}, "over_selection"),
    "attempts": ({"workflow": rd.Rounds(attempts=2)}, "attempts"),
    "buffered": ({"workflow": rd.Buffered(buffer_size=2, concurrency=3)}, "workflow Buffered"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_where_time_decides_who_takes_part_nothing_is_told(case: tuple[dict[str, object], str], tmp_path: Path) -> None:
    changes, said = case
    with pytest.raises(ConfigError, match=said):
        reclocked(ran(tmp_path, "run", EVEN, **changes))


def test_other_training_losses_and_unfinished_runs_are_refused(tmp_path: Path) -> None:
    one = ran(tmp_path, "one", EVEN)
    for override, said in (
        ("learner.lr=0.2", "learner decides what is trained"),
        ("workflow.deadline_s=3", "workflow decides"),
        ("seed=8", "seed decides"),
        ('simulation.network.availability={use="onoff", on_s=1, off_s=1}', "availability"),
    ):
        with pytest.raises(ConfigError, match=said):
            reclocked(one, [override])
    with pytest.raises(ConfigError, match=r"[Tt]rain the job anew"):
        reclocked(one, ["simulation.network.patience_s=1e-9", "simulation.network.cell.bandwidth_hz=1e-9"])
    (one / "state.json").write_text('{"state": "stopped"}')
    with pytest.raises(ConfigError, match="is stopped; expected one that is finished"):
        reclocked(one)
    with pytest.raises(ConfigError, match="kept no ledger"):
        reclocked(ran(tmp_path, "plain", None))
    with pytest.raises(ConfigError, match="not a run folder"):
        reclocked(tmp_path / "nowhere")

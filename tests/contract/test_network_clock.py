"""A modelled network drives the simulated clock: what it says follows from models alone, whoever computes, however
long that really takes, and wherever the run was interrupted.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small_job
from torch import nn

import roundelay as rd
from roundelay.simulation.air import Air
from roundelay.simulation.cells import Cells
from roundelay.simulation.network.availability import OnOff
from roundelay.simulation.network.cell import Backhaul, Fifo, Links
from roundelay.simulation.network.devices import Cycles, ShiftedExponential
from roundelay.simulation.network.network import Network
from roundelay.simulation.network.packets import Arq
from roundelay.simulation.network.radio import Disc, Radio, Rayleigh
from roundelay.simulation.trace import Trace
from roundelay.tracking.run_folder import read_rows

SERIAL = rd.Simulation(executor="serial")
CELL = Radio(
    placement=Disc(radius_m=400.0), bandwidth_hz=2e4, fading=Rayleigh(coherence_time_s=0.05)
)  # a narrow band: an upload of 6,500 bits takes about as long as computing, and several fading blocks
NARROW = Network(cell=CELL, computing=ShiftedExponential(least_s_per_sample=0.001, rate_per_s=20.0))
SLOW = replace(NARROW, cell=replace(CELL, bandwidth_hz=4e3))  # somebody is always on the air
Settings = dict[str, object]
FLOWS: dict[str, Settings] = {
    "rounds": {"workflow": rd.Rounds(deadline_s=1.2), "clients_per_round": 6, "num_rounds": 6},
    "goal": {"workflow": rd.Rounds(goal=3), "clients_per_round": 6, "num_rounds": 6},
    "buffered": {"workflow": rd.Buffered(buffer_size=2, concurrency=5), "num_rounds": 10},
    "hierarchical": {"workflow": rd.Hierarchical(edges=2, edge_rounds=2, deadline_s=1.0), "clients_per_round": 3,
                     "num_rounds": 4},
}  # fmt: skip
flows = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)


def job(network: Network, simulation: rd.Simulation = SERIAL, **changes: object) -> rd.Job:
    return small_job(simulation=replace(simulation, network=network), **changes)


def came_to(history: rd.History) -> tuple[str, str | None, list[float]]:
    return history.sha256, history.trace_hash, [row["virtual_s"] for row in history.rows]


def timeless(rows: Sequence[Mapping[str, object]]) -> str:
    return repr([{**row, "seconds": 0} for row in rows])  # a loss may be NaN


# ---- who computes, and how long that really takes -------------------------------------------------------------------


@flows
def test_model_and_trace_are_the_same_for_any_number_of_workers(flow: Settings) -> None:
    network = replace(NARROW, backhaul=Backhaul(rate_bps=1e5, latency_s=0.01))
    simulations = (SERIAL, rd.Simulation(num_workers=1), rd.Simulation(num_workers=4))
    came = [came_to(job(network, simulation, **flow).run()) for simulation in simulations]
    assert came[0] == came[1] == came[2]
    assert came[0][2][0] > 0


def dawdling(model: nn.Module, data: rd.data.Examples, task: rd.Task) -> tuple[int, dict[str, float]]:
    """Sleep for a real while that nothing determines, and train a little."""
    time.sleep(random.SystemRandom().uniform(0, 0.01))
    with_bias = next(model.parameters())
    with_bias.data.mul_(1 + 0.01 * int(task.client[1:]))
    return len(data), {}


@pytest.mark.parametrize("simulation", [SERIAL, rd.Simulation(num_workers=3)], ids=["serial", "processes"])
def test_real_time_does_not_show_in_the_trace(simulation: rd.Simulation) -> None:
    def run() -> tuple[str, str | None, list[float]]:
        return came_to(job(NARROW, simulation, learner=dawdling, **FLOWS["goal"]).run())

    assert run() == run()


CLOCKS = ("time", "perf_counter", "monotonic", "sleep", "time_ns", "perf_counter_ns", "monotonic_ns")


def no_time(*_: object) -> float:
    if sys._getframe(1).f_globals["__name__"] == "logging":  # which dates its records
        return 0.0
    raise AssertionError("the simulated path asked for real time")


@flows
def test_nothing_on_the_simulated_path_asks_for_real_time(flow: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = came_to(job(NARROW, **flow).run())
    for name in CLOCKS:
        monkeypatch.setattr(time, name, no_time)
    try:
        came = came_to(job(NARROW, **flow).run())
    finally:
        monkeypatch.undo()
    assert came == expected


# ---- interrupted in mid-flow ----------------------------------------------------------------------------------------


def load_state(folder: Path) -> dict[str, Any]:  # Any: numbers and text
    kept: dict[str, Any] = json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["network"])
    return kept


def check_resume(flow: Settings, root: Path, network: Network = NARROW, cuts: Sequence[int] = (2, 3)) -> bool:
    """The contract: the same model, trace, rows and ledger, from whichever round a crash threw the run back to.
    Return whether something was on the air at one of these moments.
    """

    def tracked(name: str) -> rd.Job:
        return job(network, **flow, tracking=rd.Tracking(str(root), name, checkpoint_every_s=0))

    whole = tracked("whole").run()
    ledger, flown = read_rows(root / "whole" / "ledger.jsonl"), False
    for cut in cuts:
        folder = root / f"cut-{cut}"
        for finished in tracked(folder.name).rounds():
            if finished.number == cut:
                checkpoint = (folder / "checkpoint.pt").read_bytes()
                flown |= any(cell["air"] for cell in load_state(folder)["cells"])
            if finished.number == cut + 1:
                break
        (folder / "checkpoint.pt").write_bytes(checkpoint)  # as a crash in the next round would have left it
        resumed = tracked(folder.name).run(resume=folder)
        assert came_to(resumed) == came_to(whole)
        assert read_rows(folder / "ledger.jsonl") == ledger
        assert timeless(resumed.rows) == timeless(whole.rows)
    return flown


@flows
def test_a_resumed_run_ends_in_the_same_trace(flow: Settings, tmp_path: Path) -> None:
    check_resume(flow, tmp_path)


def test_so_does_one_that_was_interrupted_in_mid_flow(tmp_path: Path) -> None:
    assert check_resume(FLOWS["buffered"], tmp_path, SLOW)


def test_it_does_where_packets_are_lost_clients_leave_and_a_wire_lies_behind_the_cell(tmp_path: Path) -> None:
    rough = replace(
        NARROW, backhaul=Backhaul(rate_bps=2e5, latency_s=0.02), errors=Arq(loss=0.2, packet_bits=500),
        availability=OnOff(mean_on_s=3.0, mean_off_s=1.0), downlink="unicast", grant_latency_s=0.004,
    )  # fmt: skip
    check_resume(FLOWS["buffered"], tmp_path, rough)
    rows = read_rows(tmp_path / "whole" / "ledger.jsonl")
    assert {row["outcome"] for row in rows if row["row"] == "message"} > {"arrived"}
    assert any(row.get("retransmitted_bits") for row in rows)


def forget_flows(patch: pytest.MonkeyPatch) -> None:
    restore = Cells.restore
    patch.setattr(Cells, "restore", lambda self, kept, flows: restore(self, kept, ()))


def forget_the_trace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Trace, "restore", lambda self, kept: None)


def begin_anew(patch: pytest.MonkeyPatch) -> None:
    """Tasks under way are sent again from their beginning."""

    def restore(self: Air, tasks: Sequence[tuple[rd.Task, int]], state: object, landed: Callable) -> list[rd.Task]:
        return list(self.dispatch([task for task, _ in tasks], 6400, landed))

    patch.setattr(Air, "restore", restore)


PLANTED = {"flows": forget_flows, "trace": forget_the_trace, "from the beginning": begin_anew}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_the_check_of_resume_catches(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, rd.errors.RoundelayError, KeyError)):
        check_resume(FLOWS["buffered"], tmp_path, SLOW, cuts=(3,))


# ---- what virtual time may change, and what it may not --------------------------------------------------------------


def test_a_network_without_deadlines_ends_in_the_bits_of_none() -> None:
    plain = small_job().run()
    free = Network(cell=Links(uplink_bps=1e15, downlink_bps=1e15))
    for network in (free, NARROW, replace(NARROW, sharing=Fifo())):
        assert job(network).run().sha256 == plain.sha256
    assert job(free).run().rows[-1]["virtual_s"] < 1e-6


def at_rate(bps: float, **changes: object) -> list[float]:
    cell = Links(uplink_bps=bps, downlink_bps=bps)
    return [row["virtual_s"] for row in job(Network(cell=cell, **changes)).run().rows]  # type: ignore[arg-type]


def test_double_rates_halve_the_communication_and_nothing_else() -> None:
    assert at_rate(2e5) == pytest.approx([t / 2 for t in at_rate(1e5)], rel=1e-9)
    computing = Cycles(cycles_per_sample=1e6, frequency_hz=1e7)
    slow, fast, never = (at_rate(bps, computing=computing) for bps in (1e5, 2e5, 1e15))
    assert [f - n for f, n in zip(fast, never, strict=True)] == pytest.approx(
        [(s - n) / 2 for s, n in zip(slow, never, strict=True)], rel=1e-6
    )


def test_twice_the_band_at_a_rate_per_hertz_that_stands_still_does_too() -> None:
    def times(network: Network) -> list[float]:
        return [row["virtual_s"] for row in job(network).run().rows]

    wire = Network(cell=Links(uplink_bps=1e5, downlink_bps=1e5), sharing=Fifo())
    assert times(wire)[0] == pytest.approx(5 * (6400 + 128) / 1e5)  # one broadcast, then four uploads in turn

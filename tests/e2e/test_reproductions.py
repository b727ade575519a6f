"""The scripts of docs/reproductions.md say what the page says, in short; each check falls with what it is there for."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import roundelay as rd
from roundelay.simulation.federation import SimulatedFederation
from roundelay.simulation.network.cell import Fifo
from roundelay.stages import uplink
from roundelay.stages.triggers import SendOnDelta

FOLDER = Path(__file__).parents[2] / "examples" / "reproductions"
Planting = Callable[[pytest.MonkeyPatch], None]


def script(name: str) -> Any:  # Any: a module, known by its path only
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def shown(name: str) -> list[list[str]]:
    """Return the rows of the tables that a script prints when it is quick."""
    asked = [sys.executable, str(FOLDER / f"{name}.py"), "--quick"]
    run = subprocess.run(asked, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in run.stdout.splitlines() if line[0] == "│"]


# ---- R4: signs go wrong, error feedback does not --------------------------------------------------------------------


def check_error_feedback() -> None:
    """The contract: signs lead to the wrong end of the interval at the slope of the closed form, feedback to the right
    one at that of the mean gradient; and off the line that the second problem's signs never leave.
    """
    here = script("error_feedback")
    slopes = here.slopes()
    for name in ("signs", "signs, error feedback"):
        x = here.job(here.WAYS[name], here.EARLY).run().model.state_dict()["x"]
        deviation = 3.5 / math.sqrt(here.EARLY * here.COORDINATES) * here.STEP * here.EARLY  # of a step 3.5 at most
        assert abs(float(x.mean()) - slopes[name] * here.STEP * here.EARLY) < 3 * deviation
    for name, least, most in (("signs", 1.99, 2.01), ("signs, error feedback", -0.1, 0.1)):
        start = here.Point(torch.ones(2))
        job = replace(here.job(here.WAYS[name], 600), model=start, learner=here.kinked, aggregator=None)
        assert least < float(job.run().model.state_dict()["x"].sum()) < most


def feedback_off(patch: pytest.MonkeyPatch) -> None:
    sent = uplink._sent
    patch.setattr(uplink, "_sent", lambda way, x, before, generator: sent(way, x, None, generator))


def feedback_subtracted(patch: pytest.MonkeyPatch) -> None:
    sent = uplink._sent

    def against(way: rd.Uplink, x: Tensor, before: Tensor | None, generator: torch.Generator) -> object:
        return sent(way, x, None if before is None else -before, generator)

    patch.setattr(uplink, "_sent", against)


def scale_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Signs alone are one step long, whatever the gradient was."""
    decode = rd.Sign.decode
    patch.setattr(rd.Sign, "decode", lambda self, data, length: decode(self, data, length).sign() * 0.005)


SIGNS: dict[str, Planting] = {
    "no feedback": feedback_off,
    "feedback subtracted": feedback_subtracted,
    "signs without their scale": scale_forgotten,
}


def test_signs_go_wrong_and_error_feedback_does_not() -> None:
    check_error_feedback()


@pytest.mark.parametrize("plant", SIGNS.values(), ids=SIGNS)
def test_the_check_of_error_feedback_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_error_feedback()


@pytest.mark.slow
def test_error_feedback_is_shown() -> None:
    ends = {row[0]: float(row[4]) for row in shown("error_feedback")[:3]}
    assert ends["signs"] > 0.98
    assert ends["as it is"] < -0.85
    assert ends["signs, error feedback"] < -0.85


# ---- R6: what need not be sent --------------------------------------------------------------------------------------


def check_turns() -> None:
    """The contract: parameters that turn without growing are sent by a rule that compares vectors; not by norms."""
    table = script("send_on_delta").turns()
    sent, held = (list(table.columns[i].cells) for i in (1, 2))
    assert (sent, held) == (["1", "0"], ["-1.0", "+1.0"])


def norms_for_vectors(patch: pytest.MonkeyPatch) -> None:
    """EventGraD's trap: the vectors' lengths are compared, whatever was asked."""
    patch.setattr(SendOnDelta, "_kept", lambda self, vector: torch.linalg.vector_norm(vector)[None].double())


def test_a_norm_does_not_see_what_turns() -> None:
    check_turns()


def test_the_check_of_turns_catches_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    norms_for_vectors(monkeypatch)
    with pytest.raises(AssertionError):
        check_turns()


@pytest.mark.slow
def test_most_steps_need_not_be_sent() -> None:
    here = script("send_on_delta")
    everything, _, _ = here.measured(here.WAYS["all are sent"], 20, 1)
    accuracy, silent, _ = here.measured(here.WAYS["step changed by 0.9 of it"], 20, 1)
    assert silent > 0.5
    assert accuracy > everything - 0.02
    forgotten, _, _ = here.measured(here.WAYS["step changed by 0.9 of it, else 0"], 20, 1)
    assert forgotten < accuracy - 0.05


@pytest.mark.slow
def test_savings_are_shown() -> None:
    rows = {row[0]: row for row in shown("send_on_delta")}
    saved, lost = (float(rows["step changed by 0.9 of it"][i]) for i in (1, 4))
    assert saved > 70
    assert lost < 1


# ---- R7: buffered rounds --------------------------------------------------------------------------------------------


def test_order_statistics_are_those_of_half_normal_draws() -> None:
    here = script("buffered_rounds")
    drawn = torch.randn(20_000, 65, generator=torch.Generator().manual_seed(1)).abs().sort(1).values.mean(0)
    for kth in (1, 50, 65):
        assert here.ordered(kth, 65) == pytest.approx(float(drawn[kth - 1]), abs=0.02)


def check_throughput() -> None:
    """The contract: as many updates a second as the order statistic says, and (M - 1)/K rounds of staleness."""
    here = script("buffered_rounds")
    for name in ("synchronous", "FedBuff, K=10"):
        way = replace(here.WAYS[name], num_steps=600 // here.WAYS[name].per_step)
        found = here.measured(way, 1.0, 2.0, 1)  # an accuracy that nobody reaches
        assert found["updates/s"] == pytest.approx(way.updates_per_s, rel=0.12)
        if name != "synchronous":
            assert found["staleness"] == pytest.approx((here.AT_ONCE - 1) / here.BUFFER, rel=0.12)


def rounds_wait_for_all(patch: pytest.MonkeyPatch) -> None:
    """A buffer that asks nobody before everybody has answered."""
    sample = SimulatedFederation.sample

    def all_or_none(self: Any, number: int, attempt: int, count: int, among: Any = None) -> tuple[str, ...]:
        return () if self.flying else sample(self, number, attempt, count, among)

    patch.setattr(SimulatedFederation, "sample", all_or_none)


def test_updates_come_as_fast_as_their_times_say() -> None:
    check_throughput()


def test_the_check_of_throughput_catches_a_buffer_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_wait_for_all(monkeypatch)
    with pytest.raises(AssertionError):
        check_throughput()


@pytest.mark.slow
def test_buffered_rounds_are_shown() -> None:
    speed = {row[0]: float(row[4]) for row in shown("buffered_rounds")}
    assert speed["FedBuff, K=10"] > speed["30 % beyond"] > speed["synchronous"] == 1


# ---- R2: periodic averaging -----------------------------------------------------------------------------------------


def check_round_times() -> None:
    """The contract: a round takes its uploads one after another, and before them at least the fastest's steps."""
    here, times = script("periodic_averaging"), {}
    data = here.odd()
    for tau in (2, 20):
        run = replace(here.job(rd.QSGD(levels=1, bucket=0), tau, data, 1), num_rounds=6, stopping=rd.Stopping())
        times[tau] = run.run().rows[-1]["virtual_s"] / 6
        sending = 25 * 201 / (4 * 785) * 100  # 25 times 201 bytes, of 3140 that take 100 s
        assert sending + tau / 2 < times[tau] < sending + tau * (1 / 2 + 3.816 / 2) + 1  # 3.816: of 25, the last


def nobody_queues(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fifo, "places", property(lambda self: None))


def bits_as_bytes(patch: pytest.MonkeyPatch) -> None:
    network = script("periodic_averaging").network()
    eighth = replace(network, cell=rd.network.Links(uplink_bps=network.cell.uplink_bps / 8, downlink_bps=1e15))
    patch.setattr(rd, "Network", lambda **_: eighth)


LINKS: dict[str, Planting] = {"nobody queues": nobody_queues, "bits as bytes": bits_as_bytes}


def test_rounds_take_what_their_bits_and_steps_take() -> None:
    check_round_times()


@pytest.mark.parametrize("plant", LINKS.values(), ids=LINKS)
def test_the_check_of_round_times_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_round_times()


@pytest.mark.slow
def test_the_best_period_is_neither_the_shortest_nor_the_longest() -> None:
    assert [row[-1] for row in shown("periodic_averaging")] == ["20"]

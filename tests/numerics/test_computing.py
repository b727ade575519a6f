"""What computing takes and costs, against closed forms, and devices from files."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from roundelay import seeds
from roundelay.components import build, describe, namespace
from roundelay.errors import ConfigError, DataError
from roundelay.simulation.network import capacities as capacities_file
from roundelay.simulation.network import devices
from roundelay.simulation.network.capacities import Capacity, read_capacities
from roundelay.simulation.network.devices import (
    Cycles,
    Device,
    Flops,
    HalfNormal,
    LogNormal,
    ShiftedExponential,
    Spent,
    TracedDevices,
    forward_flops_of,
)

Planting = Callable[[pytest.MonkeyPatch], None]
CLIENTS = [f"c{n}" for n in range(2000)]


def seconds(device: Device, num_samples: int, round: int = 1, clients: list[str] = CLIENTS) -> np.ndarray:
    return np.array([device.spent(5, round, 0, client, num_samples).seconds for client in clients])


# ---- cycles ---------------------------------------------------------------------------------------------------------


def check_cycles() -> None:
    """The contract: T = D C / f and E = kappa f^2 D C, for 500 samples of 2e4 cycles at 2 GHz: 5 ms and 4 mJ."""
    spent = Cycles(cycles_per_sample=2e4, frequency_hz=2e9, kappa=1e-28).spent(5, 1, 0, "a", 500)
    np.testing.assert_allclose(spent.seconds, 0.005)
    np.testing.assert_allclose(spent.energy_j, 1e-28 * 4e18 * 1e7)
    twice = Cycles(cycles_per_sample=2e4, frequency_hz=4e9, kappa=1e-28).spent(5, 1, 0, "a", 500)
    np.testing.assert_allclose([twice.seconds, twice.energy_j], [spent.seconds / 2, 4 * spent.energy_j])


def test_cycles() -> None:
    check_cycles()


CYCLES: dict[str, Callable[[Cycles, float, float], Spent]] = {
    "kappa f^3": lambda self, work, f: Spent(work / f, self.kappa * f**3 * work),
    "half of alpha": lambda self, work, f: Spent(work / f, self.kappa / 2 * f**2 * work),
    "frequency in MHz": lambda self, work, f: Spent(work / (f / 1e6), self.kappa * f**2 * work),
    "a gigahertz of 2^30": lambda self, work, f: Spent(work / (f * 2**30 / 1e9), self.kappa * f**2 * work),
    "energy by time": lambda self, work, f: Spent(work / f, self.kappa * f**2 * work / f),
}


@pytest.mark.parametrize("wrong", CYCLES.values(), ids=CYCLES)
def test_the_check_of_cycles_catches(
    wrong: Callable[[Cycles, float, float], Spent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(self: Cycles, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
        return wrong(self, num_samples * float(str(self.cycles_per_sample)), float(str(self.frequency_hz)))

    monkeypatch.setattr(Cycles, "spent", spent)
    with pytest.raises(AssertionError):
        check_cycles()


def test_each_device_has_a_speed_of_its_own_for_ever() -> None:
    device = Cycles(cycles_per_sample=(1e4, 3e4), frequency_hz=(1e9, 2e9))
    first = seconds(device, 100)
    np.testing.assert_array_equal(first, seconds(device, 100, round=9))
    np.testing.assert_allclose(seconds(device, 300), 3 * first)
    assert seconds(device, 100, clients=["c77"])[0] == first[77]
    only_speed = 100 * 1e4 / seconds(Cycles(cycles_per_sample=1e4, frequency_hz=(1e9, 2e9)), 100)
    assert stats.kstest(only_speed, "uniform", args=(1e9, 1e9)).pvalue > 1e-3
    only_work = seconds(Cycles(cycles_per_sample=(1e4, 3e4)), 1) * 1e9
    assert stats.kstest(only_work, "uniform", args=(1e4, 2e4)).pvalue > 1e-3
    assert abs(np.corrcoef(only_speed, only_work)[0, 1]) < 4.5 / math.sqrt(len(CLIENTS))


# ---- floating-point operations --------------------------------------------------------------------------------------


def test_forward_flops_are_counted_per_sample() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 20), torch.nn.BatchNorm1d(20), torch.nn.ReLU(), torch.nn.Linear(20, 5)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert forward_flops_of(model, torch.zeros(7, 10)) == 2 * (10 * 20 + 20 * 5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    conv = torch.nn.Conv2d(3, 8, 5)
    assert forward_flops_of(conv, torch.zeros(2, 3, 12, 12)) == 2 * (3 * 25) * 8 * 8 * 8


def test_flops() -> None:
    device = Flops(forward_flops=0.65e6, peak_flops_per_s=2e9, utilisation=0.5, power_w=3.0)
    spent = device.spent(5, 1, 0, "a", 1000)
    np.testing.assert_allclose([spent.seconds, spent.energy_j], [1.95, 5.85])
    spread = seconds(Flops(forward_flops=1e6, peak_flops_per_s=(1e9, 4e9), utilisation=1.0, factor=1.0), 1000)
    assert stats.kstest(1 / spread, "uniform", args=(1.0, 3.0)).pvalue > 1e-3


# ---- random durations -----------------------------------------------------------------------------------------------


def check_synchronous_round() -> None:
    """The contract: the last of K shifted exponentials comes at a D + D H_K / mu in the mean (K = 20: 2.7989)."""
    device, num_samples, clients = ShiftedExponential(least_s_per_sample=1.0, rate_per_s=2.0), 3, CLIENTS[:20]
    harmonic = sum(1 / k for k in range(1, 21))
    assert abs(1 + harmonic / 2 - 2.7989) < 1e-4
    rounds = [seconds(device, num_samples, round=number, clients=clients) for number in range(3000)]
    last = np.max(rounds, axis=1) / num_samples
    deviation = math.sqrt(sum(1 / k**2 for k in range(1, 21))) / 2
    assert abs(last.mean() - 2.7989) < 4.5 * deviation / math.sqrt(len(rounds))
    assert np.min(rounds) >= num_samples
    assert abs(np.mean(rounds) / num_samples - 1.5) < 4.5 * 0.5 / math.sqrt(np.size(rounds))


def test_a_synchronous_round_of_shifted_exponentials() -> None:
    check_synchronous_round()


def shifted(duration: Callable[[ShiftedExponential, float, int], float], fixed_round: bool = False) -> Planting:
    def plant(patch: pytest.MonkeyPatch) -> None:
        def spent(self: object, seed: int, round: int, attempt: int, client: str, num_samples: int) -> Spent:
            u = seeds.uniform(seed, 0 if fixed_round else round, attempt, client, "computing")
            return Spent(duration(self, -math.log(u), num_samples), 0.0)  # type: ignore[arg-type]

        patch.setattr(ShiftedExponential, "spent", spent)

    return plant


EXPONENTIALS: dict[str, Planting] = {
    "mu for 1/mu": shifted(lambda d, x, n: n * (d.least_s_per_sample + x * d.rate_per_s)),
    "no shift": shifted(lambda d, x, n: n * x / d.rate_per_s),
    "a shift of all for each sample": shifted(lambda d, x, n: d.least_s_per_sample + n * x / d.rate_per_s),
    "as many draws as samples": shifted(lambda d, x, n: n * (d.least_s_per_sample + (0.5 + x / 8) / d.rate_per_s)),
    "one draw for all rounds": shifted(lambda d, x, n: n * (d.least_s_per_sample + x / d.rate_per_s), fixed_round=True),
}


@pytest.mark.parametrize("plant", EXPONENTIALS.values(), ids=EXPONENTIALS)
def test_the_check_of_synchronous_rounds_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_synchronous_round()


def test_log_normal_and_half_normal() -> None:
    drawn = seconds(LogNormal(mean_s_per_sample=0.005, sigma=0.6), 1)
    assert stats.kstest(np.log(drawn), "norm", args=(math.log(0.005) - 0.18, 0.6)).pvalue > 1e-3
    np.testing.assert_array_equal(drawn, seconds(LogNormal(mean_s_per_sample=0.005, sigma=0.6), 1, round=2))
    per_task = LogNormal(mean_s_per_sample=0.005, sigma=0.6, per="task")
    assert abs(np.corrcoef(seconds(per_task, 1), seconds(per_task, 1, round=2))[0, 1]) < 0.1
    drawn = seconds(HalfNormal(scale_s=3.0), 500)
    assert stats.kstest(drawn, "halfnorm", args=(0, 3.0)).pvalue > 1e-3
    np.testing.assert_allclose(seconds(HalfNormal(scale_s=3.0, per="sample"), 500), 500 * drawn)
    assert HalfNormal(scale_s=2.0, power_w=3.0).spent(5, 1, 0, "a", 1).energy_j == 3 * seconds(
        HalfNormal(scale_s=2.0), 1, clients=["a"]
    )


ALL: list[Device] = [
    Cycles(cycles_per_sample=(1e4, 3e4)), Flops(forward_flops=1e6, peak_flops_per_s=(1e9, 2e9)),
    ShiftedExponential(least_s_per_sample=0.1, rate_per_s=3.0), LogNormal(per="task"), HalfNormal(scale_s=1.0),
]  # fmt: skip


@pytest.mark.parametrize("device", ALL, ids=lambda d: type(d).__name__)
def test_a_result_follows_from_its_key(device: Device) -> None:
    one = device.spent(1, 2, 0, "a", 10)
    assert one == device.spent(1, 2, 0, "a", 10)
    assert one.seconds > 0
    assert one != device.spent(2, 2, 0, "a", 10)
    assert one != device.spent(1, 2, 0, "b", 10)
    by_task = isinstance(device, ShiftedExponential | LogNormal | HalfNormal)
    assert (one != device.spent(1, 3, 0, "a", 10)) == (one != device.spent(1, 2, 1, "a", 10)) == by_task
    if not isinstance(device, HalfNormal):
        assert device.spent(1, 2, 0, "a", 0) == Spent(0, 0)
        with pytest.raises(ConfigError, match="a number of samples, at least 0; got -1"):
            device.spent(1, 2, 0, "a", -1)
    assert build(describe(device), namespace(devices), "device") == device


# ---- devices from files ---------------------------------------------------------------------------------------------

FEDSCALE = '{"7": {"computation": 30.0, "communication": 5000.0}, "8": {"computation": 100, "communication": 1}}'


def check_fedscale(folder: Path) -> None:
    """The contract: FedScale's times are milliseconds of a forward pass, of which training takes three; its links
    are in kbit/s.
    """
    expected = {"7": Capacity(0.09, 5e6), "8": Capacity(0.3, 1e3)}
    (folder / "devices.json").write_text(FEDSCALE)
    (folder / "devices.csv").write_text("client,computation,communication\n7,30.0,5000\n8,100,1\n")
    for name in ("devices.json", "devices.csv"):
        got = read_capacities(folder / name)
        assert set(got) == set(expected)
        for client, capacity in expected.items():
            assert math.isclose(got[client].seconds_per_sample, capacity.seconds_per_sample)
            assert got[client].link_bps == capacity.link_bps


def test_fedscales_devices(tmp_path: Path) -> None:
    check_fedscale(tmp_path)


TRACES: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "a forward pass only": lambda ms, kbps: (ms / 1000, kbps * 1000),
    "seconds for milliseconds": lambda ms, kbps: (3 * ms, kbps * 1000),
    "a kilobit of 1024": lambda ms, kbps: (3 * ms / 1000, kbps * 1024),
    "kilobytes": lambda ms, kbps: (3 * ms / 1000, kbps * 8000),
}


@pytest.mark.parametrize("wrong", TRACES.values(), ids=TRACES)
def test_the_check_of_fedscales_devices_catches(
    wrong: Callable[[float, float], tuple[float, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacities_file, "_fedscale", wrong)
    with pytest.raises(AssertionError):
        check_fedscale(tmp_path)


def test_plain_times_and_unknown_clients(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("client,seconds_per_sample\nc1,0.25\nc0,2\n")
    device = TracedDevices(path=str(path), power_w=2.0)
    assert device.spent(1, 1, 0, "c0", 10) == Spent(20.0, 40.0)
    assert device.capacity(1, "c1") == Capacity(0.25, None)
    with pytest.raises(ConfigError, match=r"times.csv: no device for client 'x'; unknown = \"draw\""):
        device.spent(1, 1, 0, "x", 10)
    drawing = TracedDevices(path=str(path), unknown="draw")
    drawn = seconds(drawing, 1, clients=[f"x{n}" for n in range(400)])
    assert set(drawn) == {0.25, 2.0}
    assert abs(np.mean(drawn == 2.0) - 0.5) < 0.11
    assert drawing.spent(1, 1, 0, "c1", 1).seconds == 0.25
    assert drawing.capacity(1, "x3") == drawing.capacity(1, "x3")
    assert build(describe(drawing), namespace(devices), "device") == drawing


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "client,time\na,1\n", "the heading lacks computation, communication"),
        ("d.csv", "client,seconds_per_sample\na,fast\n", "line 2: seconds_per_sample: expected a number, got 'fast'"),
        ("d.csv", "client,seconds_per_sample\na,-1\n", "client 'a': expected a time of at least 0"),
        ("d.csv", "client,seconds_per_sample\na,1\na,2\n", "client 'a' has two devices"),
        ("d.csv", "client,seconds_per_sample\n", "it holds no devices"),
        ("d.json", "[1, 2]", "expected {\"1\": {\"computation\""),
        ("d.json", '{"1": {"computation": 3}}', "expected {\"1\": {\"computation\""),
        ("d.json", '{"1": {"computation": NaN, "communication": 5}}', "client '1': expected a time of at least 0"),
        ("d.json", '{"1": {"computation": 5, "communication": 0}}', "and a link above 0"),
        ("d.json", "\x80\x04}", "expected {\"1\""),
    ],
)  # fmt: skip
def test_files_that_hold_no_devices(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        TracedDevices(path=str(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.csv", "none.json"):
        with pytest.raises(DataError, match="none"):
            TracedDevices(path=str(tmp_path / name))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cycles(cycles_per_sample=0), "Cycles: cycles_per_sample must be a positive number, or two of them"),
        (lambda: Cycles(cycles_per_sample=(3.0, 1.0)), "the smaller first, got \\(3.0, 1.0\\)"),
        (lambda: Cycles(cycles_per_sample=1, frequency_hz="fast"), "Cycles: frequency_hz must be a positive number"),
        (lambda: Flops(forward_flops=1, peak_flops_per_s=1, utilisation=1.5), "Flops: utilisation must be above 0"),
        (lambda: ShiftedExponential(least_s_per_sample=-1, rate_per_s=1), "least_s_per_sample must be at least 0"),
        (lambda: LogNormal(per="round"), "LogNormal: per must be one of 'client', 'task', got 'round'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

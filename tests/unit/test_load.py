"""What a machine measures of itself, and what it does where it cannot."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from roundelay.load import Load, measured


class Processors:
    """psutil, as far as it is used."""

    class Error(Exception):
        pass

    def __init__(self, cpu: float = 12.5, memory: float = 40.0, battery: Any = None) -> None:
        self._cpu, self._memory, self._battery = cpu, memory, battery
        self.intervals: list[float] = []

    def cpu_percent(self, interval: float) -> float:
        self.intervals.append(interval)
        return self._cpu

    def virtual_memory(self) -> Any:
        return SimpleNamespace(percent=self._memory)

    def sensors_battery(self) -> Any:
        if isinstance(self._battery, Exception):
            raise self._battery
        return self._battery


class Gpus:
    """pynvml, as far as it is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, *percents: int, fails: bool = False) -> None:
        self._percents, self._fails, self.num_open = percents, fails, 0

    def nvmlInit(self) -> None:
        if self._fails:
            raise self.NVMLError
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._percents)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if self._percents[handle] < 0:
            raise self.NVMLError
        return SimpleNamespace(gpu=self._percents[handle])


def with_packages(patch: pytest.MonkeyPatch, psutil: Any, pynvml: Any) -> None:
    patch.setitem(sys.modules, "psutil", psutil)  # None: it is not installed
    patch.setitem(sys.modules, "pynvml", pynvml)


def battery(percent: float, plugged: bool | None) -> Any:
    return SimpleNamespace(percent=percent, power_plugged=plugged)


@pytest.mark.parametrize(
    ("psutil", "pynvml", "expected"),
    [
        (None, None, Load()),
        (Processors(), None, Load(12.5, 40.0)),
        (Processors(100.4, -0.1), None, Load(100.0, 0.0)),
        (None, Gpus(3, 71), Load(gpu_percent=71.0)),
        (None, Gpus(), Load()),
        (None, Gpus(3, fails=True), Load()),
        (Processors(), Gpus(-1), Load(12.5, 40.0)),
        (Processors(battery=battery(55.0, False)), None, Load(12.5, 40.0, battery_percent=55.0)),
        (Processors(battery=battery(55.0, None)), None, Load(12.5, 40.0, battery_percent=55.0)),
        (Processors(battery=battery(55.0, True)), None, Load(12.5, 40.0)),
        (Processors(battery=FileNotFoundError()), None, Load(12.5, 40.0)),
        (Processors(battery=AttributeError()), None, Load(12.5, 40.0)),
    ],
)
def test_what_cannot_be_measured_is_unknown(
    psutil: Any, pynvml: Any, expected: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_packages(monkeypatch, psutil, pynvml)
    assert measured(0.25) == expected
    assert psutil is None or psutil.intervals == [0.25], "over a while: since the last call would be the last task's"
    assert pynvml is None or pynvml.num_open == 0


def test_this_machine_measures_itself() -> None:
    pytest.importorskip("psutil")
    load = measured(0.01)
    assert load.cpu_percent is not None
    assert load.memory_percent is not None
    assert 0 < load.memory_percent < 100

"""How many cores this machine has, and how busy a client's is: what it measures of itself, and what is believed of it.

Without the extra ``load`` (psutil, nvidia-ml-py) nothing is known, which is no error: a round counts what is known.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields

MEASURING_S = 0.5


def available_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Load:
    """Readings from 0 to 100; None: unknown. ``cpu_percent`` is that of all cores together, ``gpu_percent`` that of the
    busiest GPU; ``battery_percent`` is what is left of the battery that the machine runs on: unknown where it has none,
    or is plugged in.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    gpu_percent: float | None = None
    battery_percent: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value <= 100:
                raise ValueError(f"load: {name} must be from 0 to 100, or None where it is unknown, got {value!r}")

    @property
    def readings(self) -> dict[str, float]:
        """What is known, by name.

        >>> Load(cpu_percent=3.0).readings
        {'cpu_percent': 3.0}
        """
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def of(claimed: Mapping[str, float]) -> "Load":
        """Return what may be believed of a client's claim: what is no percentage is unknown, other names are ignored.

        >>> Load.of({"cpu_percent": 250.0, "memory_percent": 40.0, "loss": 1.0})
        Load(cpu_percent=None, memory_percent=40.0, gpu_percent=None, battery_percent=None)
        """
        names = (field.name for field in fields(Load))
        return Load(**{name: claimed[name] for name in names if 0 <= claimed.get(name, math.nan) <= 100})


IDLE = Load(cpu_percent=0.0, memory_percent=0.0, gpu_percent=0.0, battery_percent=100.0)


def measured(seconds: float = MEASURING_S) -> Load:
    """Return the load of this machine. Blocks for so many seconds, over which the processors are watched."""
    return Load(**_of_processors(seconds), gpu_percent=_of_gpus())


def _of_processors(seconds: float) -> dict[str, float | None]:
    try:
        import psutil  # optional: an extra
    except ImportError:
        return {}
    battery = None
    with suppress(AttributeError, OSError, RuntimeError, psutil.Error):  # not every system can tell
        battery = psutil.sensors_battery()
    return {
        "cpu_percent": _percent(psutil.cpu_percent(interval=seconds)),
        "memory_percent": _percent(psutil.virtual_memory().percent),
        "battery_percent": None if battery is None or battery.power_plugged else _percent(battery.percent),
    }


def _of_gpus() -> float | None:
    try:
        import pynvml  # optional: nvidia-ml-py, of the same extra
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return max((_percent(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in gpus), default=None)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # no driver, or one that does not tell
        return None


def _percent(value: float) -> float:
    """Rounding may lead a hair beyond."""
    return min(100.0, max(0.0, float(value)))

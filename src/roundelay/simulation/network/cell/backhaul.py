"""From the edge to the cloud: a wire behind the cell."""

from dataclasses import dataclass

from roundelay.errors import ConfigError
from roundelay.simulation.network.cell.cell import Cell
from roundelay.simulation.network.cell.rates import NS, Direction, PerHertz
from roundelay.simulation.network.cell.sharing import Dedicated, EqualShare
from roundelay.simulation.network.checks import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Backhaul:
    """A wire of ``rate_bps`` and ``latency_s``. What is ``shared`` goes at equal parts of the rate, else each message
    has the rate to itself. What a cell has delivered starts here at that nanosecond.
    """

    rate_bps: float
    latency_s: float = 0.0
    shared: bool = True

    def __post_init__(self) -> None:
        check_number(self, "rate_bps", above=0)
        check_number(self, "latency_s", least=0)
        if not isinstance(self.shared, bool):
            raise ConfigError(f"Backhaul: shared must be true or false, got {self.shared!r}")

    def line(self, direction: Direction = "up", now_ns: int = 0) -> Cell:
        return Cell(
            EqualShare() if self.shared else Dedicated(), PerHertz(), bandwidth_hz=self.rate_bps, direction=direction,
            delay_ns=round(self.latency_s * NS), now_ns=now_ns,
        )  # fmt: skip

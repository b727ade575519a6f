"""The rule that ``aggregator = "robust"`` chooses."""

from dataclasses import dataclass

from torch import Tensor

from roundelay.aggregators.clipping import NormBounding
from roundelay.aggregators.medians import GeometricMedian
from roundelay.aggregators.protocol import Updates, check_f, too_few


@dataclass(frozen=True, slots=True)
class Robust:
    """What to take where robustness is wanted and nothing else is known: norm bounding, then the geometric median.

    It keeps most of the accuracy where clients' data differ, which median, Krum and trimmed mean do not. For f < n/2.
    """

    f: int = 0

    def __post_init__(self) -> None:
        check_f(self, self.f)

    def shortfall(self, num_clients: int) -> str | None:
        return too_few(self, "2f + 1", 2 * self.f + 1, num_clients)

    def __call__(self, updates: Updates) -> Tensor:
        return NormBounding(then=GeometricMedian(self.f))(updates)

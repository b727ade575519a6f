"""What a server counts from its start, once, for all who ask how it is: ``/stats``, and Prometheus."""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

REQUEST_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SYNC_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
NO_ROUTE = "none"
CUT = "cut"
"""The status of a request whose client hung up before it was answered."""


class Durations:
    """How often something took how long, in seconds, by upper bounds. May be used from any thread."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """``bounds_s`` rise; what took longer than the last of them is counted too."""
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds_s, seconds)] += 1
            self._sum_s += seconds

    def cumulative(self) -> tuple[list[tuple[float, int]], float]:
        """Return for each bound, and for infinity, how many took no longer; and the sum of all, in seconds."""
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        pairs, so_far = list[tuple[float, int]](), 0
        for bound_s, count in zip((*self._bounds_s, float("inf")), counts, strict=True):
            so_far += count
            pairs.append((bound_s, so_far))
        return pairs, sum_s


@dataclass(slots=True)
class Meters:
    """All belongs to the loop of the front; others may read. ``disk_failed`` is whether the last write to the journal
    failed; ``answers`` are by verdict, ``refused`` by the error that was said, ``served`` by route and status.
    """

    begun: float = field(default_factory=time.monotonic)
    requests: int = 0
    in_flight: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    disk_failed: bool = False
    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    served: Counter[tuple[str, str]] = field(default_factory=Counter)
    took: dict[str, Durations] = field(default_factory=lambda: defaultdict(lambda: Durations(REQUEST_BOUNDS_S)))

    def end(self, route: str, status: str, seconds: float) -> None:
        """Count a request that has come to its end."""
        self.served[route, status] += 1
        self.took[route].add(seconds)

"""Metrics that add up: sums and counts while they travel, means, variances and worst deciles when they are read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from torch import Tensor

from roundelay.errors import MetricError

COLUMNS = (
    "round", "attempt", "admitted", "refused", "lost", "late", "silent", "bytes_down", "bytes_up", "seconds",
    "virtual_s", "epsilon", "clip_norm", "gathered_bytes", "kept_model", "ready", "waits",
)  # fmt: skip
"""What a round's row holds beside metrics, which must not bear these names."""


Rows = Mapping[str, Tensor]
"""What measures of whole sets keep of a part, by measure: (R, K) float64 each, to be put together with other parts'."""


def scalar(name: str, value: object) -> float:
    """Return ``value`` as a float; Python, numpy and one-element torch numbers are accepted.

    >>> scalar("loss", 3)
    3.0

    Raises:
        MetricError: the value is nested, text, or has several elements; the message names the metric.
    """
    if type(value) is float:
        return value
    if isinstance(value, Mapping | list | tuple | set):
        raise MetricError(
            f"metric {name!r} is a {type(value).__name__}; a metric is one number, give each part a name of its own"
        )
    size = getattr(value, "numel", None) or getattr(value, "size", None)
    count = size() if callable(size) else size
    if isinstance(count, int) and count != 1:
        raise MetricError(f"metric {name!r} has {count} elements; a metric is one number")
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, str | bytes | complex) or not isinstance(number, SupportsFloat):
        raise MetricError(f"metric {name!r} is {number!r} ({type(value).__name__}); a metric is one number")
    return float(number)


def scalars(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return every metric as a float, by name; see ``scalar``."""
    for name in metrics:
        if not isinstance(name, str):
            raise MetricError(f"metric name {name!r} is a {type(name).__name__}, not a string")
    return {name: scalar(name, value) for name, value in metrics.items()}


def reported(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what a client reported of its training, under names that nothing else has: "train_" before each.

    >>> reported({"accuracy": 0.5, "train_loss": 1.0})
    {'train_accuracy': 0.5, 'train_loss': 1.0}
    """
    return {name if name.startswith("train_") else f"train_{name}": value for name, value in metrics.items()}


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of per-example values, with the number of examples: the exact way to merge evaluations of different parts.

    >>> whole = Sums({"accuracy": 9.0}, 10) + Sums({"accuracy": 40.0}, 90)
    >>> whole.means()
    {'accuracy': 0.49}
    """

    totals: Mapping[str, float]
    count: int

    def __add__(self, other: "Sums") -> "Sums":
        if self.totals.keys() != other.totals.keys() and self.count and other.count:
            raise MetricError(f"cannot merge metrics {sorted(self.totals)} with {sorted(other.totals)}")
        names = self.totals or other.totals
        totals = {name: self.totals.get(name, 0.0) + other.totals.get(name, 0.0) for name in names}
        return Sums(totals, self.count + other.count)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over all examples; of no examples, nothing."""
        return {name: total / self.count for name, total in self.totals.items()} if self.count else {}


@dataclass(frozen=True, slots=True)
class ClientTable:
    """One row per client: its weight (examples) and its metrics. A metric that a client lacks, or reports as NaN, is
    left out.
    """

    clients: Sequence[str]
    weights: Sequence[float]
    rows: Sequence[Mapping[str, float]]

    def names(self) -> list[str]:
        return sorted({name for row in self.rows for name in row})

    def weighted_mean(self, name: str) -> float:
        """Return the mean weighted by examples; NaN where no client reports it."""
        pairs = [(w, row[name]) for w, row in zip(self.weights, self.rows, strict=True) if _has(row, name)]
        total = math.fsum(w for w, _ in pairs)
        return math.fsum(w * v for w, v in pairs) / total if total else math.nan

    def variance(self, name: str) -> float:
        """Return the population variance over clients, each counted once."""
        values = self._values(name)
        if not values:
            return math.nan
        mean = math.fsum(values) / len(values)
        return math.fsum((v - mean) ** 2 for v in values) / len(values)

    def worst_decile(self, name: str, higher_is_better: bool) -> float:
        """Return the mean over the worst tenth of the clients (at least one), each counted once."""
        values = sorted(self._values(name), reverse=not higher_is_better)
        worst = values[: max(1, len(values) // 10)]
        return math.fsum(worst) / len(worst) if worst else math.nan

    def _values(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if _has(row, name)]


def weighted_means(rows: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return every metric's mean under the rows' weights. Values that are not finite are left out."""
    pairs = list(rows)
    table = ClientTable([""] * len(pairs), [w for w, _ in pairs], [row for _, row in pairs])
    return {name: mean for name in table.names() if math.isfinite(mean := table.weighted_mean(name))}


def _has(row: Mapping[str, float], name: str) -> bool:
    return name in row and math.isfinite(row[name])


def higher_is_better(metric: str, better: str | None = None) -> bool:
    """Tell which values of a metric are better: as ``better`` says, "higher" or "lower"; None: by the name. Losses,
    errors and distances are better when lower, everything else when higher.

    >>> higher_is_better("accuracy"), higher_is_better("val_loss"), higher_is_better("seconds", "lower")
    (True, False, False)
    """
    if better is not None:
        return better == "higher"
    return not any(word in metric.lower() for word in ("loss", "error", "perplexity", "mae", "mse", "rmse"))

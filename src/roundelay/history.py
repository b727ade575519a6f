"""What a run gives to its caller: each finished round, and in the end its history."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from roundelay.errors import ConfigError
from roundelay.federation import Version
from roundelay.intake import ClientReport
from roundelay.layout import Layout
from roundelay.metrics import higher_is_better
from roundelay.tracking.run_folder import Row, read_rows


@dataclass(frozen=True, slots=True)
class Round:
    """One finished round: its row of the table, what became of each client, and the model that it led to.

    ``clients`` has one report per client and attempt, then one per client that evaluated on its own data.
    """

    number: int
    row: Row
    clients: Sequence[ClientReport]
    _version: Version
    _layout: Layout
    _frozen: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The row's numbers by name: accuracy, loss, train_loss, bytes_up, seconds, ..."""
        return {name: float(value) for name, value in self.row.items() if isinstance(value, int | float)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the global model after this round, for ``load_state_dict``: what is shared, and what is frozen, which
        is the same in every round. What ``keep_local`` names is on the clients.
        """
        return {**self._layout.unflatten(self._version.vectors), **self._frozen}


@dataclass(frozen=True, slots=True)
class History:
    """What a run came to: ``rows`` is the per-round table, ``model`` the final global model, ``sha256`` its hash.

    ``records`` holds what a workflow kept beside the rounds, by name: "cross_site" of ``CrossSite``. ``trace_hash`` is
    that of every message and computation where a network was modelled.
    """

    rows: Sequence[Row]
    model: nn.Module
    sha256: str
    run_folder: Path | None
    stopped: str
    records: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    trace_hash: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every number that was recorded."""
        merged: dict[str, float] = {}
        for row in self.rows:
            merged.update({k: float(v) for k, v in row.items() if isinstance(v, int | float)})
        return merged

    def best(self, metric: str) -> float:
        """Return the best value of a metric over all rounds; NaN where it was never recorded."""
        return best_of((row[metric] for row in self.rows if row.get(metric) is not None), metric)

    def clients(self) -> list[dict[str, Any]]:  # Any: see Row
        """Return the per-client table, one row per client and round, read from the run folder."""
        if self.run_folder is None:
            raise ConfigError("the per-client table is kept in the run folder, and this job has tracking = None")
        return read_rows(self.run_folder / "clients.jsonl")


def best_of(values: Any, metric: str, better: str | None = None) -> float:  # Any: floats, NaN and None among them
    """Return the best finite value, by the metric's direction; NaN of none."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    return (max if higher_is_better(metric, better) else min)(finite) if finite else math.nan

"""How well a model does on examples: the loss and measures of each example, whose means add up over parts of a data
set, and measures of whole sets, which keep what they need of each part until all parts are together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from roundelay.data.examples import Examples
from roundelay.errors import ConfigError, MetricError
from roundelay.layout import Bound
from roundelay.learner.protocol import LossFunction, on_device
from roundelay.metrics import Rows, Sums, scalar

Metric = Callable[[Any, Any], Tensor]
"""``metric(outputs, targets)`` gives one value per example, of shape (B,)."""

LOSS = "loss"


@runtime_checkable
class Whole(Protocol):
    """A measure that is no mean over examples, such as a macro-averaged F1: it turns each batch into rows of ``width``
    numbers, and all rows together into metrics. Rows of a data set's parts, one after the other, are those of the
    whole, which makes it exact wherever the parts lie.

    ``summed`` says that only the sum of the rows matters, as of counts: one row then stands for any number of them.
    """

    @property
    def width(self) -> int: ...

    @property
    def summed(self) -> bool: ...

    def rows(self, outputs: Any, targets: Any) -> Tensor:  # Any: what the model returns and the data holds
        """Return (R, ``width``) float64 of a batch, on any device."""

    def result(self, rows: Tensor) -> Mapping[str, float]:
        """Return the metrics of all rows, (R, ``width``) float64 on the CPU, by name. The names do not depend on the
        rows: of none, each is NaN, or what it is of nothing.
        """


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found on one part of a data set, or on several: sums over examples, and rows by measure."""

    sums: Sums = Sums({}, 0)
    rows: Rows = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured beside the loss: of each example, by name, and of whole sets, by the name of the measure."""

    each: Mapping[str, Metric] = field(default_factory=dict)
    whole: Mapping[str, Whole] = field(default_factory=dict)

    @classmethod
    def of(cls, measures: Sequence[Metric | Whole]) -> "Measures":
        """Put measures together under their names.

        Raises:
            ConfigError: two would write the same metric.
        """
        whole = {f"{type(one).__name__}{number}": one for number, one in enumerate(measures) if isinstance(one, Whole)}
        each = {getattr(one, "__name__", repr(one)): one for one in measures if not isinstance(one, Whole)}
        made = cls(each, whole)
        twice = sorted(name for name in set(made.names) if made.names.count(name) > 1)
        if twice:
            raise ConfigError(f"two measures write the metric {twice[0]!r}: leave one of them out")
        return made

    @property
    def names(self) -> list[str]:
        """The metrics that come of it."""
        return [LOSS, *self.each, *self.names_of_whole_sets]

    @property
    def names_of_whole_sets(self) -> list[str]:
        nothing = [(one, torch.zeros(int(one.summed), one.width, dtype=torch.float64)) for one in self.whole.values()]
        return [name for measure, rows in nothing for name in measure.result(rows)]

    def metrics(self, measured: Measured) -> dict[str, float]:
        """Return every metric of what was found, by name; of no examples, nothing."""
        if not measured.sums.count:
            return {}
        return measured.sums.means() | self._results(measured.rows)

    def pooled(self, parts: Sequence[Rows]) -> dict[str, float]:
        """Return the metrics of whole sets over several parts, in their order: exactly those of the parts in one."""
        together = {name: [part[name] for part in parts if name in part] for name in self.whole}
        if not all(together.values()):
            return {}
        return self._results({name: self._merged(name, rows) for name, rows in together.items()})

    def checked(self, rows: Rows) -> Rows:
        """Return rows that came from elsewhere, if they are what these measures make.

        Raises:
            MetricError: they are not; says which.
        """
        if rows.keys() - self.whole.keys():
            raise MetricError(f"rows of {sorted(rows.keys() - self.whole.keys())[0]!r}, which is not measured here")
        for name, measure in self.whole.items():
            if name not in rows:
                raise MetricError(f"rows of {name!r} are missing")
            found = rows[name]
            fits = found.ndim == 2 and found.shape[1] == measure.width and (len(found) == 1 or not measure.summed)
            if found.dtype != torch.float64 or not fits or not bool(found.isfinite().all()):
                expected = f"({'1' if measure.summed else 'R'}, {measure.width}) finite float64"
                raise MetricError(f"rows of {name!r}: expected {expected}, got {tuple(found.shape)} {found.dtype}")
        return rows

    def gathered(self, found: Mapping[str, Sequence[Tensor]]) -> Rows:
        """Return each measure's rows of all batches as one tensor on the CPU."""
        return {name: self._merged(name, found[name]) for name in self.whole}

    def _merged(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        measure = self.whole[name]
        together = torch.cat([one.double().cpu() for one in rows]) if rows else torch.zeros(0, measure.width).double()
        if together.ndim != 2 or together.shape[1] != measure.width:
            raise MetricError(f"{name}: expected rows of {measure.width} numbers, got shape {tuple(together.shape)}")
        return together.sum(0, keepdim=True) if measure.summed else together

    def _results(self, rows: Rows) -> dict[str, float]:
        return {
            name: scalar(name, value)
            for key, measure in self.whole.items()
            for name, value in measure.result(rows[key]).items()
        }


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the largest output (B, classes) is the target (B,), else 0."""
    return (outputs.argmax(-1) == targets).float()


@torch.no_grad()
def evaluate(bound: Bound, examples: Examples, loss: LossFunction, measures: Measures, batch_size: int) -> Measured:
    """Return what the loss and every measure find on ``examples``, in evaluation mode, in the examples' order."""
    bound.module.eval()
    totals: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.float64) for name in (LOSS, *measures.each)}
    rows: dict[str, list[Tensor]] = {name: [] for name in measures.whole}
    for inputs, targets in examples.batches(torch.arange(len(examples)), batch_size):
        inputs, targets = on_device(inputs, bound.device), on_device(targets, bound.device)
        outputs = bound.module(inputs)
        totals[LOSS] += loss(outputs, targets).double().cpu() * len(targets)
        for name, measure in measures.each.items():
            totals[name] += measure(outputs, targets).double().sum().cpu()
        for name, whole in measures.whole.items():
            rows[name].append(whole.rows(outputs, targets).double().cpu())
    sums = Sums({name: total.item() for name, total in totals.items()}, len(examples))
    return Measured(sums, measures.gathered(rows))

"""Measures of whole sets: wherever the parts lie, together they are measured as one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from networks import examples, small_job
from torch import Tensor

import roundelay as rd
from roundelay.errors import ConfigError, MetricError
from roundelay.learner import MacroF1, Measures, accuracy

executors = pytest.mark.parametrize(
    "simulation", [rd.Simulation("serial"), rd.Simulation("processes", num_workers=2)], ids=["serial", "processes"]
)


@dataclass(frozen=True)
class Median:
    """The median margin of the largest output over the next, which no sum tells."""

    width: int = 1
    summed: bool = False

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        top = outputs.topk(2, dim=-1).values
        return (top[:, :1] - top[:, 1:]).double()

    def result(self, rows: Tensor) -> Mapping[str, float]:
        return {"margin": rows.median().item() if len(rows) else math.nan}


def job(num_clients: int, **changes: object) -> rd.Job:
    measures = (accuracy, MacroF1(num_classes=3), Median())
    return small_job(
        data=rd.Data(examples(90), examples(30, seed=8)),
        partition=rd.Shards(num_clients=num_clients, shards_per_client=1),
        num_rounds=2, evaluation=rd.Evaluation(every=1, clients_every=1, measures=measures), **changes,
    )  # fmt: skip


def by_hand(given: rd.Job, state: dict[str, Tensor], part: rd.data.Examples) -> dict[str, float]:
    model = given.model()
    model.load_state_dict(state)
    model.eval()
    inputs, targets = next(part.batches(torch.arange(len(part)), len(part)))
    with torch.no_grad():
        outputs = model(inputs)
    f1 = []
    for label in range(3):
        said, is_it = outputs.argmax(-1) == label, targets == label
        hits = int((said & is_it).sum())
        if int(said.sum()) + int(is_it.sum()):
            f1.append(2 * hits / (int(said.sum()) + int(is_it.sum())))
    top = outputs.topk(2, dim=-1).values
    return {"macro_f1": sum(f1) / len(f1), "margin": (top[:, 0] - top[:, 1]).double().median().item()}


@executors
def test_over_clients_they_are_those_of_all_examples_together(simulation: rd.Simulation) -> None:
    given = job(6, clients_per_round=3, simulation=simulation)
    *_, last = given.rounds()
    whole = examples(90)
    expected = by_hand(given, last.state_dict(), whole)
    assert {name: last.metrics[f"pooled_{name}"] for name in expected} == pytest.approx(expected)
    assert last.metrics["client_macro_f1"] < last.metrics["pooled_macro_f1"]  # a shard has one class
    held_out = by_hand(given, last.state_dict(), examples(30, seed=8))
    assert {name: last.metrics[name] for name in held_out} == pytest.approx(held_out)
    own = {r.client: r.metrics["macro_f1"] for r in last.clients if r.status == "evaluated"}
    assert len(own) == 6
    assert len(set(own.values())) > 1


def test_of_one_client_they_are_those_of_central_evaluation_to_the_bit() -> None:
    given = replace(
        job(1, clients_per_round=1), data=rd.Data(examples(90), examples(90)), partition=rd.IID(num_clients=1)
    )
    for one in given.rounds():
        assert one.metrics["pooled_macro_f1"] == one.metrics["macro_f1"]
        assert one.metrics["pooled_margin"] == one.metrics["margin"]


@pytest.mark.parametrize("metric", ["macro_f1", "client_macro_f1", "pooled_macro_f1", "pooled_margin"])
def test_a_run_can_stop_by_them(metric: str) -> None:
    history = replace(job(6, clients_per_round=3), stopping=rd.Stopping(metric=metric, target=-1.0)).run()
    assert len(history.rows) == 1
    assert history.stopped.startswith(metric)


def test_two_measures_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two measures write the metric 'macro_f1'"):
        Measures.of([MacroF1(num_classes=3), MacroF1(num_classes=2)])


def test_a_class_that_is_neither_there_nor_said_is_left_out() -> None:
    measure = MacroF1(num_classes=3)
    outputs, targets = torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1])
    assert measure.result(measure.rows(outputs, targets)) == {"macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2)}
    assert math.isnan(measure.result(torch.zeros(1, 9, dtype=torch.float64))["macro_f1"])


STRANGE: Mapping[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "of another measure": (lambda rows: {**rows, "Other0": torch.zeros(1, 1).double()}, "'Other0', which is not measu"),
    "one left out": (lambda rows: {"MacroF10": rows["MacroF10"]}, "'Median1' are missing"),
    "too wide": (lambda rows: {**rows, "Median1": torch.zeros(4, 2).double()}, r"\(R, 1\) finite float64, got \(4, 2"),
    "not summed": (lambda rows: {**rows, "MacroF10": torch.zeros(2, 9).double()}, r"\(1, 9\) finite float64, got \(2"),
    "of another type": (lambda rows: {**rows, "Median1": torch.zeros(4, 1)}, "got .* torch.float32"),
    "not finite": (lambda rows: {**rows, "Median1": torch.full((1, 1), math.nan).double()}, "finite"),
    "flat": (lambda rows: {**rows, "Median1": torch.zeros(4).double()}, r"got \(4,\)"),
}


@pytest.mark.parametrize(("changed", "reason"), STRANGE.values(), ids=STRANGE)
def test_rows_that_are_not_what_is_measured_are_refused(
    changed: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    measures = Measures.of([MacroF1(num_classes=3), Median()])
    rows = {"MacroF10": torch.ones(1, 9).double(), "Median1": torch.ones(4, 1).double()}
    assert measures.checked(rows) == rows
    with pytest.raises(MetricError, match=reason):
        measures.checked(changed(rows))

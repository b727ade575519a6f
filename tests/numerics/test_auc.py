"""The area under the ROC curve: the share of pairs in the right order, whoever holds the pairs."""

import math

import pytest
import torch
from networks import examples, small_job
from torch import Tensor

import roundelay as rd
from roundelay.errors import ConfigError, MetricError
from roundelay.learner import AUC


def by_pairs(scores: Tensor, positive: Tensor) -> float:
    """Count pairs, one after the other."""
    pairs = [(high, low) for high in scores[positive].tolist() for low in scores[~positive].tolist()]
    return sum(1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs) / len(pairs)


def auc(outputs: Tensor, targets: Tensor, positive: int = 1) -> float:
    measure = AUC(positive)
    return measure.result(measure.rows(outputs, targets))["auc"]


@pytest.mark.parametrize("ties", [0, 1, 5], ids=["no ties", "few ties", "many ties"])
def test_it_is_the_share_of_pairs_in_the_right_order_and_ties_count_half(ties: int) -> None:
    generator = torch.Generator().manual_seed(ties)
    targets = (torch.rand(60, generator=generator) < 0.3).long()
    outputs = torch.randn(60, 2, generator=generator).double()
    if ties:
        outputs = (outputs * 5 / ties).round()
    odds = outputs[:, 1] - outputs[:, 0]
    assert auc(outputs, targets) == pytest.approx(by_pairs(odds, targets == 1), abs=1e-12)
    assert auc(odds, targets) == auc(odds[:, None], targets) == auc(outputs, targets)
    assert auc(outputs, targets, positive=0) == pytest.approx(auc(outputs, targets), abs=1e-12)
    assert auc(-odds, targets) == pytest.approx(1 - auc(odds, targets), abs=1e-12)


def test_among_several_classes_one_is_held_against_the_rest_by_its_probability() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs, targets = torch.randn(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    for positive in range(4):
        wanted = by_pairs(outputs.double().softmax(1)[:, positive], targets == positive)
        assert auc(outputs, targets, positive) == pytest.approx(wanted, abs=1e-12)


def test_of_one_kind_alone_and_of_nothing_it_is_no_number() -> None:
    outputs = torch.randn(5, 2)
    assert math.isnan(auc(outputs, torch.ones(5, dtype=torch.int64)))
    assert math.isnan(auc(outputs, torch.zeros(5, dtype=torch.int64)))
    assert math.isnan(AUC().result(torch.zeros(0, 2).double())["auc"])


def test_what_it_cannot_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match="AUC positive must be a class, 0 or more, got -1"):
        AUC(-1)
    with pytest.raises(MetricError, match=r"AUC of class 3: expected scores .* got \(5, 3\) and \(5,\)"):
        auc(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), positive=3)


def test_pooled_over_clients_it_is_that_of_all_their_examples_and_no_mean_of_theirs() -> None:
    parts = {name: examples(12, seed=number) for number, name in enumerate("abc")}
    job = small_job(
        data=rd.FederatedData.from_datasets(parts), partition=None, num_rounds=1, clients_per_round=3,
        evaluation=rd.Evaluation(clients_every=1, measures=(AUC(),)),
    )  # fmt: skip
    (finished,) = job.rounds()
    model = job.model()  # type: ignore[operator]
    model.load_state_dict(finished.state_dict())
    model.eval()
    with torch.no_grad():
        batches = [next(part.batches(torch.arange(12), 12)) for part in parts.values()]
        outputs, targets = torch.cat([model(inputs) for inputs, _ in batches]), torch.cat([t for _, t in batches])
    assert finished.metrics["pooled_auc"] == pytest.approx(auc(outputs, targets), abs=1e-9)
    own = [auc(model(inputs).detach(), labels) for inputs, labels in batches]
    assert finished.metrics["client_auc"] == pytest.approx(sum(own) / 3, abs=1e-9)
    assert abs(finished.metrics["pooled_auc"] - sum(own) / 3) > 1e-4

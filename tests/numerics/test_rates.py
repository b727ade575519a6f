"""Rates by class and the weighted loss, against counts and sums made by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from roundelay.errors import ConfigError
from roundelay.learner import ClassRates, MacroF1, WeightedCrossEntropy

PREDICTED = torch.tensor([0, 0, 1, 1, 1, 2, 0])
TARGETS = torch.tensor([0, 1, 1, 1, 0, 2, 2])


def test_rates_are_those_counted_by_hand_however_the_examples_come_apart():
    measure = ClassRates(num_classes=3)
    outputs = F.one_hot(PREDICTED, 3).float()
    whole = measure.result(measure.rows(outputs, TARGETS))
    assert whole == pytest.approx({
        "recall_0": 1 / 2, "recall_1": 2 / 3, "recall_2": 1 / 2,
        "precision_0": 1 / 3, "precision_1": 2 / 3, "precision_2": 1.0,
        "balanced_accuracy": (1 / 2 + 2 / 3 + 1 / 2) / 3,
    })  # fmt: skip
    parts = [measure.rows(outputs[:3], TARGETS[:3]), measure.rows(outputs[3:], TARGETS[3:])]
    assert measure.result(torch.cat(parts)) == whole
    assert torch.equal(sum(parts), MacroF1(num_classes=3).rows(outputs, TARGETS))


def test_a_rate_of_nothing_is_no_rate():
    measure = ClassRates(num_classes=3)
    found = measure.result(measure.rows(F.one_hot(torch.tensor([0, 1]), 3).float(), torch.tensor([0, 0])))
    assert math.isnan(found["recall_1"])
    assert math.isnan(found["precision_2"])
    assert found["precision_1"] == 0.0
    assert found["balanced_accuracy"] == 0.5, "of the one class that is there"
    assert all(math.isnan(value) for value in measure.result(torch.zeros(1, 9).double()).values())
    with pytest.raises(ConfigError, match="num_classes must be at least 2"):
        ClassRates(num_classes=1)


def test_a_weighted_loss_counts_a_class_so_many_times_and_adds_up_over_batches():
    outputs, targets = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), TARGETS
    weights = [1.0, 4.0, 0.5]
    loss = WeightedCrossEntropy(weights)
    by_hand = sum(weights[t] * -outputs[n].log_softmax(0)[t] for n, t in enumerate(targets.tolist())) / 7
    torch.testing.assert_close(loss(outputs, targets), by_hand)
    split = (2 * loss(outputs[:2], targets[:2]) + 5 * loss(outputs[2:], targets[2:])) / 7
    torch.testing.assert_close(split, by_hand)
    assert torch.equal(WeightedCrossEntropy([1.0] * 3)(outputs, targets), F.cross_entropy(outputs, targets))


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.inf], [1.0, math.nan]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ConfigError, match="a positive number for each class"):
        WeightedCrossEntropy(weights)

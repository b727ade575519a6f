"""The loss and the measure over positions of a sequence: each token counts once, padding never."""

import math

import pytest
import torch

from roundelay.data.text_windows import IGNORED
from roundelay.learner import Measured, Measures, NextToken, sequence_cross_entropy
from roundelay.models import CharLSTM


def sequences(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (B, 5, 7), and targets of which the last ones of each sequence, a number at random, are padding."""
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(num, 5, 7, generator=generator), torch.randint(7, (num, 5), generator=generator)
    lengths = torch.randint(6, (num, 1), generator=generator)
    return outputs, targets.masked_fill(torch.arange(5) >= lengths, IGNORED)


def by_hand(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float, int]:
    """Sum of losses, number of hits, number of tokens, one token after the other."""
    loss, hits, tokens = 0.0, 0.0, 0
    for rows, wanted in zip(outputs.double(), targets, strict=True):
        for row, target in zip(rows, wanted.tolist(), strict=True):
            if target != IGNORED:
                loss -= math.log(row.exp()[target] / row.exp().sum())
                hits += int(row.argmax()) == target
                tokens += 1
    return loss, hits, tokens


def test_the_loss_is_the_mean_over_tokens() -> None:
    outputs, targets = sequences(8, seed=1)
    loss, _, tokens = by_hand(outputs, targets)
    assert sequence_cross_entropy(outputs, targets).item() == pytest.approx(loss / tokens, rel=1e-5)
    last, next_ones = outputs[:, 0], targets[:, 0].clamp(min=0)
    torch.testing.assert_close(
        sequence_cross_entropy(last, next_ones), torch.nn.functional.cross_entropy(last, next_ones)
    )


def test_padding_alone_costs_nothing_and_moves_nothing() -> None:
    outputs = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = sequence_cross_entropy(outputs, torch.full((2, 5), IGNORED))
    loss.backward()
    assert loss.item() == 0.0
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_the_accuracy_is_over_tokens_not_over_batches_or_clients() -> None:
    measure = NextToken()
    parts = [sequences(num, seed=num) for num in (1, 2, 8)]
    _, hits, tokens = by_hand(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    rows = torch.cat([measure.rows(*part) for part in parts])
    assert rows.dtype == torch.float64
    assert measure.result(rows) == {"token_accuracy": hits / tokens}
    measures = Measures.of([measure])
    pooled = measures.pooled([{"NextToken0": row[None]} for row in rows])
    assert pooled == {"token_accuracy": hits / tokens}
    assert measures.names == ["loss", "token_accuracy"]
    assert measures.metrics(Measured()) == {}


def test_of_no_token_there_is_no_accuracy() -> None:
    measure = NextToken()
    assert math.isnan(measure.result(measure.rows(torch.randn(1, 3, 4), torch.full((1, 3), IGNORED)))["token_accuracy"])


def test_the_character_model_sees_what_came_before_and_nothing_after() -> None:
    torch.manual_seed(1)
    model = CharLSTM(20, hidden_size=8)
    characters = torch.randint(20, (3, 10))
    changed = characters.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 20
    before, after = model(characters), model(changed)
    assert before.shape == (3, 10, 20)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(-1).all()
    model.every_position = False
    torch.testing.assert_close(model(characters), before[:, -1])


@pytest.mark.parametrize(("size", "num_parameters"), [(90, 822_570), (80, 819_920)])
def test_the_character_model_has_the_published_size(size: int, num_parameters: int) -> None:
    sizes = {name: p.numel() for name, p in CharLSTM(size).named_parameters()}
    assert sum(sizes.values()) == num_parameters
    second_biases = sizes["lstm.bias_hh_l0"] + sizes["lstm.bias_hh_l1"]
    keras = 8 * size + 4 * 256 * (8 + 256 + 1) + 4 * 256 * (256 + 256 + 1) + (256 + 1) * size
    assert num_parameters - second_biases == keras

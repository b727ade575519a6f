"""Images kept a byte a value: the bits of normalising them all at once, and nothing of the base in a view's pickle."""

import pickle

import pytest
import torch
from torch import Tensor

from roundelay.data import PixelExamples, TensorExamples, examples
from roundelay.errors import ConfigError, DataError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def stored(number: int = 50) -> TensorExamples:
    generator = torch.Generator().manual_seed(1)
    return TensorExamples(
        torch.randint(256, (number, 3, 7, 5), generator=generator, dtype=torch.uint8), torch.arange(number) % 10
    )


def all_at_once(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


@pytest.mark.parametrize("block_bytes", [1, 9 * 3 * 7 * 5 * 4, 2**22])
def test_batches_have_the_bits_of_normalising_everything_at_once(monkeypatch, block_bytes):
    monkeypatch.setattr(examples, "BLOCK_BYTES", block_bytes)
    base = stored()
    part = PixelExamples(base, MEAN, STD).select(torch.arange(49, 0, -1)).select(torch.arange(40))
    wanted, order = all_at_once(base.inputs), torch.randperm(40, generator=torch.Generator().manual_seed(3))
    found = list(part.batches(order, 4))
    assert [len(targets) for _, targets in found] == [4] * 10
    assert torch.equal(torch.cat([inputs for inputs, _ in found]), wanted[49 - order])
    assert torch.cat([targets for _, targets in found]).tolist() == ((49 - order) % 10).tolist()
    assert found[0][0].dtype == torch.float32
    assert found[0][0].untyped_storage().nbytes() <= max(block_bytes, 4 * 3 * 7 * 5 * 4)
    assert torch.equal(part[3][0], wanted[46])
    assert part.labels().tolist() == [(49 - at) % 10 for at in range(40)]


def test_a_view_takes_only_its_own_images_along():
    part = PixelExamples(stored(2000), MEAN, STD).select(torch.tensor([3, 1]))
    content = pickle.dumps(part)
    assert len(content) < 3000
    assert torch.equal(
        next(pickle.loads(content).batches(torch.arange(2), 2))[0], next(part.batches(torch.arange(2), 2))[0]
    )


def test_what_it_holds_is_checked():
    with pytest.raises(DataError, match=r"expected uint8 of shape \(N, C, H, W\), got torch.float32"):
        PixelExamples(TensorExamples(torch.zeros(2, 3, 4, 4), torch.zeros(2)), MEAN, STD)
    with pytest.raises(DataError, match="mean: expected 3 numbers, one for each channel, got 1"):
        PixelExamples(stored(), (0.5,), STD)
    with pytest.raises(DataError, match="std: expected numbers above 0"):
        PixelExamples(stored(), MEAN, (0.5, 0.5, 0.0))
    part = PixelExamples(stored(), MEAN, STD)
    with pytest.raises(ConfigError, match="batch_size"):
        part.batches(torch.arange(3), 0)
    with pytest.raises(DataError, match="order"):  # at once, not with the first batch
        part.batches(torch.tensor([50]), 2)

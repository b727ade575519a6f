"""Crops, flips and normalisation: each image's own, what a loop over images does, and drawn for its task alone."""

from dataclasses import replace

import pytest
import torch
from networks import small_job
from torch import Tensor, nn
from torch.nn import functional as F

import roundelay as rd
from roundelay import config
from roundelay.data import Compose, HorizontalFlip, Normalise, RandomCrop
from roundelay.data.images import CIFAR10_MEAN, CIFAR10_STD
from roundelay.errors import ConfigError, DataError


def images(number: int = 40, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    return torch.randn(number, channels, height, width, generator=torch.Generator().manual_seed(2))


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TARGETS = torch.arange(40)


@pytest.mark.parametrize("fill", [0.0, -1.5, (1.0, 2.0, 3.0)])
def test_a_crop_is_one_of_the_windows_of_the_padded_image_each_of_them_as_often(fill):
    inputs = images()
    around = torch.as_tensor(fill).expand(3)
    padded = torch.stack([F.pad(inputs[:, c], (2, 2, 2, 2), value=float(around[c])) for c in range(3)], dim=1)
    counts = torch.zeros(5, 5)
    for seed in range(50):
        cropped, targets = RandomCrop(padding=2, fill=fill)(inputs, TARGETS, drawn(seed))
        assert cropped.shape == inputs.shape
        assert targets is TARGETS
        found = torch.stack(
            [
                (padded[:, :, top : top + 6, left : left + 5] == cropped).flatten(1).all(1)
                for top in range(5)
                for left in range(5)
            ]
        )
        assert (found.sum(0) == 1).all()  # of its own image, and at one place
        counts += found.sum(1).view(5, 5)
    # 2,000 crops at 25 places: 80 each, standard deviation 8.8.
    assert counts.min() > 45
    assert counts.max() < 115


def test_a_flip_mirrors_some_images_and_leaves_the_others():
    inputs = images()
    flipped, _ = HorizontalFlip()(inputs, TARGETS, drawn())
    mirrored = (flipped == inputs.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], inputs[~mirrored])
    assert 10 < int(mirrored.sum()) < 30
    assert torch.equal(HorizontalFlip(1.0)(inputs, TARGETS, drawn())[0], inputs.flip(-1))
    assert torch.equal(HorizontalFlip(0.0)(inputs, TARGETS, drawn())[0], inputs)


def test_normalising_is_that_of_the_image_sets():
    pixels = torch.randint(256, (4, 3, 5, 5), generator=drawn(), dtype=torch.uint8)
    stored = rd.data.PixelExamples(rd.data.TensorExamples(pixels, torch.arange(4)), CIFAR10_MEAN, CIFAR10_STD)
    plain = pixels.float() / 255
    changed, _ = Normalise(CIFAR10_MEAN, CIFAR10_STD)(plain, torch.arange(4), drawn())
    assert torch.equal(changed, next(stored.batches(torch.arange(4), 4))[0])


def test_a_composition_draws_one_after_the_other_and_changes_nothing_in_place():
    inputs = images()
    before = inputs.clone()
    composed, _ = Compose([RandomCrop(1), HorizontalFlip()])(inputs, TARGETS, drawn())
    generator = drawn()
    cropped, _ = RandomCrop(1)(inputs, TARGETS, generator)
    assert torch.equal(composed, HorizontalFlip()(cropped, TARGETS, generator)[0])
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RandomCrop(0), "random_crop padding: expected a whole number of at least 1, got 0"),
        (lambda: RandomCrop(1, (0.0, 1.0))(images(), TARGETS, drawn()), "fill: expected a number, or 3, one a channel"),
        (lambda: HorizontalFlip(1.1), "horizontal_flip probability: expected a number from 0 to 1, got 1.1"),
        (lambda: Normalise((0.5,), (0.0,)), "normalise: expected a mean and a std above 0 for each channel"),
        (lambda: Normalise((0.5,), (1.0,))(images(), TARGETS, drawn()), "it has 1 numbers .* the images have 3"),
        (lambda: Compose([]), "compose steps: expected a list"),
    ],
)
def test_settings_are_checked(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize("change", [RandomCrop(), HorizontalFlip(), Normalise((0.5,), (0.5,))])
def test_what_is_no_image_is_refused(change):
    with pytest.raises(DataError, match=r"expected images, float of shape \(B, C, H, W\), got torch.uint8"):
        change(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), TARGETS[:2], drawn())


class Grey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(2 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.conv(x).relu().flatten(1))
        return logits


def pictures() -> rd.FederatedData:
    parts = {f"c{i}": (torch.randint(256, (9 + i, 1, 6, 6), generator=drawn(i), dtype=torch.uint8),
                       torch.randint(3, (9 + i,), generator=drawn(i))) for i in range(6)}  # fmt: skip
    kept = {name: rd.data.PixelExamples(rd.data.TensorExamples(*part), (0.5,), (0.5,)) for name, part in parts.items()}
    return rd.FederatedData.from_datasets(kept, held_out=kept["c0"])


def test_a_job_file_names_them_and_the_bits_do_not_depend_on_the_number_of_workers():
    table = {
        "use": "compose",
        "steps": [{"use": "random_crop", "padding": 1, "fill": [-1.0]}, {"use": "horizontal_flip"}],
    }
    learner = config.parts_of({"learner": {"use": "localsgd", "lr": 0.1, "batch_size": 4, "augment": table}})["learner"]
    assert learner.augment == Compose((RandomCrop(1, (-1.0,)), HorizontalFlip()))
    job = small_job(model=Grey, data=pictures, learner=learner)
    ends = {workers: replace(job, simulation=rd.Simulation(num_workers=workers)).run().sha256 for workers in (1, 2)}
    serial = job.run().sha256
    assert ends == {1: serial, 2: serial}
    assert replace(job, learner=replace(learner, augment=None)).run().sha256 != serial

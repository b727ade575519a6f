"""Augmentations of boxes: what is drawn is found where its box went."""

import pytest
import torch
from torch import Tensor

from roundelay.data import boxes
from roundelay.data.augment_boxes import CropBoxes, FlipBoxes, Mosaic
from roundelay.errors import ConfigError

SIZE = 96
AUGMENTATIONS = {
    "flip": FlipBoxes(0.5, 0.5),
    "crop": CropBoxes(0.5, 1.0),
    "shrink": CropBoxes(1.0, 1.6),
    "mosaic": Mosaic(1.0),
}


def drawn(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images with one rectangle each, no two of one brightness, and targets with it and an empty row."""
    draws = torch.Generator().manual_seed(seed)
    images, targets = torch.zeros(number, 3, SIZE, SIZE), []
    for at in range(number):
        x, y = torch.randint(4, 50, (2,), generator=draws).tolist()
        width, height = torch.randint(16, 40, (2,), generator=draws).tolist()
        images[at, :, y : y + height, x : x + width] = 1.0
        row = [float(at % 3), x, y, min(x + width, SIZE), min(y + height, SIZE), 0.0]
        targets.append(boxes.padded(torch.tensor([row]), 2))
    return images, torch.stack(targets)


def check_found_again(image: Tensor, target: Tensor, slack: float) -> None:
    """The bright pixels of an image are those in its boxes, but for ``slack`` pixels at their edges."""
    bright = image[0] > 0.75
    there = torch.zeros_like(bright)
    for row in boxes.objects(target):
        x1, y1, x2, y2 = row[boxes.BOX].tolist()
        found = bright[int(y1 + slack) : int(y2 - slack), int(x1 + slack) : int(x2 - slack)]
        assert bool(found.all()), "a box is on what is not the object"
        there[int(max(0, y1 - slack)) : int(y2 + slack) + 1, int(max(0, x1 - slack)) : int(x2 + slack) + 1] = True
    assert not bool((bright & ~there).any()), "the object is where no box is"


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_rectangle_is_found_again_where_its_box_went(augment: FlipBoxes | CropBoxes | Mosaic) -> None:
    inputs, targets = drawn(24)
    before = inputs.clone(), targets.clone()
    seen, moved = augment(inputs, targets, torch.Generator().manual_seed(3))
    assert (seen.shape, seen.dtype, moved.dtype) == (inputs.shape, inputs.dtype, targets.dtype)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])
    for image, target in zip(seen, moved, strict=True):
        check_found_again(image, target, slack=1.5)
    changed = (moved[:, 0] != targets[:, 0]).any(1)
    assert int(changed.sum()) >= 12
    limits = moved[..., boxes.BOX]
    assert 0 <= float(limits.min()) <= float(limits.max()) <= SIZE
    assert bool((moved[moved[..., boxes.CLASS] < 0] == torch.tensor([-1.0, 0, 0, 0, 0, 0])).all())


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_the_generator_is_all_that_is_drawn_from(augment: FlipBoxes | CropBoxes | Mosaic) -> None:
    batch = drawn(8)
    torch.manual_seed(1)
    first = augment(*batch, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    again = augment(*batch, torch.Generator().manual_seed(3))
    other = augment(*batch, torch.Generator().manual_seed(4))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_flips_have_their_probabilities() -> None:
    inputs, targets = torch.zeros(2000, 1, 2, SIZE), drawn(2000)[1]
    _, moved = FlipBoxes(horizontal=0.3, vertical=0.0)(inputs, targets, torch.Generator().manual_seed(1))
    assert 0.26 < float((moved[:, 0, 1] != targets[:, 0, 1]).float().mean()) < 0.34
    assert torch.equal(moved[..., 2], targets[..., 2])
    inputs = drawn(5)[0]
    seen, moved = FlipBoxes(1.0, 1.0)(inputs, targets[:5], torch.Generator())
    assert torch.equal(seen, inputs.flip(2, 3))
    assert torch.equal(moved[:, 0, boxes.BOX], SIZE - targets[:5, 0][:, [3, 4, 1, 2]])


def test_a_window_of_the_image_itself_changes_nothing() -> None:
    inputs, targets = drawn(3)
    seen, moved = CropBoxes(1.0, 1.0)(inputs, targets, torch.Generator())
    torch.testing.assert_close(seen, inputs)
    torch.testing.assert_close(moved, targets)


def test_what_is_hardly_left_is_ignored_and_what_is_gone_is_no_object() -> None:
    inputs = torch.zeros(200, 1, SIZE, SIZE)
    targets = boxes.padded(torch.tensor([[2.0, 0, 0, 36, 36, 0]]), 1).repeat(200, 1, 1)
    _, moved = CropBoxes(0.5, 0.5, min_visible=0.4)(inputs, targets, torch.Generator().manual_seed(1))
    rows = moved[:, 0]
    left = boxes.areas(rows[:, boxes.BOX]) / 72**2  # a box that is wholly seen has four times the area
    gone = rows[:, boxes.CLASS] < 0
    assert bool((left[gone] == 0).all())
    assert torch.equal(rows[~gone, boxes.IGNORED] == 1, left[~gone] < 0.4)
    assert all(int(kind.sum()) > 10 for kind in (gone, ~gone & (left < 0.4), ~gone & (left >= 0.4)))


def test_beyond_the_edge_it_is_grey() -> None:
    seen, _ = CropBoxes(2.0, 2.0)(torch.zeros(4, 3, SIZE, SIZE), drawn(4)[1], torch.Generator().manual_seed(1))
    grey = ((seen - 0.5).abs() < 1e-6).float().mean()
    assert 0.7 < float(grey) < 0.8


def test_a_mosaic_is_its_image_and_three_others() -> None:
    inputs, targets = drawn(12)
    seen, moved = Mosaic(1.0)(inputs, targets, torch.Generator().manual_seed(1))
    assert moved.shape == (12, 8, 6)
    assert torch.equal(moved[:, 0, boxes.BOX], targets[:, 0, boxes.BOX] / 2)
    assert int((moved[..., boxes.CLASS] >= 0).sum()) == 48
    seen, moved = Mosaic(0.0)(inputs, targets, torch.Generator().manual_seed(1))
    assert torch.equal(seen, inputs)
    assert torch.equal(moved[:, :2], targets)
    assert bool((moved[:, 2:, boxes.CLASS] == -1).all())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FlipBoxes(vertical=2), "FlipBoxes vertical must be a probability"),
        (lambda: CropBoxes(0.0), "CropBoxes must have 0 < smallest <= largest"),
        (lambda: CropBoxes(2.0), "CropBoxes must have 0 < smallest <= largest"),
        (lambda: CropBoxes(min_visible=-1), "CropBoxes min_visible"),
        (lambda: Mosaic(-0.1), "Mosaic probability"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()

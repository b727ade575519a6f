"""COCO's and Pascal VOC's average precision: pycocotools' own numbers on the same predictions, and parts that merge."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from reference_coco import NUM_CLASSES, by_pycocotools
from torch import Tensor

from roundelay.data import boxes
from roundelay.errors import ConfigError, MissingExtra
from roundelay.learner import CocoAP, VocAP


@dataclass(frozen=True)
class Seen:
    """A detector's output that is known beforehand."""

    found: Sequence[Tensor]

    def loss(self, targets: Tensor) -> Tensor:
        return torch.zeros(())

    def detections(self) -> list[Tensor]:
        return list(self.found)


def images(number: int, seed: int, ties: bool = False) -> tuple[list[Tensor], Tensor]:
    """Return detections and targets of images with objects of all sizes, crowds, and guesses near and far; some images
    are without objects, some without detections. With ``ties`` many scores are equal.
    """
    draws = np.random.default_rng(seed)
    found, targets = [], []
    for at in range(number):
        there = 0 if at % 7 == 3 else int(draws.integers(1, 9))
        corners = draws.uniform(0, 300, (there, 2))
        sides = np.exp(draws.uniform(np.log(8), np.log(200), (there, 2)))
        rows = np.concatenate(
            [draws.integers(0, NUM_CLASSES, (there, 1)), corners, corners + sides, draws.random((there, 1)) < 0.15], 1
        )
        copies = rows[draws.integers(0, there, int(draws.integers(0, 25)))] if there else np.zeros((0, 6))
        shifts = draws.normal(0, 0.15, (len(copies), 4)) * np.tile(copies[:, 3:5] - copies[:, 1:3], 2)
        near = np.concatenate([copies[:, :1], copies[:, 1:5] + shifts, draws.random((len(copies), 1))], 1)
        far = draws.uniform(0, 300, (130 if at == 1 else 4, 2))
        wrong = np.concatenate(
            [draws.integers(0, NUM_CLASSES, (len(far), 1)), far, far + 30, draws.random((len(far), 1)) / 2], 1
        )
        guesses = np.zeros((0, 6)) if at % 5 == 4 else np.concatenate([near, wrong])
        swapped = (guesses[:, 1:3] >= guesses[:, 3:5]).any(1)
        guesses = guesses[~swapped]
        if ties:
            guesses[:, 5] = np.round(guesses[:, 5], 1)
        seen = torch.from_numpy(guesses).float()
        found.append(seen[seen[:, 5].argsort(descending=True, stable=True)])
        targets.append(boxes.padded(torch.from_numpy(rows).float(), 9))
    return found, torch.stack(targets)


def measured(measure: CocoAP | VocAP, found: Sequence[Tensor], targets: Tensor) -> dict[str, float]:
    return dict(measure.result(measure.rows(Seen(found), targets)))


@pytest.mark.parametrize("ties", [False, True], ids=["scores", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_coco_is_pycocotools_own(seed: int, ties: bool) -> None:
    found, targets = images(20, seed, ties)
    expected = by_pycocotools(found, targets)
    assert measured(CocoAP(), found, targets) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0.05 < expected["map"] < expected["map_50"] < 0.95


@pytest.mark.parametrize("measure", [CocoAP(), VocAP(), VocAP(0.3, eleven_points=True)], ids=["coco", "voc", "2007"])
def test_parts_together_are_the_whole_to_the_bit_however_they_are_cut(measure: CocoAP | VocAP) -> None:
    found, targets = images(20, 5)
    whole = measured(measure, found, targets)
    for cuts in ((7,), (1, 2, 3), range(1, 20)):
        edges = [0, *cuts, 20]
        parts = [slice(*edge) for edge in pairwise(edges)]
        rows = torch.cat([measure.rows(Seen(found[part]), targets[part]) for part in parts])
        assert measure.result(rows) == whole
    own = [measured(measure, found[:10], targets[:10]), measured(measure, found[10:], targets[10:])]
    assert all(abs(sum(one[name] for one in own) / 2 - whole[name]) > 1e-4 for name in whole if "map" in name)


def target(*rows: Sequence[float]) -> Tensor:
    return boxes.padded(torch.tensor([[float(value) for value in (*row, 0.0)[:6]] for row in rows]).view(-1, 6), 5)[
        None
    ]


def seen(*rows: Sequence[float]) -> list[Tensor]:
    return [torch.tensor([[float(value) for value in row] for row in rows]).view(-1, 6)]


LEFT, RIGHT = (0, 0, 0, 40, 40), (0, 50, 0, 90, 40)


def test_voc_by_hand() -> None:
    """Three objects, five guesses: found, found again (false), far off (false), found, and one object is missed."""
    there = target(LEFT, RIGHT, (0, 0, 100, 40, 140))
    guesses = seen((*LEFT, 0.9), (0, 2, 0, 42, 40, 0.8), (0, 200, 0, 240, 40, 0.7), (*RIGHT, 0.6))
    # precision 1, 1/2, 1/3, 2/4 at recall 1/3, 1/3, 1/3, 2/3
    assert measured(VocAP(), guesses, there) == pytest.approx({"voc_map": (1 + 1 / 2) / 3, "voc_recall": 2 / 3})
    eleven = (4 * 1 + 3 * 1 / 2) / 11  # recall 0, 0.1, 0.2, 0.3; 0.4, 0.5, 0.6
    assert measured(VocAP(eleven_points=True), guesses, there)["voc_map"] == pytest.approx(eleven)


def test_voc_and_coco_differ_where_an_object_is_seen_twice() -> None:
    """The second guess overlaps the found object most: false for VOC, while COCO gives it the other object."""
    there = target((0, 0, 0, 40, 40), (0, 0, 12, 40, 52))
    guesses = seen((0, 0, 0, 40, 40, 0.9), (0, 0, 5, 40, 45, 0.8))
    assert measured(VocAP(), guesses, there)["voc_recall"] == 0.5
    assert measured(CocoAP(), guesses, there)["map_50"] == 1.0


def test_what_is_to_be_ignored_is_neither_found_nor_missed() -> None:
    there, guesses = target(LEFT, (*RIGHT, 1)), seen((*RIGHT, 0.9), (*LEFT, 0.8))
    assert measured(VocAP(), guesses, there) == {"voc_map": 1.0, "voc_recall": 1.0}
    assert measured(CocoAP(), guesses, there)["map"] == 1.0
    assert measured(CocoAP(), seen((*LEFT, 0.8)), there)["recall_100"] == 1.0


def test_a_class_without_objects_is_left_out_and_of_none_there_is_nothing() -> None:
    there, guesses = target(LEFT), seen((*LEFT, 0.5), (1, 50, 0, 90, 40, 0.9))
    assert measured(VocAP(), guesses, there)["voc_map"] == 1.0
    assert measured(CocoAP(), guesses, there)["map"] == 1.0
    for measure in (CocoAP(), VocAP()):
        nothing = measure.result(torch.zeros(0, measure.width, dtype=torch.float64))
        assert all(math.isnan(value) for value in nothing.values())
        assert nothing.keys() == measured(measure, guesses, there).keys()


def test_what_is_not_seen_at_all_is_missed() -> None:
    for measure in (CocoAP(), VocAP()):
        values = measured(measure, seen(), target(LEFT))
        assert {value for value in values.values() if not math.isnan(value)} == {0.0}


def test_rows_that_make_no_sense_spoil_nothing_but_the_number() -> None:
    """A client's rows are only known to be finite numbers."""
    draws = torch.Generator().manual_seed(1)
    for measure in (CocoAP(), VocAP()):
        for scale in (1.0, 1e6, 1e300):
            rows = torch.randn(50, measure.width, generator=draws, dtype=torch.float64) * scale
            rows[::2, 0], rows[1::2, 0] = 0.0, 1.0
            measure.result(rows)


def test_an_overlap_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="VocAP overlap must be above 0 and at most 1, got 50"):
        VocAP(overlap=50)


def test_without_pycocotools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[detection\]"):
        measured(CocoAP(), seen(), target(LEFT))

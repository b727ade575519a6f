"""The grid detector: cells, boxes, loss and suppression as their definitions say; it learns what it is shown."""

import math

import pytest
import torch
from photographs import some
from torch import Tensor

from roundelay.data import boxes
from roundelay.errors import ConfigError
from roundelay.learner import CocoAP, VocAP
from roundelay.models.detected import SCORE, suppressed
from roundelay.models.grid_detector import STRIDE, GridDetected, GridDetector, complete_iou


def overlap_by_hand(one: list[float], other: list[float]) -> float:
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area, other_area = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across * down / (area + other_area - across * down)


def random_boxes(number: int, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=draws) * 60
    return torch.cat([corners, corners + 5 + torch.rand(number, 2, generator=draws) * 40], 1)


def test_overlaps_are_intersections_over_unions() -> None:
    first, second = random_boxes(20, 1), random_boxes(30, 2)
    expected = [[overlap_by_hand(one, other) for other in second.tolist()] for one in first.tolist()]
    torch.testing.assert_close(boxes.overlaps(first, second), torch.tensor(expected))
    assert boxes.overlaps(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [[0.0]]


def test_complete_iou_is_that_of_its_paper() -> None:
    first, second = random_boxes(50, 1), random_boxes(50, 2)
    distances, overlaps = complete_iou(first, second)
    for box, other, distance, overlap in zip(first.tolist(), second.tolist(), distances, overlaps, strict=True):
        iou = overlap_by_hand(box, other)
        diagonal = (max(box[2], other[2]) - min(box[0], other[0])) ** 2 + (
            max(box[3], other[3]) - min(box[1], other[1])
        ) ** 2
        apart = ((box[0] + box[2] - other[0] - other[2]) / 2) ** 2 + ((box[1] + box[3] - other[1] - other[3]) / 2) ** 2
        lean, other_lean = (math.atan((b[2] - b[0]) / (b[3] - b[1])) for b in (box, other))
        v = 4 / math.pi**2 * (other_lean - lean) ** 2
        assert overlap.item() == pytest.approx(iou, abs=1e-5)
        assert distance.item() == pytest.approx(1 - iou + apart / diagonal + v * v / (1 - iou + v), abs=1e-5)
    same, _ = complete_iou(first, first)
    torch.testing.assert_close(same, torch.zeros(50))


def test_suppression_keeps_the_best_of_what_overlaps() -> None:
    draws = torch.Generator().manual_seed(3)
    found = torch.cat([torch.randint(0, 2, (80, 1), generator=draws).float(), random_boxes(80, 4),
                       torch.rand(80, 1, generator=draws)], 1)  # fmt: skip
    kept: list[list[float]] = []
    for row in sorted(found.tolist(), key=lambda row: -row[SCORE]):
        if all(row[0] != best[0] or overlap_by_hand(row[1:5], best[1:5]) <= 0.4 for best in kept):
            kept.append(row)
    assert suppressed(found, 0.4, 100).tolist() == kept
    assert suppressed(found, 0.4, 7).tolist() == kept[:7]
    assert suppressed(found[:0], 0.4, 7).shape == (0, 6)


def answers(rows: int, columns: int, num_classes: int = 1) -> GridDetected:
    """Return what a detector says whose cells all answer 0, at an object size of 40."""
    detector = GridDetector(num_classes, object_size=40.0)
    width = 5 + (num_classes if num_classes > 1 else 0)
    return GridDetected.of(torch.zeros(1, width, rows, columns), detector)


def test_a_cell_says_where_its_box_is() -> None:
    detector = GridDetector(object_size=40.0)
    answer = torch.zeros(1, 5, 3, 4)
    answer[0, 0, 1, 2] = 5.0
    answer[0, 1:, 1, 2] = torch.tensor([0.25, -0.5, math.log(0.5), math.log(2.0)])
    best = GridDetected.of(answer, detector).detections()[0][0].tolist()
    x, y = (2 + 0.5 + 0.25) * STRIDE, (1 + 0.5 - 0.5) * STRIDE
    assert best == pytest.approx([0, x - 10, y - 40, x + 10, y + 40, 1 / (1 + math.exp(-5))])


def test_cells_near_an_objects_middle_answer_for_it_and_the_nearer_object_has_them() -> None:
    seen = answers(8, 8)
    rows = [[0, 8.0, 8, 32, 32, 0], [0, 18, 8, 42, 32, 0], [0, 33, 49, 37, 53, 0], [0, 40, 40, 64, 64, 1]]
    owner, there, counts = seen._owners(boxes.padded(torch.tensor(rows), 5)[None])
    grid, own = there.view(8, 8), owner.view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:4, 1:5] = True  # 3 x 3 cells around (20, 20), and around (30, 20)
    expected[6, 4] = True  # smaller than a cell: the one that it is in
    assert torch.equal(grid, expected)
    assert own[1:4, 1:5].tolist() == [[0, 0, 1, 1]] * 3
    assert own[6, 4] == 2
    counted = torch.ones(8, 8)
    counted[5:8, 5:8] = 0  # within what is to be ignored
    assert torch.equal(counts.view(8, 8), counted)


def test_the_loss_is_that_of_its_parts() -> None:
    """One object, at whose nine cells every box lies as the untrained detector has it; two classes."""
    seen = answers(5, 5, num_classes=2)
    box = [4.0, 2.0, 36.0, 38.0]
    target = boxes.padded(torch.tensor([[1.0, *box, 0.0]]), 3)[None]
    confidence, where, kinds = 0.0, 0.0, 0.0
    for row in range(5):
        for column in range(5):
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            answering = row in (1, 2, 3) and column in (1, 2, 3)
            distance, overlap = complete_iou(torch.tensor([x - 20, y - 20, x + 20, y + 20]), torch.tensor(box))
            wanted = overlap.item() if answering else 0.0
            confidence += (wanted - 0.5) ** 2 * math.log(2)  # cross-entropy of a half is that, whatever is wanted
            where += distance.item() if answering else 0.0
            kinds += 2 * math.log(2) if answering else 0.0
    assert seen.loss(target).item() == pytest.approx((confidence + 2 * where + kinds) / 9, rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    torch.manual_seed(0)
    model = GridDetector(2)
    images = torch.rand(3, 3, 64, 64)
    targets = torch.stack([boxes.padded(torch.tensor([[1.0, 10, 10, 40, 30, 0]] * number).view(-1, 6), 2)
                           for number in (1, 0, 2)])  # fmt: skip
    single = [model(images[at : at + 1]).loss(targets[at : at + 1]).item() for at in range(3)]
    assert model(images).loss(targets).item() == pytest.approx(sum(single) / 3, rel=1e-5)


def test_padding_changes_no_bit_of_the_loss() -> None:
    torch.manual_seed(0)
    seen = GridDetector()(torch.rand(1, 3, 64, 64))
    row = torch.tensor([[0.0, 10, 10, 40, 30, 0]])
    assert torch.equal(seen.loss(boxes.padded(row, 1)[None]), seen.loss(boxes.padded(row, 9)[None]))
    assert math.isfinite(seen.loss(boxes.padded(row[:0], 4)[None]).item())


def test_a_class_that_it_does_not_know_is_refused() -> None:
    target = boxes.padded(torch.tensor([[2.0, 10, 10, 40, 30, 0]]), 1)[None]
    with pytest.raises(ConfigError, match="at least 3 classes, the detector knows 2: give it num_classes"):
        GridDetector(2)(torch.rand(1, 3, 64, 64)).loss(target)


def test_it_learns_to_find_what_is_drawn() -> None:
    torch.manual_seed(0)
    taken = some(12, seed=1, most=2)
    images = torch.stack([torch.from_numpy(one.drawn()).permute(2, 0, 1) for one in taken]).float() / 255
    targets = torch.stack([boxes.padded(torch.tensor([[*box, 0] for box in one.boxes]).view(-1, 6).float(), 2)
                           for one in taken])  # fmt: skip
    model = GridDetector(num_classes=2, width=8, object_size=20.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(images).loss(targets).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        seen = model(images)
    voc = VocAP()
    assert voc.result(voc.rows(seen, targets))["voc_map"] > 0.9
    coco = CocoAP()
    assert coco.result(coco.rows(seen, targets))["map"] > 0.5

"""A detector of torchvision's convention trains, is measured and is averaged as any other model, through a stand-in
that follows the convention and, where it is installed, torchvision itself."""

import sys
from pathlib import Path

import pytest
import torch
from photographs import CLASSES, some, voc_folder
from torch import Tensor, nn

import roundelay as rd
from roundelay.data import boxes
from roundelay.data.detection import voc
from roundelay.errors import ConfigError, MissingExtra
from roundelay.learner import CocoAP, VocAP, detection_loss
from roundelay.models import LossDictDetector, torchvision_detector


class StandIn(nn.Module):
    """One object an image: where it is and what, from a mean over the image's parts. BatchNorm and dropout, as some
    detectors have, and the convention held to in every way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1))
        self.answer = nn.Linear(8 * 64, 4 + len(CLASSES) + 1)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        assert all(image.ndim == 3 for image in images)
        answer = self.answer(self.features(torch.stack(images)).flatten(1))
        where, kinds = answer[:, :4].sigmoid() * 64, answer[:, 4:]
        if self.training:
            assert targets is not None, "in training it wants targets"
            assert len(targets) == len(images)
            box, kind = [], []
            for target in targets:
                assert target["boxes"].shape == (len(target["labels"]), 4)
                assert target["labels"].dtype == torch.int64
                assert all(1 <= label <= len(CLASSES) for label in target["labels"].tolist())
                box.append(torch.nn.functional.l1_loss(where[len(kind)], target["boxes"][0])
                           if len(target["boxes"]) else where.sum() * 0)  # fmt: skip
                kind.append(target["labels"][0] if len(target["labels"]) else torch.tensor(0))
            return {
                "loss_box": torch.stack(box).mean() / 32,
                "loss_kind": nn.functional.cross_entropy(kinds, torch.stack(kind)),
            }
        scores, labels = kinds.softmax(1)[:, 1:].max(1)
        ordered = torch.cat([torch.minimum(where[:, :2], where[:, 2:] - 1), where[:, 2:]], 1)
        return [{"boxes": ordered[at : at + 1], "labels": labels[at : at + 1] + 1, "scores": scores[at : at + 1]}
                for at in range(len(images))]  # fmt: skip


def wrapped() -> LossDictDetector:
    return LossDictDetector(StandIn())


def batch() -> tuple[Tensor, Tensor]:
    taken = some(6, most=2)
    images = torch.stack([torch.from_numpy(one.drawn()).permute(2, 0, 1) for one in taken]).float() / 255
    rows = [torch.tensor([[*box, 0] for box in one.boxes]).view(-1, 6).float() for one in taken]
    return images, torch.stack([boxes.padded(row, 2) for row in rows])


def test_in_training_it_is_the_detectors_own_losses() -> None:
    torch.manual_seed(1)
    model, (images, targets) = wrapped(), batch()
    told = [{"boxes": rows[:, 1:5], "labels": rows[:, 0].long() + 1} for rows in map(boxes.wanted, targets)]
    torch.manual_seed(2)
    expected = model.detector(list(images), told)
    torch.manual_seed(2)
    loss = detection_loss(model(images), targets)
    assert loss.item() == pytest.approx(sum(value.item() for value in expected.values()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_in_evaluation_it_gives_losses_and_boxes_and_changes_nothing() -> None:
    model, (images, targets) = wrapped(), batch()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, again = (detection_loss(model(images), targets) for _ in range(2))
        found = model(images).detections()
    assert torch.equal(first, again)  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part.training for part in model.modules())
    assert [tuple(rows.shape) for rows in found] == [(1, 6)] * 6
    assert all(rows[0, boxes.CLASS] in (0, 1) for rows in found)


def test_what_is_to_be_ignored_is_not_told() -> None:
    model, (images, targets) = wrapped(), batch()
    model.detector.eval()
    targets[..., boxes.IGNORED] = (targets[..., boxes.CLASS] >= 0).float()
    none = torch.stack([boxes.padded(torch.zeros(0, 6), 2)] * 6)
    assert torch.equal(model(images).loss(targets), model(images).loss(none))


def test_what_does_not_follow_the_convention_is_refused() -> None:
    class Other(nn.Module):
        def forward(self, images: list[Tensor], targets: object = None) -> Tensor:
            return torch.zeros(())

    with pytest.raises(ConfigError, match="Other gave a Tensor in training; expected a dictionary of losses"):
        detection_loss(LossDictDetector(Other())(batch()[0]), batch()[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_trained_in_federation(tmp_path: Path, workers: int) -> None:
    root = voc_folder(tmp_path, {name: (some(10, seed, 1), some(4, seed + 9, 1)) for seed, name in enumerate("ab")})
    job = rd.Job(
        model=wrapped, data=lambda: voc(root, image_size=64), num_rounds=4,
        learner=rd.LocalSGD(lr=0.05, batch_size=5, momentum=0.9, loss=detection_loss),
        evaluation=rd.Evaluation(clients_every=2, measures=(CocoAP(), VocAP())), tracking=None,
        simulation=rd.Simulation(num_workers=workers) if workers else rd.Simulation(),
    )  # fmt: skip
    history = job.run()
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    assert {"map", "voc_map", "client_map", "pooled_map"} <= set(history.rows[-1])


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[torchvision\]"):
        torchvision_detector("fasterrcnn_mobilenet_v3_large_fpn", num_classes=1)


def test_torchvisions_own_detector_trains() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)
    model, (images, targets) = torchvision_detector("fasterrcnn_mobilenet_v3_large_320_fpn", 2, 64), batch()
    loss = detection_loss(model(images[:2]), targets[:2])
    loss.backward()
    model.eval()
    with torch.no_grad():
        assert detection_loss(model(images[:2]), targets[:2]).item() > 0
        assert len(model(images[:2]).detections()) == 2
    with pytest.raises(ConfigError, match="has no 'yolo'"):
        torchvision_detector("yolo", 2)

"""Pictures of detections: what is drawn is what is there and what was found."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from photographs import CLASSES, Photograph, some, voc_folder
from torch import Tensor, nn

from roundelay.data import Data, FederatedData
from roundelay.data.detection import voc
from roundelay.models import GridDetector
from roundelay.report.detections import draw_detections
from roundelay.report.plots import detections, plot_detections


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return the figures that are saved, which are written all the same."""
    figures: list[Figure] = []
    original = detections.save
    monkeypatch.setattr(detections, "save", lambda figure, path: (figures.append(figure), original(figure, path)))
    return figures


def rectangles(figure: Figure, number: int) -> list[tuple[float, float, float, float, str]]:
    return [(*patch.get_bbox().extents, patch.get_linestyle()) for patch in figure.axes[number].patches
            if isinstance(patch, Rectangle)]  # fmt: skip


def test_boxes_are_drawn_where_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    images = torch.rand(2, 3, 32, 32)
    targets = torch.tensor([[[0.0, 2, 3, 10, 12, 0], [1, 0, 0, 5, 5, 1]], [[-1.0, 0, 0, 0, 0, 0]] * 2])
    found = [torch.tensor([[1.0, 4, 4, 9, 9, 0.8], [0, 1, 1, 3, 3, 0.2]]), torch.zeros(0, 6)]
    plot_detections(images, targets, found, tmp_path / "seen.png", ["north/1", "south/2"], CLASSES, min_score=0.3)
    (figure,) = drawn
    assert rectangles(figure, 0) == [(1.5, 2.5, 9.5, 11.5, "-"), (-0.5, -0.5, 4.5, 4.5, "--")]
    assert rectangles(figure, 1) == []
    assert rectangles(figure, 2) == [(3.5, 3.5, 8.5, 8.5, "-")]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("0.80") == 1
    assert {"north/1", "south/2"} <= set(texts)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CLASSES)


def test_a_run_shows_photographs_of_several_devices(tmp_path: Path, drawn: list[Figure]) -> None:
    train = [Photograph("9999", [])]
    data = voc(voc_folder(tmp_path, {"north": (train, some(6)), "south": (train, some(6, 1))}), image_size=64)
    assert isinstance(data, FederatedData)
    (path,) = draw_detections(tmp_path, GridDetector(2, width=8), data.held_out, most=3)
    assert path.stat().st_size > 1000
    names = [text.get_text() for axes in drawn[0].axes for text in axes.texts if "/" in text.get_text()]
    assert names == ["north/0000", "north/0005", "south/0005"]


def test_of_other_data_and_other_models_nothing_is_drawn(tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    data = voc(voc_folder(tmp_path, {"north": (some(2), some(2))}), image_size=64)
    assert isinstance(data, FederatedData)
    assert draw_detections(tmp_path, Other(), data.held_out) == []
    assert draw_detections(tmp_path, GridDetector(), Data.from_labels([1, 2]).train) == []
    assert draw_detections(tmp_path, GridDetector(), None) == []

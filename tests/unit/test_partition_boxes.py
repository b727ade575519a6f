"""Partitioners that know what is on a photograph: by device, by scene, by class."""

import itertools
from pathlib import Path

import pytest
import torch
from photographs import some, voc_folder

from roundelay.data import IID, Data, Dirichlet, Natural, Split
from roundelay.data.detection import Album, DetectionExamples, voc
from roundelay.data.partition_boxes import BoxDirichlet, ByScene
from roundelay.errors import ConfigError, DataError


def photographs(number: int, num_classes: int = 4, devices: int = 2, seed: int = 1) -> Data:
    """Return photographs that nobody looks at: frames of devices, with mostly boxes of one class each."""
    draws = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 8, (number,), generator=draws)
    main = torch.randint(num_classes, (number,), generator=draws)
    rows = []
    for at in range(number):
        kinds = torch.where(torch.rand(int(counts[at]), generator=draws) < 0.8, main[at], 0)
        rows.append(torch.tensor([[float(kind), 0, 0, 9, 9, 0] for kind in kinds]).view(-1, 6))
    names = tuple(f"camera-{at % devices}/{at // devices:04d}" for at in range(number))
    album = Album(names, tuple(map(Path, names)), ((9, 9),) * number, torch.cat(rows),
                  torch.tensor([0, *map(len, rows)]).cumsum(0), 9, tuple("abcd"[:num_classes]))  # fmt: skip
    owners = [name.partition("/")[0] for name in names]
    return Data(DetectionExamples(album, torch.arange(number)), groups=owners, name="photographs")


def test_by_device_each_has_its_own(tmp_path: Path) -> None:
    root = voc_folder(tmp_path, {"north": (some(5), []), "south": (some(3, seed=2), [])})
    data = voc(root, pooled=True)
    assert isinstance(data, Data)
    split = Natural().split(data, seed=0)
    assert {client: positions.tolist() for client, positions in split.items()} == {
        "north": [0, 1, 2, 3, 4],
        "south": [5, 6, 7],
    }


def test_frames_of_one_scene_stay_together() -> None:
    data = photographs(100)
    assert isinstance(data.train, DetectionExamples)
    names = data.train.names()
    split = ByScene(num_clients=4).split(data, seed=3)
    assert sorted(itertools.chain(*(part.tolist() for part in split.values()))) == list(range(100))
    holders: dict[str, set[str]] = {}
    for client, part in split.items():
        for at in part.tolist():
            holders.setdefault(names[at][:-1], set()).add(client)
    assert len(holders) == 10
    assert all(len(clients) == 1 for clients in holders.values())
    assert split.sizes().tolist() == [30, 30, 20, 20]
    assert split != ByScene(num_clients=4).split(data, seed=4)
    assert split == ByScene(num_clients=4).split(data, seed=3)


def test_each_scene_may_be_a_client_of_its_own() -> None:
    split = ByScene(pattern=r"camera-\d/(\d\d)").split(photographs(500), seed=0)
    assert split.clients == ("00", "01", "02")
    assert split.sizes().tolist() == [200, 200, 100]


def skew(data: Data, split: Split) -> float:
    """Return the mean over classes of the largest client's share of its boxes."""
    assert isinstance(data.train, DetectionExamples)
    counts = torch.stack([data.train.box_counts()[part].sum(0) for part in split.values()]).double()
    return float((counts.max(0).values / counts.sum(0)).mean())


def test_boxes_of_a_class_follow_their_proportions() -> None:
    data = photographs(400)
    even, uneven = (BoxDirichlet(5, alpha).split(data, seed=1) for alpha in (1000.0, 0.2))
    for split in (even, uneven):
        assert sorted(itertools.chain(*(part.tolist() for part in split.values()))) == list(range(400))
        assert int(split.sizes().min()) >= 2
    assert 0.2 <= skew(data, even) < 0.23
    assert skew(data, uneven) > 0.5
    assert uneven == BoxDirichlet(5, 0.2).split(data, seed=1)
    assert uneven != BoxDirichlet(5, 0.2).split(data, seed=2)


def test_the_class_that_an_image_has_most_of_is_its_label() -> None:
    data = photographs(300)
    split = Dirichlet(4, alpha=0.1, min_examples=1).split(data, seed=1)
    counts = split.label_counts(data.train.labels()).double()
    assert float((counts.max(0).values / counts.sum(0)).mean()) > 0.5


@pytest.mark.parametrize(
    ("partitioner", "says"),
    [
        (lambda: ByScene("(a"), "is no regular expression"),
        (lambda: ByScene("abc"), "expected a group that is the scene"),
        (lambda: ByScene(num_clients=0), "num_clients"),
        (lambda: BoxDirichlet(0, 1.0), "num_clients"),
        (lambda: BoxDirichlet(2, -1.0), "alpha"),
        (lambda: ByScene("(dog)").split(photographs(9), 0), "'\\(dog\\)' finds no scene in 'camera-0/0000'"),
        (lambda: ByScene(num_clients=9).split(photographs(20), 0), "9 clients need as many scenes, .* finds 2"),
        (lambda: BoxDirichlet(5, 1.0, min_examples=5).split(photographs(20), 0), "needs at least 25 examples"),
        (lambda: BoxDirichlet(5, 0.01, min_examples=18).split(photographs(99), 0), "in 100 draws some client always"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(partitioner, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        partitioner()


def test_only_photographs_have_boxes() -> None:
    with pytest.raises(DataError, match="labels: it has no boxes; expected photographs as voc or coco read them"):
        BoxDirichlet(2, 1.0).split(Data.from_labels([0, 1, 0, 1]), seed=0)
    assert len(IID(2).split(photographs(4), 0)) == 2

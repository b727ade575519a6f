"""Photographs by device: what was drawn is read, boxes and all; what is damaged, missing or cannot be is named."""

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from photographs import CLASSES, COLOURS, Photograph, coco_folder, some, voc_folder
from PIL import Image
from support import data_folder

from roundelay.data import Data, FederatedData, boxes
from roundelay.data.detection import Album, DetectionExamples, coco, voc
from roundelay.errors import ConfigError, DataError, MissingExtra

TAKEN = (
    [Photograph("0001", [(0, 4, 6, 20, 30), (1, 30, 30, 64, 64)], hard=frozenset({1})), Photograph("0002", [])],
    [Photograph("0003", [(1, 0, 0, 10, 10)], width=80, height=40)],
)
WRITERS: dict[str, tuple[Callable[..., Path], Callable[..., Data | FederatedData]]] = {
    "voc": (voc_folder, voc),
    "coco": (coco_folder, coco),
}
forms = pytest.mark.parametrize("form", WRITERS)


def written(tmp_path: Path, form: str, **how: object) -> FederatedData:
    write, read = WRITERS[form]
    write(tmp_path, {"north": TAKEN, "south": (TAKEN[0][:1], [])})
    data = read(tmp_path, classes=CLASSES, **how)
    assert isinstance(data, FederatedData)
    return data


def everything(examples: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(examples, DetectionExamples)
    return next(examples.batches(torch.arange(len(examples)), len(examples)))


@forms
def test_what_was_drawn_is_what_is_read(tmp_path: Path, form: str) -> None:
    data = written(tmp_path, form, image_size=64)
    assert data.clients == ("north", "south")
    inputs, targets = everything(data.train("north"))
    assert (inputs.dtype, inputs.shape, targets.dtype) == (torch.float32, (2, 3, 64, 64), torch.float32)
    assert targets.tolist() == [
        [[0, 4, 6, 20, 30, 0], [1, 30, 30, 64, 64, 1]],
        [[-1, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]],
    ]
    for number, x1, y1, x2, y2, _ in targets[0].int().tolist():  # JPEG is not exact, least of all at an edge
        inside = inputs[0, :, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean((1, 2)) * 255
        torch.testing.assert_close(inside, torch.tensor(COLOURS[number]).float(), atol=12, rtol=0)
    assert data.test("south") is None
    assert data.held_out is not None
    assert len(data.held_out) == 1


@forms
def test_boxes_are_stretched_with_their_photograph(tmp_path: Path, form: str) -> None:
    data = written(tmp_path, form, image_size=160)  # from 80 x 40
    inputs, targets = everything(data.test("north"))
    assert inputs.shape == (1, 3, 160, 160)
    assert targets[0, 0].tolist() == [1, 0, 0, 20, 40, 0]


@forms
def test_pooled_devices_are_natural_clients_of_one_data_set(tmp_path: Path, form: str) -> None:
    write, read = WRITERS[form]
    write(tmp_path, {"north": TAKEN, "south": (TAKEN[0][:1], [])})
    data = read(tmp_path, classes=CLASSES, image_size=64, pooled=True)
    assert isinstance(data, Data)
    assert list(data.groups or ()) == ["north", "north", "south"]
    assert isinstance(data.train, DetectionExamples)
    assert data.train.names() == ("north/0001", "north/0002", "south/0001")
    assert data.train.labels().tolist() == [0, 2, 0]  # what is to be ignored counts for nothing, and nothing is a class
    assert data.train.box_counts().tolist() == [[1, 0], [0, 0], [1, 0]]


@forms
def test_each_device_has_its_own_photographs_and_the_server_those_for_testing(tmp_path: Path, form: str) -> None:
    write, read = WRITERS[form]
    write(tmp_path, {"north": (some(3), some(2, 1)), "south": (some(4, 2), some(5, 3))})
    data = read(tmp_path, classes=CLASSES, image_size=64)
    assert isinstance(data, FederatedData)
    parts = (*map(data.train, data.clients), *map(data.test, data.clients), data.held_out)
    held = [[name.partition("/")[0] for name in part.names()] for part in parts if isinstance(part, DetectionExamples)]
    assert held == [["north"] * 3, ["south"] * 4, ["north"] * 2, ["south"] * 5, ["north"] * 2 + ["south"] * 5]


@forms
def test_a_folder_may_be_a_device_itself(tmp_path: Path, form: str) -> None:
    write, read = WRITERS[form]
    write(tmp_path, {"north": TAKEN})
    data = read(tmp_path / "north", image_size=32)
    assert isinstance(data, FederatedData)
    assert data.clients == ("north",)


def test_classes_of_coco_are_its_categories_in_order_of_id(tmp_path: Path) -> None:
    data = coco(coco_folder(tmp_path, {"north": TAKEN}), image_size=64)
    assert isinstance(data, FederatedData)
    assert everything(data.train("north"))[1][0, :, boxes.CLASS].tolist() == [0, 1]


def test_photographs_are_decoded_when_needed_and_kept_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(Path(file).stem) or original(file))
    root = voc_folder(tmp_path, {"north": (some(9), [])})
    data = voc(root, image_size=341, cache_mib=1)  # 3 * 341 * 341 bytes: three of them fit, nearly
    assert isinstance(data, FederatedData)
    assert not opened
    train = data.train("north")
    assert isinstance(train, DetectionExamples)
    for _ in range(2):
        list(train.batches(torch.tensor([0, 1, 2]), 2))
    assert opened == ["0000", "0001", "0002"]
    list(train.batches(torch.arange(9), 4))
    assert len(opened) == 9
    list(train.batches(torch.tensor([0]), 1))
    assert opened[-1] == "0000"
    assert train.album._decoded.cache_info().currsize == 3  # type: ignore[attr-defined]


def test_parts_share_the_photographs_and_travel_without_them(tmp_path: Path) -> None:
    data = written(tmp_path, "voc", image_size=64)
    north, south = data.train("north"), data.train("south")
    assert isinstance(north, DetectionExamples)
    assert isinstance(south, DetectionExamples)
    assert north.album is south.album
    before = everything(north)
    assert len(pickle.dumps(data)) < 5000
    again = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(*pair) for pair in zip(before, everything(again.train("north")), strict=True))
    item, target = north.select(torch.tensor([1, 0]))[1]
    assert torch.equal(item, before[0][0])
    assert torch.equal(target, before[1][0])
    with pytest.raises(IndexError):
        north[2]
    with pytest.raises(DataError, match="positions from 0 to 1, got 0 to 2"):
        list(north.batches(torch.tensor([0, 2]), 2))


# ---- what is wrong is named ------------------------------------------------------------------------------------------


def xml(name: str = "red", box: tuple[object, ...] = (5, 7, 20, 30), size: tuple[object, ...] = (64, 64)) -> str:
    corners = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size><object><name>{name}</name>"
            f"<bndbox>{corners}</bndbox></object></annotation>")  # fmt: skip


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;">]>' + xml(name="&c;")
ANNOTATIONS = {
    "empty": ("", "0001.xml: the annotation is empty; replace it.*an image without objects has an annotation"),
    "blank": (" \n", "0001.xml: the annotation is empty"),
    "cut off": (xml()[:60], "0001.xml: it is not XML .*; replace it"),
    "a bomb": (BOMB, "0001.xml: it has a document type .*take it out"),
    "a bomb in UTF-16": (BOMB.replace('"1.0"', '"1.0" encoding="utf-16"').encode("utf-16"), "it has a document type"),
    "unknown class": (xml("green"), "0001.xml, object 1: class 'green' is not known; known are red, blue: .*add it to"),
    "no area": (xml(box=(9, 7, 8, 30)), "0001.xml, object 1: expected a box with an area, got x 8 to 8"),
    "inside out": (xml(box=(40, 7, 8, 30)), "expected a box with an area, got x 39 to 8"),
    "outside": (xml(box=(5, 7, 20, 66)), "the box x 4 to 20, y 6 to 66 is outside its image of 64 x 64"),
    "outside below": (xml(box=(-4, 7, 20, 30)), "outside its image"),
    "not a number": (xml(box=(5, "seven", 20, 30)), "expected a number as bndbox/ymin, got 'seven'"),
    "infinite": (xml(box=(5, 7, "inf", 30)), "expected a number as bndbox/xmax"),
    "no size": (xml().replace("size", "format"), "0001.xml: expected a number as size/width, got None"),
    "half a pixel": (xml(size=(64, 63.5)), "expected a whole number of pixels as size/height, got 63.5"),
}


@pytest.mark.parametrize(("content", "says"), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_an_annotation_that_cannot_be_is_named_with_what_to_do(tmp_path: Path, content: str | bytes, says: str) -> None:
    root = voc_folder(tmp_path, {"north": TAKEN})
    (root / "north/Annotations/0001.xml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says):
        voc(root)


def test_a_box_that_was_rounded_over_the_edge_is_cut_there(tmp_path: Path) -> None:
    root = voc_folder(tmp_path, {"north": TAKEN})
    (root / "north/Annotations/0001.xml").write_text(xml(box=(0.5, 7, 64.9, 30)))
    data = voc(root, image_size=64)
    assert isinstance(data, FederatedData)
    assert everything(data.train("north"))[1][0, 0, boxes.BOX].tolist() == [0, 6, 64, 30]


def _damaged(root: Path) -> None:
    file = root / "north/JPEGImages/0001.jpg"
    file.write_bytes(file.read_bytes()[:400])


IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (_damaged, "0001.jpg: cannot decode it .*replace it with a fresh copy, or take 0001 out"),
    "no image": (lambda root: (root / "north/JPEGImages/0001.jpg").write_bytes(b"none"), "0001.jpg: cannot decode it"),
    "another image": (
        lambda root: Photograph("", [], width=32).write(root / "north/JPEGImages/0001.jpg"),
        "0001.jpg: its annotation is of an image of 64 x 64 pixels, it has 32 x 64; is it another",
    ),
    "gone since": (lambda root: (root / "north/JPEGImages/0001.jpg").unlink(), "0001.jpg: no such image; put it there"),
}


@pytest.mark.parametrize(("spoil", "says"), IMAGES.values(), ids=IMAGES)
def test_a_photograph_that_cannot_be_decoded_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    data = voc(voc_folder(tmp_path, {"north": TAKEN}))
    spoil(tmp_path)
    assert isinstance(data, FederatedData)
    with pytest.raises(DataError, match=says):
        everything(data.train("north"))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no annotation": (
        lambda root: (root / "north/Annotations/0001.xml").unlink(),
        "0001.xml: no such file; put the an",
    ),
    "no image": (
        lambda root: (root / "north/JPEGImages/0001.jpg").unlink(),
        "0001.jpg: no such image; put it there, or ",
    ),
    "no list": (
        lambda root: (root / "north/ImageSets/Main/train.txt").unlink(),
        "train.txt: no such file; put it there",
    ),
    "empty list": (
        lambda root: (root / "north/ImageSets/Main/train.txt").write_text("\n"),
        "train.txt: the file is em",
    ),
    "list of no text": (
        lambda root: (root / "north/ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\x00"),
        "train.txt: cannot read it",
    ),
    "no classes": (lambda root: (root / "classes.names").unlink(), "classes.names: no such file; .*or give classes = "),
    "a class twice": (
        lambda root: (root / "classes.names").write_text("red\nred\n"),
        "classes.names: expected a class",
    ),
    "no device": (
        lambda root: (root / "north").rename(root.parent / "away"),
        "no device is there; put a folder for each",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), FOLDERS.values(), ids=FOLDERS)
def test_what_is_missing_in_a_folder_is_named(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    root = voc_folder(tmp_path / "data", {"north": TAKEN})
    spoil(root)
    with pytest.raises(DataError, match=says):
        voc(root)


@forms
def test_an_absent_folder_says_what_to_put_where(tmp_path: Path, form: str) -> None:
    with pytest.raises(
        DataError, match=re.escape(f"{tmp_path / 'none'}: no such folder; make it and put a folder for")
    ):
        WRITERS[form][1](tmp_path / "none")


def _set(path: str, value: object) -> Callable[[dict[str, list[dict[str, object]]]], object]:
    key, number, name = path.split(".")
    return lambda document: document[key][int(number)].update({name: value})


DOCUMENTS: dict[str, tuple[Callable[[dict[str, list[dict[str, object]]]], object], str]] = {
    "no list": (lambda d: d.update(images={}), "instances_train.json: expected lists .*'images' is none"),
    "no categories": (lambda d: d.update(categories=[]), "expected categories with ids and names"),
    "a category twice": (_set("categories.0.name", "red"), "expected categories with ids and names, each once"),
    "unknown class": (
        _set("categories.0.name", "green"),
        "annotation 2: class 'green' is not known; known are red, blue",
    ),
    "image twice": (_set("images.1.id", 100), "image 2: expected an id of its own and a file_name"),
    "no width": (_set("images.0.width", None), "image 1: expected a whole number as width, got None"),
    "of no image": (_set("annotations.0.image_id", 5), "annotation 1: image 5 is not in the file"),
    "of no category": (_set("annotations.0.category_id", 5), "annotation 1: category 5 is not in the file"),
    "three corners": (
        _set("annotations.0.bbox", [1, 2, 3]),
        r"annotation 1: expected bbox to be \[x, y, width, height\]",
    ),
    "no area": (_set("annotations.0.bbox", [1, 2, 0, 3]), r"annotation 1 \(0001.jpg\): expected a box with an area"),
    "outside": (
        _set("annotations.0.bbox", [1, 2, 70, 3]),
        r"annotation 1 \(0001.jpg\): the box x 1 to 71, .* is outside",
    ),
    "no image file": (
        _set("images.0.file_name", "none.jpg"),
        "none.jpg: no such image; put it there, or take it out of",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_coco_file_that_cannot_be_is_named_with_what_to_do(
    tmp_path: Path, spoil: Callable[[dict[str, list[dict[str, object]]]], object], says: str
) -> None:
    root = coco_folder(tmp_path, {"north": TAKEN})
    file = root / "north/annotations/instances_train.json"
    document = json.loads(file.read_text())
    spoil(document)
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=says):
        coco(root, classes=CLASSES)


@pytest.mark.parametrize(("content", "says"), [("", "the file is empty"), ("{", "it is not JSON")])
def test_a_coco_file_that_is_none_is_named(tmp_path: Path, content: str, says: str) -> None:
    root = coco_folder(tmp_path, {"north": TAKEN})
    (root / "north/annotations/instances_train.json").write_text(content)
    with pytest.raises(DataError, match=f"instances_train.json: {says}"):
        coco(root)


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size of at least 1"):
        written(tmp_path, "voc", image_size=0)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(tmp_path, "voc")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"roundelay\[detection\]"):
        everything(data.train("north"))


def test_the_photographs_of_trees_are_those_of_five_devices() -> None:
    data = voc(data_folder("trees"))
    assert isinstance(data, FederatedData)
    sizes = {client: (len(data.train(client)), len(data.test(client) or ())) for client in data.clients}
    assert sizes == {
        "OSBS": (3, 1),
        "SOAP": (3, 1),
        "YELL-east": (44, 11),
        "YELL-south": (24, 6),
        "YELL-west": (41, 10),
    }
    train = data.train("SOAP")
    assert isinstance(train, DetectionExamples)
    album: Album = train.album
    assert (len(album.files), len(album.objects), album.classes) == (144, 849, ("tree",))
    assert bool((boxes.areas(album.objects[:, boxes.BOX]) > 0).all())

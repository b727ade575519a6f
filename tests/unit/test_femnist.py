"""LEAF's FEMNIST: writers are clients, greys are kept as they were; a file that is something else is named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import write_leaf

from roundelay.data import FederatedData, femnist
from roundelay.errors import DataError

RNG = np.random.default_rng(4)


def writer(number: int) -> tuple[np.ndarray, list[int]]:
    return RNG.integers(0, 256, (number, 784)), RNG.integers(0, 62, number).tolist()


WRITERS = {"f0001_41": writer(3), "f0000_14": writer(1), "f0002_07": writer(2)}
TESTS = {"f0001_41": writer(2), "f0009_99": writer(1)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = list(WRITERS)
    write_leaf(tmp_path / "train" / "all_data_0_train.json", {name: WRITERS[name] for name in names[:2]})
    write_leaf(tmp_path / "train" / "all_data_1_train.json", {names[2]: WRITERS[names[2]]})
    write_leaf(tmp_path / "test" / "all_data_0_test.json", TESTS)
    return tmp_path


def all_of(part: object) -> tuple[torch.Tensor, list[int]]:
    inputs, targets = next(part.batches(torch.arange(len(part)), 100))
    return inputs, targets.tolist()


def test_each_writer_holds_what_was_theirs(folder):
    data = femnist(folder)
    assert isinstance(data, FederatedData)
    assert data.clients == ("f0000_14", "f0001_41", "f0002_07")
    for name, (greys, classes) in WRITERS.items():
        inputs, targets = all_of(data.train(name))
        assert inputs.shape == (len(classes), 1, 28, 28)
        assert torch.equal(inputs.flatten(1), torch.from_numpy(greys).float() / 255)
        assert targets == classes
    assert all_of(data.test("f0001_41"))[1] == TESTS["f0001_41"][1]
    assert data.test("f0000_14") is None
    assert all_of(data.held_out)[1] == TESTS["f0001_41"][1] + TESTS["f0009_99"][1]  # who has no training data, too


def test_all_writers_share_one_tensor_of_bytes(folder):
    data = femnist(folder)
    bases = {data.train(name).pixels.inputs.data_ptr() for name in data.clients}
    assert len(bases) == 1
    assert data.train("f0001_41").pixels.inputs.nbytes == 6 * 784


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: "{" + json.dumps(d), "it is no JSON"),
        (lambda d: json.dumps({**d, "users": ["a"]}), "expected LEAF's users, num_samples and user_data"),
        (lambda d: json.dumps([d]), "expected LEAF's users, num_samples and user_data"),
        (lambda d: json.dumps({**d, "num_samples": [3]}), r"expected 3 images of 784 numbers .* got shape \(2, 784\)"),
        (lambda d: re.sub(r"\[0\.\d+, ", "[", json.dumps(d), count=1), "expected 2 images of 784 numbers"),
        (lambda d: re.sub(r"\[0\.\d+, ", '["ink", ', json.dumps(d), count=1), "got others"),
        (lambda d: re.sub(r"\[0\.\d+, ", "[-0.42, ", json.dumps(d), count=1), "255ths, got others"),
        (lambda d: re.sub(r'"y": \[\d+', '"y": [62', json.dumps(d)), "classes from 0 to 61"),
    ],
)
def test_a_damaged_file_is_named_with_the_writer(folder, spoil, says):
    file = folder / "train" / "all_data_1_train.json"
    content = spoil(json.loads(file.read_text()))
    file.write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        femnist(folder)
    assert str(file) in str(caught.value)


def test_what_is_absent_or_there_twice_is_said(folder):
    file = folder / "train" / "all_data_1_train.json"
    (folder / "train" / "copy.json").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"copy\.json: writer 'f0002_07' is in an earlier file too"):
        femnist(folder)
    for inner in (folder / "test").iterdir():
        inner.unlink()
    (folder / "train" / "copy.json").unlink()
    with pytest.raises(DataError, match=r"test: no \*\.json is there; put what LEAF's preprocess\.sh wrote"):
        femnist(folder)
    with pytest.raises(DataError, match="no such folder; make it and put LEAF's folders"):
        femnist(folder / "absent")

"""CIFAR in both its versions: what is written is what is read; a pickle runs nothing, whatever is in it."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import random_pixels, write_table

from roundelay.data.images import CIFAR10_MEAN, CIFAR10_STD, cifar, cifar10, cifar100, plain_pickle
from roundelay.errors import DataError

LABELS = [3, 1, 4, 1, 5]


def write_ten(folder: Path) -> np.ndarray:
    """Write two training batches and a test batch of CIFAR-10's Python version; return all the pixels."""
    pixels = random_pixels(15)
    for part, name in zip(np.split(pixels, 3), ("data_batch_1", "data_batch_2", "test_batch"), strict=True):
        write_table(folder / name, part, labels=LABELS)
    (folder / "readme.html").write_text("<html>")
    (folder / "batches.meta").write_bytes(b"no batch")
    return pixels


def test_the_python_version_of_cifar10_is_the_binary_one(tmp_path):
    pixels = write_ten(tmp_path)
    binary = tmp_path / "binary"
    binary.mkdir()
    for part, name in zip(np.split(pixels, 3), ("data_batch_1", "data_batch_2", "test_batch"), strict=True):
        records = np.concatenate([np.array(LABELS, dtype=np.uint8)[:, None], part], axis=1)
        (binary / f"{name}.bin").write_bytes(records.tobytes())
    one, other = cifar10(tmp_path), cifar10(binary)
    for first, second in ((one.train, other.train), (one.test, other.test)):
        inputs, targets = next(first.batches(torch.arange(len(first)), 100))
        wanted, labels = next(second.batches(torch.arange(len(second)), 100))
        assert torch.equal(inputs, wanted)
        assert torch.equal(targets, labels)
    red = (pixels[0].reshape(3, 32, 32)[0] / 255 - CIFAR10_MEAN[0]) / CIFAR10_STD[0]
    np.testing.assert_allclose(one.train[0][0][0], red, rtol=0, atol=1e-6)
    assert (len(one.train), len(one.test), one.name) == (10, 5, "cifar10")


@pytest.mark.parametrize("version", ["binary", "Python"])
def test_cifar100_has_fine_and_coarse_classes(tmp_path, version):
    pixels, fine, coarse = random_pixels(5), [99, 0, 7, 50, 7], [19, 0, 3, 4, 3]
    for name in ("train", "test"):
        if version == "Python":
            write_table(tmp_path / name, pixels, fine_labels=fine, coarse_labels=coarse)
        else:
            records = np.concatenate([np.array([coarse, fine], dtype=np.uint8).T, pixels], axis=1)
            (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    for data, wanted in ((cifar100(tmp_path), fine), (cifar100(tmp_path, coarse=True), coarse)):
        assert data.train.labels().tolist() == data.test.labels().tolist() == wanted
        assert data.name == "cifar100"
    blue = (pixels[4].reshape(3, 32, 32)[2] / 255 - cifar.CIFAR100_MEAN[2]) / cifar.CIFAR100_STD[2]
    np.testing.assert_allclose(cifar100(tmp_path).train[4][0][2], blue, rtol=0, atol=1e-6)


def test_what_is_wrong_is_named_with_its_file(tmp_path):
    with pytest.raises(DataError, match=r"train\.bin: no such file; put CIFAR-100's train\.bin"):
        cifar100(tmp_path)
    write_ten(tmp_path)
    (tmp_path / "test_batch").unlink()
    with pytest.raises(
        DataError, match=r"test_batch: no such file; put CIFAR-10's test_batch \(Python version\) there"
    ):
        cifar10(tmp_path)
    write_ten(tmp_path)
    cases = [
        (b"", "cannot read it"),
        (pickle.dumps({b"data": random_pixels(2), b"labels": [1, 2]}, 2)[:-20], "cannot read it .* replace it with"),
        (pickle.dumps([1], 2), r"expected a table \(dict\), it holds a list"),
        (pickle.dumps({b"labels": [1]}, 2), r"expected data of shape \(N, 3072\).*no such array among \['labels'\]"),
        (pickle.dumps({b"data": random_pixels(2)[:, 1:], b"labels": [1, 2]}, 2), r"got shape \(2, 3071\)"),
        (pickle.dumps({b"data": random_pixels(2), b"labels": [1]}, 2), "expected 2 labels, .* got 1 of them"),
        (pickle.dumps({b"data": random_pixels(2), b"fine_labels": [1, 2]}, 2), "got none among .*fine_labels"),
        (pickle.dumps({b"data": random_pixels(2), b"labels": [1, 10]}, 2), "labels 0 to 9, got 10 for image 1"),
        (pickle.dumps({b"data": random_pixels(2), b"labels": [1, -1]}, 2), "labels 0 to 9, got -1 for image 1"),
        (pickle.dumps({b"data": random_pixels(2) / 255, b"labels": [1, 2]}, 2), "unsigned bytes in C order"),
        (pickle.dumps({b"data": np.asfortranarray(random_pixels(2)), b"labels": [1, 2]}, 2), "in C order"),
    ]
    for content, says in cases:
        (tmp_path / "data_batch_2").write_bytes(content)
        with pytest.raises(DataError, match=says) as caught:
            cifar10(tmp_path)
        assert str(tmp_path / "data_batch_2") in str(caught.value)


class Hostile:
    """Anything whose unpickling calls something."""

    def __init__(self, *told: object) -> None:
        self.told = told

    def __reduce__(self) -> tuple[object, ...]:
        return self.told


def hostile(path: Path) -> dict[str, bytes]:
    """Return pickles that would each leave a file behind, or change what a later one means."""
    touch = f"open({str(path)!r}, 'w').close()"
    reach = f"cposix\nsystem\n(S'touch {path}'\ntR."
    array, dtype = "cnumpy.core.multiarray\n_reconstruct\n", "cnumpy\ndtype\n"
    return {
        "eval": pickle.dumps({"data": Hostile(eval, (touch,))}),
        "exec of Python 2": b"c__builtin__\neval\n(S" + repr(touch).encode() + b"\ntR.",
        "system": reach.encode(),
        "numpy's own loader": b"cnumpy\nload\n(S'x'\nI00\nI01\ntR.",
        "a submodule of numpy": b"cnumpy.testing._private.utils\nrunstring\n(S'x'\n}tR.",
        "attributes": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR.",
        "instance opcode": b"(S'true'\niposix\nsystem\n.",
        "object opcode": b"(cposix\nsystem\nS'true'\no.",
        "the extension registry": b"\x80\x02\x82\x01.",
        "a persistent id": b"Pwhatever\n.",
        "building on a function": f"{array}}}S'__call__'\nI1\nsb.".encode(),
        "a class from ours": f"\x80\x02{array})\x81.".encode("latin1"),
        "another codec": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        "a name with dots": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        "an array of objects": pickle.dumps({"data": np.array([Hostile(eval, (touch,))], dtype=object)}, 2),
        "a forged type of number": f"{dtype}(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb.".encode(),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_a_hostile_pickle_runs_nothing(tmp_path, name):
    write_ten(tmp_path)
    trace, before = tmp_path / "trace", dict(plain_pickle.ADMITTED)
    content = hostile(trace)[name]
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match="data_batch_1"):
        cifar10(tmp_path)
    assert not trace.exists()
    assert before == plain_pickle.ADMITTED


def test_what_one_file_builds_on_is_not_there_for_the_next(tmp_path):
    write_ten(tmp_path)
    for state in (b"}S'told'\nI1\ns", b"N}S'__doc__'\nS'told'\ns\x86"):
        (tmp_path / "data_batch_1").write_bytes(b"\x80\x02c_codecs\nencode\n" + state + b"b.")
        with pytest.raises(DataError, match="it changes what a name stands for"):
            cifar10(tmp_path)
    kept = plain_pickle.ADMITTED["_codecs", "encode"]
    assert not vars(kept)
    assert kept.__doc__.startswith("Return bytes")


def test_a_small_file_cannot_grow_without_end(tmp_path):
    (tmp_path / "test").touch()
    laughs = [1]
    for _ in range(60):
        laughs = [laughs, laughs]
    (tmp_path / "train").write_bytes(pickle.dumps({"data": laughs, "fine_labels": [1]}, 2))
    with pytest.raises(DataError, match="it holds a list"):
        cifar100(tmp_path)
    huge = b"\x80\x02}(S'data'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999L\ntS'b'\ntRu."
    (tmp_path / "train").write_bytes(huge)
    with pytest.raises(DataError, match="an array without values"):
        cifar100(tmp_path)

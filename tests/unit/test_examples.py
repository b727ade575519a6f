"""Examples: the same items in the same order whatever holds them; shared where they can be, refused where senseless."""

import pickle
from collections.abc import Iterator

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset, random_split

from roundelay.data import examples as module
from roundelay.data.examples import Data, Examples, MapExamples, TensorExamples, as_examples
from roundelay.errors import ConfigError, DataError


class Pairs(Dataset):
    """A map-style data set without an attribute that tells its labels."""

    def __init__(self, num: int) -> None:
        self.num, self.reads = num, 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.tensor([float(index), -float(index)]), index % 3


def tensors(num: int) -> TensorExamples:
    rows = torch.arange(num)
    return TensorExamples(torch.stack([rows.float(), -rows.float()], dim=1), rows % 3)


def read(examples: Examples, order: list[int], batch_size: int) -> list[tuple[list, list]]:
    batches = examples.batches(torch.tensor(order, dtype=torch.int64), batch_size)
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


@settings(deadline=None)
@given(data=st.data(), num=st.integers(1, 30), batch_size=st.integers(1, 9), kind=st.sampled_from([tensors, Pairs]))
def test_batches_are_the_items_at_those_positions_in_that_order(data, num, batch_size, kind):
    positions = st.lists(st.integers(0, num - 1), min_size=1, max_size=40)
    chosen = data.draw(positions)
    order = data.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=40))
    part = as_examples(kind(num)).select(torch.tensor(chosen))
    assert len(part) == len(chosen)
    assert part.labels().tolist() == [row % 3 for row in chosen]
    rows = [chosen[position] for position in order]
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    expected = [([[float(row), -float(row)] for row in group], [row % 3 for row in group]) for group in groups]
    assert read(part, order, batch_size) == expected


def test_a_view_of_a_view_counts_positions_in_the_view():
    for base in (tensors(10), MapExamples(Pairs(10))):
        inner = base.select(torch.tensor([7, 5, 3, 1])).select(torch.tensor([3, 0]))
        assert read(inner, [0, 1], 2) == [([[1.0, -1.0], [7.0, -7.0]], [1, 1])]


def test_batches_that_fill_several_blocks_lose_nothing(monkeypatch):
    row_bytes = tensors(1).inputs.nbytes
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * row_bytes)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    batches = list(tensors(50).batches(order, 3))
    assert [len(targets) for _, targets in batches] == [3] * 16 + [2]
    assert torch.cat([inputs for inputs, _ in batches])[:, 0].tolist() == order.tolist()


def test_a_block_is_bounded():
    part = TensorExamples(torch.zeros(300, 2**14), torch.zeros(300, dtype=torch.int64))  # 64 KiB an example
    first, _ = next(part.batches(torch.arange(300), 8))
    assert first.untyped_storage().nbytes() <= module.BLOCK_BYTES


def test_dtypes_stay_as_they_are():
    part = TensorExamples(torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4, 3, dtype=torch.float64))
    inputs, targets = next(part.batches(torch.arange(4), 4))
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.float64)


def test_views_share_the_base_tensors():
    base = tensors(10)
    view = base.select(torch.tensor([1, 2])).select(torch.tensor([0]))
    assert view.inputs is base.inputs
    assert view.targets is base.targets


def test_numpy_arrays_are_shared_and_read_only_ones_copied():
    array = np.zeros((4, 2), dtype=np.float32)
    shared = as_examples((array, np.arange(4)))
    array[0, 0] = 5
    assert shared.inputs[0, 0] == 5
    array.flags.writeable = False
    assert as_examples((array, np.arange(4))).inputs[0, 0] == 5
    assert as_examples((array[::-1], np.arange(4))).inputs[-1, 0] == 5


@pytest.mark.parametrize("module_", [pickle, cloudpickle])
def test_a_pickled_view_carries_its_own_examples_only(module_):
    base = TensorExamples(torch.randn(1000, 100), torch.arange(1000))
    view = base.select(torch.tensor([900, 3]))
    sliced = TensorExamples(base.inputs[:2], base.targets[:2])
    for part in (view, sliced):
        text = module_.dumps(part, protocol=5)
        assert len(text) < 5_000
        back = pickle.loads(text)
        assert torch.equal(back.labels(), part.labels())
        (inputs, _), (wanted, _) = (next(p.batches(torch.arange(2), 2)) for p in (back, part))
        assert torch.equal(inputs, wanted)


def test_map_items_are_read_when_a_batch_needs_them():
    dataset = Pairs(100)
    batches = as_examples(dataset).batches(torch.arange(100), 10)
    assert dataset.reads == 0
    next(batches)
    assert dataset.reads == 10


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_declared_labels_are_used_without_reading_items(name):
    dataset = Pairs(5)
    setattr(dataset, name, [4, 3, 2, 1, 0])
    assert as_examples(dataset).select(torch.tensor([1, 4])).labels().tolist() == [3, 0]
    assert dataset.reads == 0


def test_what_counts_as_examples():
    inputs, targets = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
    subset, _ = random_split(TensorDataset(inputs, targets), [3, 1], torch.Generator().manual_seed(1))
    pairs = [(inputs[n], int(targets[n])) for n in range(4)]
    for value, num in [
        ((inputs, targets), 4),
        ([inputs.numpy(), targets.numpy()], 4),
        ((inputs, targets.numpy()), 4),
        (TensorDataset(inputs, targets), 4),
        (subset, 3),
        (pairs, 4),
        (Pairs(4), 4),
    ]:
        examples = as_examples(value)
        assert isinstance(examples, Examples)
        assert len(examples) == len(examples.labels()) == num
        assert as_examples(examples) is examples
    assert isinstance(as_examples(subset), TensorExamples)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3), "Tensor of shape (3,)"),
        ((torch.zeros(3),) * 3, "tuple of 3 (Tensor, Tensor, Tensor)"),
        (TensorDataset(torch.zeros(3)), "TensorDataset"),
        (Stream(), "Stream"),
        ({"x": 1}, "dict"),
        ("mnist", "str"),
        (None, "NoneType"),
    ],
)
def test_what_does_not_is_named(value, says):
    with pytest.raises(DataError, match="expected examples: a pair") as caught:
        as_examples(value)
    assert says in str(caught.value)


def test_bad_tensors_are_refused():
    with pytest.raises(DataError, match=r"\(3, 2\) and \(4,\)"):
        TensorExamples(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(DataError, match="0 to 2, got 3"):
        TensorExamples(torch.zeros(3), torch.zeros(3), torch.tensor([0, 3]))
    with pytest.raises(DataError, match="int64"):
        tensors(3).select(torch.tensor([True, False, True]))
    with pytest.raises(DataError, match="array of"):
        as_examples((np.array(["a"]), np.array([1])))


@pytest.mark.parametrize("part", [tensors(5).select(torch.tensor([0, 1])), MapExamples(Pairs(5), torch.tensor([0, 1]))])
def test_bad_requests_are_refused_at_once(part):
    # -1 would silently be another client's last example, were it to reach the base.
    for position in (-1, 2):
        with pytest.raises(DataError, match=f"order: expected positions from 0 to 1, got {position}"):
            part.batches(torch.tensor([0, position]), 2)
        with pytest.raises(DataError, match=f"got {position}"):
            part.select(torch.tensor([position]))
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        part.batches(torch.arange(2), 0)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([torch.zeros(2)], "item 0 of list: expected a pair"),
        ([("text", 1)], "expected a batch to be two tensors"),
        ([(torch.zeros(2), 1), (torch.zeros(3), 1)], "do not stack"),
    ],
)
def test_items_that_do_not_batch_are_refused(items, says):
    with pytest.raises(DataError, match=says):
        list(MapExamples(items).batches(torch.arange(len(items)), 2))


def test_data_without_class_labels_says_so():
    with pytest.raises(DataError, match=r"torch.float32 of shape \(3, 1\)"):
        TensorExamples(torch.zeros(3), torch.zeros(3, 1)).labels()
    with pytest.raises(DataError, match="item 0 of list: expected an integer class"):
        as_examples([(torch.zeros(2), 0.5)]).labels()
    dataset = Pairs(3)
    dataset.targets = [{"box": 1}] * 3
    with pytest.raises(DataError, match=r"Pairs.targets: expected 3 integer classes, got a list of 3 \(dict"):
        as_examples(dataset).labels()
    dataset.targets = [1, 2]
    with pytest.raises(DataError, match=r"got torch.int64 of shape \(2,\)"):
        as_examples(dataset).labels()


def test_groups_must_fit_the_training_examples():
    with pytest.raises(DataError, match="expected 3 groups, one an example, got 2"):
        Data(train=tensors(3), groups=["a", "b"])

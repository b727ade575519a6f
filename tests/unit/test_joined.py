"""Parts read as one, and pooled data: all that clients have in one client's hands."""

import pickle

import numpy as np
import pytest
import torch

import roundelay as rd
from roundelay.data import TensorExamples, as_examples
from roundelay.data.joined import Joined
from roundelay.errors import DataError

INPUTS = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 5


class Items:
    """A map-style data set of examples 3 to 7."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < 5:
            raise IndexError(index)
        return INPUTS[3 + index], int(LABELS[3 + index])


def parts() -> list[rd.data.Examples]:
    base = TensorExamples(INPUTS, LABELS)
    return [base.select(torch.arange(3)), as_examples(Items()), base.select(torch.arange(8, 12))]


def test_joined_parts_read_as_one() -> None:
    joined = Joined(parts())
    assert len(joined) == 12
    assert joined.labels().tolist() == LABELS.tolist()
    assert all(torch.equal(joined[number][0], INPUTS[number]) for number in range(-12, 12))
    for seed in range(3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:10]
        for batch_size in (1, 4, 100):
            batches = list(joined.batches(order, batch_size))
            assert [len(targets) for _, targets in batches] == [len(group) for group in order.split(batch_size)]
            assert torch.equal(torch.cat([inputs for inputs, _ in batches]), INPUTS[order])
            assert torch.equal(torch.cat([targets for _, targets in batches]), LABELS[order])
        view = pickle.loads(pickle.dumps(Joined(parts()[::2]))).select(torch.tensor([6, 1]))
        assert torch.equal(next(view.batches(torch.arange(2), 2))[0], INPUTS[[11, 1]])
        assert view.labels().tolist() == LABELS[[11, 1]].tolist()


def test_joined_parts_refuse_what_any_examples_do() -> None:
    joined = Joined(parts())
    with pytest.raises(DataError, match="order: expected positions from 0 to 11, got 12"):
        joined.batches(torch.tensor([12]), 1)
    with pytest.raises(DataError, match="indices"):
        joined.select(torch.tensor([-1]))
    with pytest.raises(IndexError):
        joined[12]


def data() -> rd.FederatedData:
    one, two, three = parts()
    return rd.FederatedData.from_datasets({"b": two, "a": one, "c": three}, held_out=one, tests={"c": one})


def read(examples: rd.data.Examples | None) -> list[list[float]]:
    assert examples is not None
    inputs: torch.Tensor = next(examples.batches(torch.arange(len(examples)), len(examples)))[0]
    return inputs.tolist()


def test_pooled_data_is_what_all_clients_have_in_order_of_id() -> None:
    pooled = data().pooled("everybody")
    assert pooled.clients == ("everybody",)
    assert read(pooled.train("everybody")) == INPUTS.tolist()
    assert read(pooled.test("everybody")) == read(pooled.held_out) == INPUTS[:3].tolist()
    assert read(data().seen_through(lambda client, part: part.select(torch.tensor([0]))).pooled().train("all")) == (
        INPUTS[[0, 3, 8]].tolist()
    )


def test_pooled_parts_of_one_data_set_are_a_view_of_it() -> None:
    whole = rd.Data((INPUTS, LABELS))
    split = rd.IID(num_clients=3).split(whole, seed=1)
    pooled = rd.FederatedData.from_split(whole, split, client_test_fraction=0.25, seed=1).pooled()
    train, test = pooled.train("all"), pooled.test("all")
    assert isinstance(train, TensorExamples)
    assert isinstance(test, TensorExamples)
    assert train.inputs.data_ptr() == test.inputs.data_ptr() == INPUTS.data_ptr()
    assert sorted(read(train) + read(test)) == sorted(INPUTS.tolist())


def test_without_tests_pooled_data_has_none() -> None:
    parts = {"a": (np.zeros((2, 1)), np.zeros(2)), "b": (np.ones((1, 1)), np.ones(1))}
    pooled = rd.FederatedData.from_datasets(parts).pooled()
    assert pooled.test("all") is None
    assert pooled.held_out is None


def test_what_is_with_the_clients_cannot_be_pooled() -> None:
    with pytest.raises(DataError, match="nothing here to pool"):
        rd.FederatedData.elsewhere(["a"]).pooled()


def test_clients_that_stand_one_after_the_other_need_no_more_than_their_sizes() -> None:
    examples = TensorExamples(INPUTS, LABELS)
    held = rd.FederatedData.from_sizes(examples, {"a": (2, 1), "b": (5, 0), "c": (3, 1)})
    assert [read(held.train(client)) for client in held.clients] == [
        INPUTS[:2].tolist(), INPUTS[3:8].tolist(), INPUTS[8:11].tolist()
    ]  # fmt: skip
    assert held.test("b") is None
    assert read(held.test("c")) == INPUTS[11:].tolist()
    assert read(held.held_out) == INPUTS[[2, 11]].tolist()
    assert read(held.pooled().train("all")) == INPUTS[[0, 1, 3, 4, 5, 6, 7, 8, 9, 10]].tolist()
    assert rd.FederatedData.from_sizes(examples, {"a": (12, 0)}).held_out is None


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({}, "at least one"),
        ({"": (12, 0)}, "non-empty strings"),
        ({"b": (6, 0), "a": (6, 0)}, "ascending order, got 'b', 'a'"),
        ({"a": (0, 6), "b": (6, 0)}, "client 'a': expected at least one example"),
        ({"a": (6, 0), "b": (5, 0)}, "add up to 11, but there are 12 examples"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, tuple[int, int]], says: str) -> None:
    with pytest.raises(DataError, match=says):
        rd.FederatedData.from_sizes(TensorExamples(INPUTS, LABELS), sizes)

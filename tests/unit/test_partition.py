"""Partitioners give each example to exactly one client; a split survives a file; their data is shared, not copied."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay import files
from roundelay.data.examples import Data, TensorExamples
from roundelay.data.federated import FederatedData
from roundelay.data.partition import (
    IID,
    ClassMixture,
    Dirichlet,
    FromFile,
    Natural,
    QuantitySkew,
    Replicate,
    Shards,
    Split,
    client_ids,
)
from roundelay.errors import ConfigError, DataError


def labelled(num: int, num_classes: int = 10, seed: int = 0) -> Data:
    return Data.from_labels(torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed)))


MAKERS = {
    "iid": IID,
    "mixture": lambda n: ClassMixture(n, alpha=0.5),
    "dirichlet": lambda n: Dirichlet(n, alpha=0.5, min_examples=1),
    "shards": Shards,
    "quantity": lambda n: QuantitySkew(n, alpha=1.0, min_examples=1),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(
    num_clients=st.integers(1, 12),
    labels=st.lists(st.integers(0, 4), min_size=80, max_size=150),
    seed=st.integers(0, 9),
)
def test_each_example_is_used_exactly_once(name, num_clients, labels, seed):
    split = MAKERS[name](num_clients).split(Data.from_labels(labels), seed)
    assert torch.cat(list(split.values())).sort().values.tolist() == list(range(len(labels)))
    assert split.clients == client_ids(num_clients)
    assert int(split.sizes().min()) >= 1
    assert split.sizes().tolist() == [len(part) for part in split.values()]


@pytest.mark.parametrize("name", MAKERS)
def test_a_split_is_a_function_of_the_seed(name):
    data, partitioner = labelled(500), MAKERS[name](7)
    assert partitioner.split(data, seed=3) == partitioner.split(data, seed=3)
    assert partitioner.split(data, seed=3) != partitioner.split(data, seed=4)


@pytest.mark.parametrize("name", [*MAKERS, "natural", "replicate"])
def test_one_client_may_hold_everything(name):
    makers = {**MAKERS, "natural": lambda n: Natural(["0"] * 50), "replicate": Replicate}
    split = makers[name](1).split(labelled(50), seed=1)
    assert split.clients == ("0",)
    assert split["0"].tolist() == list(range(50))


def test_ids_sort_as_numbers():
    assert client_ids(1) == ("0",)
    assert client_ids(10)[-1] == "9"
    assert client_ids(100)[:2] == ("00", "01")
    assert client_ids(101)[-1] == "100"
    assert list(client_ids(1001)) == sorted(client_ids(1001))


def test_iid_sizes_differ_by_at_most_one_and_order_is_mixed():
    split = IID(7).split(Data.from_labels(torch.arange(100) // 10), seed=1)
    assert set(split.sizes().tolist()) == {14, 15}
    assert all(len(part.div(10, rounding_mode="floor").unique()) > 3 for part in split.values())


def test_iid_reads_no_labels():
    detection = Data(train=TensorExamples(torch.zeros(10), torch.zeros(10, 4)))
    assert IID(2).split(detection, seed=1).sizes().tolist() == [5, 5]
    with pytest.raises(DataError, match="labels"):
        Shards(2).split(detection, seed=1)


def test_dirichlet_follows_its_law():
    # A client's share of one class is Beta(alpha, (C - 1) alpha): mean 1/C, variance (C - 1) / (C^2 (C alpha + 1)).
    num_clients, alpha, num = 5, 0.7, 500
    labels = torch.arange(20).repeat_interleave(num)
    shares = torch.cat(
        [
            Dirichlet(num_clients, alpha, min_examples=1).split(Data.from_labels(labels), seed).label_counts(labels)
            / num
            for seed in range(20)
        ],
        dim=1,
    )
    variance = (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))
    # 2,000 draws, of which five at a time are tied by their sum: the standard error of the variance is below 4 %.
    assert float(shares.var(correction=0)) == pytest.approx(variance, rel=0.12)
    # No client is favoured: 400 draws each, standard error sqrt(variance / 400) = 0.0095.
    assert shares.mean(1).tolist() == pytest.approx([0.2] * num_clients, abs=0.04)


def test_a_class_mixture_follows_its_law_and_gives_all_clients_one_size():
    # A client's share of one class is Dirichlet-multinomial: mean 1/K, variance (K-1)/K^2 (n + K a) / (n (1 + K a)).
    num_clients, num_classes, alpha, size = 40, 4, 0.3, 25
    labels = torch.arange(num_classes).repeat_interleave(num_clients * size // num_classes)
    first = []  # while no class is used up
    for seed in range(100):
        split = ClassMixture(num_clients, alpha).split(Data.from_labels(labels), seed)
        assert set(split.sizes().tolist()) == {size}
        first.append(split.label_counts(labels)[:8] / size)
    shares, total = torch.cat(first), num_classes * alpha
    variance = (num_classes - 1) / num_classes**2 * (size + total) / (size * (1 + total))
    # 800 clients; the standard error of the variance is below 4 %, of a mean 0.011.
    assert float(shares.var(0, correction=0).mean()) == pytest.approx(variance, rel=0.12)
    assert shares.mean(0).tolist() == pytest.approx([1 / num_classes] * num_classes, abs=0.04)


def test_the_smaller_its_alpha_the_fewer_classes_a_client_has():
    labels = labelled(5000).train.labels()
    splits = [ClassMixture(100, alpha).split(Data.from_labels(labels), 1) for alpha in (1e-3, 0.1, 100.0)]
    kinds = [(split.label_counts(labels) > 0).sum(1).float().mean() for split in splits]
    assert kinds[0] < 1.6 < 2 < kinds[1] < 5 < 9 < kinds[2]
    assert set(ClassMixture(7, 1e-3).split(Data.from_labels(labels), 1).sizes().tolist()) == {714, 715}


def test_dirichlet_gives_random_members_of_a_class():
    split = Dirichlet(4, alpha=100.0).split(Data.from_labels([0] * 400), seed=1)
    for part in split.values():
        assert float(part.float().mean()) == pytest.approx(199.5, abs=50)


def test_dirichlet_keeps_its_minimum_by_redrawing():
    data = labelled(2000)
    assert int(Dirichlet(20, alpha=0.3, min_examples=1).split(data, seed=1).sizes().min()) < 45
    assert int(Dirichlet(20, alpha=0.3, min_examples=45).split(data, seed=1).sizes().min()) >= 45
    assert int(QuantitySkew(20, alpha=0.5, min_examples=1).split(data, seed=1).sizes().min()) < 5
    assert int(QuantitySkew(20, alpha=0.5, min_examples=5).split(data, seed=1).sizes().min()) >= 5


def test_a_minimum_out_of_reach_says_what_to_change():
    data = labelled(1000)
    with pytest.raises(ConfigError, match=r"min_examples: .*never had more than \d+; raise alpha"):
        Dirichlet(50, alpha=0.05, min_examples=20).split(data, seed=1)
    with pytest.raises(ConfigError, match="raise alpha, or lower min_examples or num_clients"):
        QuantitySkew(50, alpha=0.05, min_examples=20).split(data, seed=1)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e6])
def test_extreme_alphas_still_use_each_example_once(alpha):
    split = Dirichlet(2, alpha, min_examples=1).split(labelled(300), seed=5)
    assert int(split.sizes().sum()) == 300


def test_shards_hold_few_classes_each():
    labels = torch.arange(10).repeat_interleave(100)
    counts = Shards(50, shards_per_client=2).split(Data.from_labels(labels), seed=1).label_counts(labels)
    assert counts.sum(1).tolist() == [20] * 50
    assert int((counts > 0).sum(1).max()) == 2
    assert set(counts[counts > 0].tolist()) <= {10, 20}


def test_natural_clients_bear_their_own_names():
    groups = ["zoe", "adam", "zoe", "beth"]
    for data, natural in [
        (Data.from_labels([0, 1, 0, 1], groups), Natural()),
        (Data.from_labels([0, 1, 0, 1]), Natural(np.array(groups))),
    ]:
        split = natural.split(data, seed=1)
        assert {client: part.tolist() for client, part in split.items()} == {"adam": [1], "beth": [3], "zoe": [0, 2]}
        assert all(type(client) is str for client in split)


def test_natural_needs_groups_that_fit():
    data = Data.from_labels([0, 1])
    with pytest.raises(DataError, match="no natural client ids"):
        Natural().split(data, seed=1)
    with pytest.raises(ConfigError, match="groups: expected 2 client ids, one an example, got 1"):
        Natural(["a"]).split(data, seed=1)
    with pytest.raises(ConfigError, match="non-empty strings, got 7 for example 1"):
        Natural(["a", 7]).split(data, seed=1)


def test_replicas_hold_everything():
    split = Replicate(3).split(labelled(5), seed=1)
    assert [part.tolist() for part in split.values()] == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: IID(0), "num_clients: expected a whole number of at least 1, got 0"),
        (lambda: IID(True), "num_clients: .* got True"),
        (lambda: Shards(2.0), "num_clients: .* got 2.0"),
        (lambda: Shards(2, 0), "shards_per_client: .* got 0"),
        (lambda: Replicate("3"), "num_clients: .* got '3'"),
        (lambda: ClassMixture(2, 0.0), "alpha: expected a finite number above 0, got 0.0"),
        (lambda: ClassMixture(6, 1.0).split(labelled(5), 1), "num_clients: 6 needs at least 6 examples"),
        (lambda: Dirichlet(2, 0.0), "alpha: expected a finite number above 0, got 0.0"),
        (lambda: Dirichlet(2, float("nan")), r"alpha: .* got nan"),
        (lambda: QuantitySkew(2, float("inf")), "alpha: .* got inf"),
        (lambda: QuantitySkew(2, 1.0, -1), "min_examples: .* got -1"),
        (lambda: IID(6).split(labelled(5), 1), "num_clients: 6 needs at least 6 examples in all, got a data set of 5"),
        (lambda: Shards(3, 2).split(labelled(5), 1), "shards_per_client: 2 needs at least 6 examples"),
        (lambda: Dirichlet(3, 1.0, 2).split(labelled(5), 1), "min_examples: 2 needs at least 6 examples"),
        (lambda: QuantitySkew(3, 1.0, 2).split(labelled(5), 1), "min_examples: 2 needs at least 6 examples"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


# --- Split ---


def test_a_split_is_a_mapping_in_order_of_client():
    split = Split.from_parts({"b": [3, 1], "a": torch.tensor([2]), "c": []}, num_examples=5)
    assert dict(split).keys() == {"a", "b", "c"}
    assert list(split) == ["a", "b", "c"]
    assert split["b"].tolist() == [1, 3]
    assert split["c"].tolist() == []
    assert split.sizes().tolist() == [1, 2, 0]
    assert "d" not in split
    with pytest.raises(KeyError):
        split["bb"]


def test_label_counts():
    split = Split.from_parts({"a": [0, 1, 4], "b": [1, 2]}, num_examples=5)  # 1 is shared, 3 is nobody's
    assert split.label_counts(torch.tensor([0, 2, 2, 3, 0])).tolist() == [[2, 0, 1, 0], [0, 0, 2, 0]]
    with pytest.raises(DataError, match="expected one class for each of 5 examples"):
        split.label_counts(torch.tensor([0, 1]))
    with pytest.raises(DataError, match="from 0 up, got -1"):
        split.label_counts(torch.tensor([0, -1, 2, 3, 0]))


@settings(max_examples=50, deadline=None)
@given(
    parts=st.dictionaries(st.text(min_size=1, max_size=5), st.sets(st.integers(0, 19)), min_size=1, max_size=6),
    surplus=st.integers(0, 3),
)
def test_a_split_survives_file_and_pickle(tmp_path_factory, parts, surplus):
    split = Split.from_parts({client: list(part) for client, part in parts.items()}, num_examples=20 + surplus)
    path = tmp_path_factory.mktemp("split") / "split.json"
    split.save(path)
    assert Split.load(path) == split
    assert pickle.loads(pickle.dumps(split)) == split
    assert split != replace(split, num_examples=99)


def document(**changes: object) -> str:
    return json.dumps({"format": "roundelay split 1", "num_examples": 4, "clients": {"a": [0, 2], "b": [1]}, **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected an object of format, num_examples and clients, got list"),
        ('{"format": "roundelay split 1"}', "got format"),
        (document(extra=1), "got clients, extra, format, num_examples"),
        (document(format="other"), "expected 'roundelay split 1', got 'other'"),
        (document(num_examples=True), "num_examples: expected a whole number, got True"),
        (document(num_examples=2), "client 'a': expected positions from 0 to 1, got 2"),
        (document(clients=[]), "clients: expected an object, got list"),
        (document(clients={}), "at least one client"),
        (document(clients={"": [1]}), "non-empty strings, got ''"),
        (document(clients={"a": 3}), "client 'a': expected a list of positions, got int"),
        (document(clients={"a": [1.0]}), "client 'a': expected positions from 0 to 3, got 1.0"),
        (document(clients={"a": [-1]}), "got -1"),
        (document(clients={"a": [10**30]}), "got 1000000"),
        (document(clients={"z": [0], "a": [0, 3, 3]}), "client 'a': expected each position once, ascending, got 3"),
        ('{"format": 1, "format": 1}', "'format' occurs twice"),
        ("[" * 100_000, "not a valid split"),
    ],
)
def test_a_bad_file_names_file_and_culprit(tmp_path, text, says):
    path = tmp_path / "who.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Split.load(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        Split.load(tmp_path / "absent.json")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "split.json"
    old = Split.from_parts({"a": [0]}, num_examples=2)
    old.save(path)

    def dies(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        Split.from_parts({"a": [1]}, num_examples=2).save(path)
    assert Split.load(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_from_file_gives_back_what_was_saved_for_this_data(tmp_path):
    path = tmp_path / "split.json"
    split = Shards(3).split(labelled(60), seed=1)
    split.save(path)
    assert FromFile(path).split(labelled(60), seed=9) == split
    with pytest.raises(DataError, match="it splits 60 examples, labels has 61"):
        FromFile(path).split(labelled(61), seed=1)


def test_parts_that_are_no_positions_are_refused():
    with pytest.raises(DataError, match="client 'a': expected whole positions"):
        Split.from_parts({"a": [0.5]}, num_examples=3)
    with pytest.raises(DataError, match="non-empty strings, got 7"):
        Split.from_parts({7: [0], "a": [1]}, num_examples=3)
    with pytest.raises(DataError, match="client 'b': expected positions from 0 to 2, got 3"):
        Split.from_parts({"a": [0], "b": [3]}, num_examples=3)
    with pytest.raises(DataError, match="ascending order"):
        Split(("b", "a"), torch.tensor([0, 1]), torch.tensor([0, 1, 2]), 2)
    with pytest.raises(DataError, match="offsets"):
        Split(("a", "b"), torch.tensor([0, 1]), torch.tensor([0, 1, 1]), 2)


# --- FederatedData ---


def federated(num: int = 100, num_clients: int = 10, fraction: float = 0.0) -> tuple[Data, FederatedData]:
    data = replace(labelled(num), test=TensorExamples(torch.zeros(3), torch.zeros(3, dtype=torch.int64)))
    split = QuantitySkew(num_clients, alpha=2.0, min_examples=1).split(data, seed=1)
    return data, FederatedData.from_split(data, split, client_test_fraction=fraction, seed=1)


def test_clients_hold_their_part_of_one_data_set():
    data, parts = federated()
    split = QuantitySkew(10, alpha=2.0, min_examples=1).split(data, seed=1)
    assert parts.clients == split.clients
    assert parts.held_out is data.test
    for client in parts.clients:
        assert parts.train(client).labels().tolist() == data.train.labels()[split[client]].tolist()
        assert parts.train(client).inputs is data.train.inputs
        assert parts.test(client) is None


def test_a_clients_test_part_is_its_own_and_apart_from_its_training():
    rows = torch.arange(100)
    data = Data(train=TensorExamples(rows, rows % 3))
    split = Split.from_parts(
        {"many": range(60), "two": [60, 61], "one": [62], "rest": range(63, 100)}, num_examples=100
    )
    parts = FederatedData.from_split(data, split, client_test_fraction=0.2, seed=1)

    def held(examples: TensorExamples) -> set[int]:
        return {int(row) for inputs, _ in examples.batches(torch.arange(len(examples)), 7) for row in inputs}

    sizes = {client: len(parts.test(client)) for client in ("many", "two", "rest")}
    assert sizes == {"many": 12, "two": 1, "rest": 7}
    assert parts.test("one") is None
    assert held(parts.train("one")) == {62}
    for client in sizes:
        assert held(parts.train(client)) | held(parts.test(client)) == set(split[client].tolist())
        assert not held(parts.train(client)) & held(parts.test(client))
    # Another client's coming or going changes nothing for this one.
    alone = Split.from_parts({"rest": range(63, 100)}, num_examples=100)
    again = FederatedData.from_split(data, alone, client_test_fraction=0.2, seed=1)
    assert held(again.test("rest")) == held(parts.test("rest")) != set(range(63, 70))
    other = FederatedData.from_split(data, alone, client_test_fraction=0.2, seed=2)
    assert held(other.test("rest")) != held(parts.test("rest"))


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_pickled_it_holds_the_data_once(fraction):
    train = TensorExamples(torch.randn(1000, 100), torch.arange(1000) % 10)
    data = Data(train=train)
    parts = FederatedData.from_split(data, IID(100).split(data, seed=1), client_test_fraction=fraction)
    text = cloudpickle.dumps(parts, protocol=5)
    assert len(text) < 1.1 * train.inputs.nbytes
    back = pickle.loads(text)
    assert back.train("07").inputs is back.train("93").inputs
    for client in parts.clients:
        assert torch.equal(back.train(client).labels(), parts.train(client).labels())


def test_pickled_slices_of_one_tensor_are_not_pickled_a_hundred_times():
    inputs, targets = torch.randn(1000, 100), torch.arange(1000)
    parts = FederatedData.from_datasets({f"{n:02d}": (inputs[n::100], targets[n::100]) for n in range(100)})
    text = cloudpickle.dumps(parts, protocol=5)
    assert len(text) < 1.3 * inputs.nbytes
    assert pickle.loads(text).train("42").labels().tolist() == targets[42::100].tolist()


def test_data_that_came_apart_already():
    pair = (torch.zeros(3, 2), torch.arange(3))
    parts = FederatedData.from_datasets({"b": pair, "a": [(torch.zeros(2), 1)]}, held_out=pair, tests={"b": pair})
    assert parts.clients == ("a", "b")
    assert [len(parts.train(client)) for client in parts.clients] == [1, 3]
    assert parts.test("a") is None
    assert len(parts.test("b")) == len(parts.held_out) == 3


def test_an_unknown_client_is_named():
    for parts in (federated()[1], FederatedData.from_datasets({"0": [(torch.zeros(1), 1)]})):
        for ask in (parts.train, parts.test):
            for name in ("mallory", "", "/"):  # after all that there are, and before them
                with pytest.raises(DataError, match=f"client '{name}': it holds no data; known are '0'"):
                    ask(name)


def test_bad_federated_data_is_refused():
    data, some = labelled(4), [(torch.zeros(1), 1)]
    empty = Split.from_parts({"a": [0], "b": [], "c": [1]}, num_examples=4)
    with pytest.raises(DataError, match="client 'b': expected at least one example"):
        FederatedData.from_split(data, empty)
    with pytest.raises(DataError, match="4 training examples, the split is of 5"):
        FederatedData.from_split(data, IID(2).split(labelled(5), seed=1))
    with pytest.raises(ConfigError, match=r"client_test_fraction: .* got 1\.0"):
        FederatedData.from_split(data, IID(2).split(data, seed=1), client_test_fraction=1.0)
    with pytest.raises(DataError, match="client 'b': expected at least one example"):
        FederatedData.from_datasets({"a": some, "b": []})
    with pytest.raises(DataError, match="client 'b': expected examples"):
        FederatedData.from_datasets({"a": some, "b": 7})
    with pytest.raises(DataError, match="client 'z' has no training data"):
        FederatedData.from_datasets({"a": some}, tests={"z": some})
    with pytest.raises(DataError, match="non-empty strings, got 1"):
        FederatedData.from_datasets({1: some})
    with pytest.raises(DataError, match="at least one client"):
        FederatedData.from_datasets({})


def test_a_path_is_taken_as_text_too(tmp_path: Path):
    split = IID(2).split(labelled(4), seed=1)
    split.save(str(tmp_path / "s.json"))
    assert FromFile(str(tmp_path / "s.json")).split(labelled(4), seed=1) == split

"""Ids by a rule, sequences of them that nobody holds, and tables of clients on disk."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import roundelay as rd
from roundelay.data.client_tables import client_table, write_client_table
from roundelay.data.ids import NumberedIds, Picked, Without, place
from roundelay.errors import ConfigError, DataError


@pytest.mark.parametrize("count", [1, 9, 10, 11, 1000, 1001])
def test_numbered_ids_are_those_of_the_partitioners_in_order(count: int) -> None:
    ids = NumberedIds(count, "phone-")
    listed = list(ids)
    assert listed == sorted(listed)
    assert len(set(listed)) == len(listed) == len(ids) == count
    assert [ids.index(client) for client in listed] == list(range(count))
    labels = rd.Data.from_labels(torch.zeros(2 * count, dtype=torch.int64))
    assert list(rd.IID(count).split(labels, seed=1).clients) == list(NumberedIds(count))


def test_whatever_is_no_id_has_no_place() -> None:
    ids = NumberedIds(1000, "c")
    strangers = (
        "",
        "c",
        "c1",
        "c0999 ",
        "1",
        "c1000",
        "c-01",
        "c+01",
        "d001",
        "c0001",
        "c\u0661\u0661\u0661",
        "c1_0",
        7,
    )
    assert [client for client in strangers if client in ids or place(ids, client) is not None] == []
    with pytest.raises(ValueError, match="is not among these ids"):
        ids.index("c1000")
    with pytest.raises(IndexError):
        ids[1000]
    for wrong in (0, True, 2.0):
        with pytest.raises(ConfigError, match="num_clients must be a whole number of at least 1"):
            NumberedIds(wrong)


def test_slices_and_what_is_left_out_are_what_lists_would_hold() -> None:
    draw = random.Random(3)
    for count in (1, 2, 7, 60):
        ids = NumberedIds(count)
        listed = list(ids)
        for _ in range(40):
            left_out = draw.sample(listed, draw.randrange(count + 1))
            stay = [client for client in listed if client not in left_out]
            lazy = Without(ids, [*left_out, "a stranger"])
            assert list(lazy) == stay
            assert [place(lazy, client) for client in listed] == [place(stay, client) for client in listed]
            start, stop, step = draw.randrange(-9, 70), draw.randrange(-9, 70), draw.choice([1, 2, 5, -1, -3])
            some = slice(draw.choice([None, start]), draw.choice([None, stop]), step)
            assert list(lazy[some]) == stay[some]
            assert [client in lazy[some] for client in listed] == [client in stay[some] for client in listed]
            assert isinstance(lazy[some], Picked)


# ---- tables ---------------------------------------------------------------------------------------------------------

ROW = torch.ones(1, 2), torch.ones(1)
NAMES = ["Ann", "Zoë", "bob", "bob-2", "ö", "日本"]


def parts() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: (torch.randn(n, 7, generator=generator), torch.randint(0, 3, (n,), generator=generator))
        for n, name in enumerate(NAMES, start=3)
    }


def test_a_table_gives_back_what_was_written_client_by_client(tmp_path: Path) -> None:
    assert sorted(NAMES) == NAMES  # as UTF-8, too
    write_client_table(tmp_path / "table", parts().items())
    data = client_table(tmp_path / "table", held_out=parts()["bob"])
    assert list(data.clients) == NAMES
    for client, (inputs, targets) in parts().items():
        got = data.train(client)
        assert torch.equal(got.inputs, inputs)
        assert torch.equal(got.targets, targets)
        assert data.size(client) == len(inputs)
    assert data.held_out is not None
    assert len(data.held_out) == 5
    assert len(pickle.dumps(client_table(tmp_path / "table"))) < 1000  # its path, not its rows
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.train("日本").inputs, parts()["日本"][0])
    for stranger in ("An", "Anna", "bob-22222222222222222222", "z", "", "ö\0"):
        with pytest.raises(DataError, match="it holds no data"):
            data.train(stranger)


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    inputs, targets = torch.arange(12.0).view(6, 2), torch.arange(6)
    view = rd.data.TensorExamples(inputs, targets).select(torch.tensor([4, 1]))
    columns = rd.data.TensorExamples(inputs.t().contiguous().t()[::2], targets[::2])
    write_client_table(
        tmp_path / "table", [("a", view), ("b", columns), ("c", (np.ones((1, 2), np.float32), np.zeros(1, int)))]
    )
    data = client_table(tmp_path / "table")
    assert data.train("a").inputs.tolist() == [[8, 9], [2, 3]]
    assert data.train("b").inputs.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert data.train("b").targets.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ([], "expected at least one client"),
        ([("b", ROW), ("a", ROW)], "'b' before 'a'"),
        ([("a", ROW)] * 2, "'a' before 'a'"),
        ([("a\0", ROW)], "without a zero byte"),
        ([("a", ROW), ("b", (torch.ones(1, 3), torch.ones(1)))], "'b': expected rows"),
        ([("a", (torch.ones(0, 2), torch.ones(0)))], "client 'a': expected at least one example"),
        ([("a", [(torch.ones(2), 1)])], "client 'a': a table holds rows of two tensors"),
        ([("a", (torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1)))], "bfloat16"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_table_is_refused_by_name_and_is_none(
    clients: list[tuple[str, object]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        write_client_table(tmp_path / "table", clients)
    with pytest.raises(DataError, match="expected a table written by write_client_table"):
        client_table(tmp_path / "table")


def test_a_spoilt_table_and_one_in_the_way_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    write_client_table(folder, parts().items())
    with pytest.raises(DataError, match="is there already"):
        write_client_table(folder, parts().items())
    for name in ("inputs", "offsets", "ids"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(DataError, match="cannot read it"):
            client_table(folder)
        (folder / name).write_bytes(whole)
    (folder / "table.json").write_text('{"format": "another"}')
    with pytest.raises(DataError, match="its format is 'another'"):
        client_table(folder)

"""Tables by site: what sites could add up is what the whole table gives; what is wrong is named by file and line."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import roundelay as rd
from roundelay.data.examples import Examples, TensorExamples
from roundelay.data.tabular import Moments, csv_by_site
from roundelay.errors import ConfigError, DataError
from roundelay.learner import LocalSGD
from roundelay.models import Logistic

SITES = {"north": 25, "south": 10, "west": 4}


def generated(folder: Path, sites: dict[str, int] = SITES, missing: float = 0.1) -> list[list[str]]:
    """Write a table: age, dose (some missing), colour, site, and an outcome that follows from age."""
    draws = np.random.default_rng(3)
    rows = []
    for site, count in sites.items():
        for age, dose, other in draws.normal([60, 1000, 0], [9, 300, 1], (count, 3)):
            colour = ("red", "green", "blue")[int(draws.integers(3))]
            cell = "" if draws.random() < missing else f"{dose:.3f}"
            rows.append([f"{age:.3f}", cell, colour, site, "died" if age + 2 * other > 60 else "alive"])
    draws.shuffle(rows)
    written(folder, ["age", "dose", "colour", "site", "outcome"], rows)
    return rows


def written(folder: Path, header: list[str], rows: list[list[str]]) -> None:
    (folder / "table.csv").write_text("".join(",".join(cells) + "\n" for cells in [header, *rows]))


def read(folder: Path, **changes: object) -> rd.FederatedData:
    settings = {"target": "outcome", "site": "site", "numeric": ["age", "dose"], "categorical": ["colour"], **changes}
    return csv_by_site(folder, **settings)  # type: ignore[arg-type]


def whole(part: Examples | None) -> tuple[Tensor, Tensor]:
    assert part is not None
    (batch,) = part.batches(torch.arange(len(part)), len(part))
    return batch


def trained_on(data: rd.FederatedData) -> Tensor:
    return torch.cat([whole(data.train(client))[0] for client in data.clients])


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_every_row_is_at_its_site_once_with_its_class_and_its_categories(tmp_path: Path) -> None:
    rows = generated(tmp_path)
    data = read(tmp_path, standardise="none")
    assert data.clients == ("north", "south", "west")
    for site in data.clients:
        there = sorted(
            (float(r[0]), r[4] == "died", ["blue", "green", "red"].index(r[2])) for r in rows if r[3] == site
        )
        inputs, targets = (
            torch.cat(parts) for parts in zip(whole(data.train(site)), whole(data.test(site)), strict=True)
        )
        found = sorted(
            zip(inputs[:, 0].tolist(), targets.bool().tolist(), inputs[:, 2:].argmax(1).tolist(), strict=True)
        )
        assert [row[0] for row in found] == pytest.approx([row[0] for row in there])
        assert [row[1:] for row in found] == [row[1:] for row in there]
        assert torch.equal(inputs[:, 2:].sum(1), torch.ones(len(inputs)))


def test_without_named_columns_all_others_are_numeric_and_classes_are_in_order_of_numbers(tmp_path: Path) -> None:
    rows = [[str(value), "A" if value % 2 else "B", str(10 - value % 3)] for value in range(12)]
    written(tmp_path, ["x", "site", "grade"], rows)
    data = csv_by_site(tmp_path, target="grade", site="site", standardise="none", test_fraction=0)
    inputs, targets = whole(data.train("B"))
    assert inputs[:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert targets.tolist() == [2, 0, 1, 2, 0, 1]  # classes 8, 9, 10, which as text would begin with 10
    assert data.held_out is None
    assert data.test("B") is None


def test_sites_test_on_their_own_rows_and_the_server_on_those_of_all(tmp_path: Path) -> None:
    generated(tmp_path)
    data = read(tmp_path, test_fraction=0.2)
    tests = [whole(data.test(client)) for client in data.clients]
    assert [len(targets) for _, targets in tests] == [5, 2, 1]
    assert [len(data.train(client)) for client in data.clients] == [20, 8, 3]
    assert torch.equal(whole(data.held_out)[0], torch.cat([inputs for inputs, _ in tests]))
    other = read(tmp_path, test_fraction=0.2, seed=1)
    assert not torch.equal(whole(other.held_out)[0], whole(data.held_out)[0])


def test_a_site_more_does_not_change_which_rows_the_others_test_on(tmp_path: Path) -> None:
    rows = generated(tmp_path)
    before = read(tmp_path, standardise="none")
    written(tmp_path, ["age", "dose", "colour", "site", "outcome"], [["1", "2", "red", "east", "died"]] * 5 + rows)
    after = read(tmp_path, standardise="none")
    for client in before.clients:
        assert torch.equal(whole(before.test(client))[0][:, 0], whole(after.test(client))[0][:, 0])


# ---- what is computed over sites ------------------------------------------------------------------------------------


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    draws = np.random.default_rng(3)
    values = draws.normal([0.0, 1e6, -3.0], [1.0, 1e-2, 50.0], (200, 3))  # the second: far from zero, hardly varying
    values[draws.random(values.shape) < 0.2] = np.nan
    values[:50, 2] = np.nan  # a site without a single value of a column
    parts = [Moments.of(values[start:stop]) for start, stop in pairwise([0, 50, 51, 120, 200])]
    added = parts[0] + parts[1] + parts[2] + parts[3]
    assert added.count.tolist() == (~np.isnan(values)).sum(0).tolist()
    assert added.mean == pytest.approx(np.nanmean(values, axis=0), rel=1e-12)
    assert added.std() == pytest.approx(np.nanstd(values, axis=0), rel=1e-6)


def test_pooled_columns_have_mean_0_and_deviation_1_over_all_training_rows_and_tests_have_no_say(
    tmp_path: Path,
) -> None:
    rows = generated(tmp_path, missing=0)
    data = read(tmp_path)
    inputs = trained_on(data)[:, :2]
    assert inputs.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert inputs.std(0, unbiased=False).tolist() == pytest.approx([1, 1], abs=1e-6)
    raw = read(tmp_path, standardise="none")
    tested = set(whole(raw.held_out)[0][:, 0].tolist())
    changed = [[str(float(r[0]) + 500), *r[1:]] if np.float32(r[0]) in tested else r for r in rows]
    assert changed != rows
    written(tmp_path, ["age", "dose", "colour", "site", "outcome"], changed)
    assert torch.equal(trained_on(read(tmp_path)), trained_on(data))


def test_a_site_can_standardise_by_itself(tmp_path: Path) -> None:
    generated(tmp_path, missing=0)
    data = read(tmp_path, standardise="site")
    for client in data.clients:
        inputs = whole(data.train(client))[0][:, :2]
        assert inputs.mean(0).tolist() == pytest.approx([0, 0], abs=1e-5)
        assert inputs.std(0, unbiased=False).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_missing_number_becomes_the_training_mean_or_drops_its_row_or_is_refused(tmp_path: Path) -> None:
    rows = generated(tmp_path, {"north": 40, "south": 20}, missing=0.3)
    num_missing = sum(row[1] == "" for row in rows)
    data = read(tmp_path)
    assert int((trained_on(data)[:, 1] == 0).sum() + (whole(data.held_out)[0][:, 1] == 0).sum()) == num_missing
    raw = read(tmp_path, standardise="none")
    values, counts = torch.unique(trained_on(raw)[:, 1], return_counts=True)
    mean = values[counts.argmax()]
    assert float(mean) == pytest.approx(float(trained_on(raw)[:, 1][trained_on(raw)[:, 1] != mean].mean()), rel=1e-5)
    fewer = read(tmp_path, missing="drop")
    assert len(trained_on(fewer)) + len(whole(fewer.held_out)[0]) == len(rows) - num_missing
    line = 2 + next(number for number, row in enumerate(rows) if row[1] == "")
    with pytest.raises(DataError, match=rf"table\.csv, line {line}, column 'dose': the cell has no value; fill it in"):
        read(tmp_path, missing="refuse")


def test_a_column_that_does_not_vary_or_has_no_value_is_0_and_never_nan(tmp_path: Path) -> None:
    written(tmp_path, ["x", "y", "site", "t"], [["7", "NA", site, str(n % 2)] for site in "ab" for n in range(4)])
    for standardise in ("pooled", "site"):
        data = csv_by_site(tmp_path, target="t", site="site", standardise=standardise)  # type: ignore[arg-type]
        assert torch.equal(trained_on(data), torch.zeros(6, 2))


def test_a_category_that_is_missing_or_only_in_a_test_is_0_everywhere(tmp_path: Path) -> None:
    rows = [[colour, "a", "01"[n % 2]] for n, colour in enumerate(["red", "red", "", "red", "blue", "red"])]
    written(tmp_path, ["colour", "site", "t"], rows)
    found = set()
    for seed in range(30):
        data = csv_by_site(tmp_path, target="t", site="site", categorical=["colour"], test_fraction=0.2, seed=seed)
        inputs, held = trained_on(data), whole(data.held_out)[0]
        found.add((inputs.shape[1], float(held.sum())))
    assert found == {(2, 1.0), (2, 0.0), (1, 0.0)}  # red is tested on, or the missing one, or the only blue one


def test_no_row_is_copied_for_a_site(tmp_path: Path) -> None:
    generated(tmp_path)
    data = read(tmp_path)
    parts = [*(data.train(client) for client in data.clients), data.held_out]
    assert len({part.inputs.data_ptr() for part in parts if isinstance(part, TensorExamples)}) == 1


def test_a_table_trains_a_model_that_knows_the_outcome(tmp_path: Path) -> None:
    generated(tmp_path, {"north": 120, "south": 60, "west": 20})
    job = rd.Job(
        model=lambda: Logistic(5, 2),
        data=read(tmp_path),
        num_rounds=20,
        learner=LocalSGD(lr=0.5, local_epochs=2),
        tracking=None,
        evaluation=rd.Evaluation(clients_every=20),
    )
    history = job.run(rd.Simulation("serial"))
    assert history.metrics["accuracy"] > 0.8
    assert history.metrics["client_accuracy"] == pytest.approx(history.metrics["accuracy"])


# ---- mistakes -------------------------------------------------------------------------------------------------------

HEAD = "age,dose,colour,site,outcome\n"
GOOD = HEAD + "60,1,red,a,0\n50,2,blue,a,1\n" * 4
MISTAKES = {
    "absent": (None, {}, r"table\.csv: no such file; put the table there as CSV.*'outcome' and 'site' among them"),
    "empty": ("", {}, r"table\.csv: it is empty; expected a line of column names"),
    "no rows": (HEAD, {}, r"table\.csv: it has column names and no rows"),
    "missing column": (
        GOOD.replace("dose", "amount"),
        {},
        r"table\.csv: there is no column 'dose'; it has age, amount.*c",
    ),
    "column twice": (GOOD.replace("dose", "age"), {"numeric": ["age"]}, r"table\.csv: column 'age' is there 2 times"),
    "not a number": (
        GOOD + "\n6o,1,red,a,1\n",
        {},
        r"table\.csv, line 11, column 'age': expected a number, got '6o'; c",
    ),
    "infinite": (GOOD + "inf,1,red,a,1\n", {}, r"line 10, column 'age': expected a number, got 'inf'"),
    "a cell too many": (GOOD + "60,1,000,red,a,1\n", {}, r"table\.csv, line 10: expected 5 cells .*, got 6; is a com"),
    "no target": (GOOD + "60,1,red,a,\n", {}, r"line 10, column 'outcome': the cell has no value; a row without a"),
    "no site": (GOOD + "60,1,red,NA,1\n", {}, r"line 10, column 'site': the cell has no value; say at which site"),
    "one row": (
        GOOD + "60,1,red,b,1\n",
        {},
        r"table\.csv, line 10: it is the only row that site 'b' can use.*small_si",
    ),
    "no site left": (HEAD + "60,1,red,a,0\n", {"small_sites": "drop"}, r"table\.csv: no site has two rows or more"),
    "not text": (GOOD.encode() + b"60,1,\xff,a,1\n", {}, r"table\.csv: cannot read it as a CSV file in UTF-8"),
    "an open quote": (GOOD + '60,1,"red,a,1\n', {}, r"table\.csv: cannot read it as a CSV file"),
}


@pytest.mark.parametrize(("content", "changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_table_that_cannot_be_used_is_named_with_the_place_and_what_to_do(
    content: str | bytes | None, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "table.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"standardise": "median"}, "standardise: expected one of pooled, site, none, got 'median'"),
        ({"missing": "median"}, "missing: expected one of mean, drop, refuse, got 'median'"),
        ({"small_sites": "keep"}, "small_sites: expected one of refuse, drop, got 'keep'"),
        ({"test_fraction": 1.0}, r"test_fraction: expected a number in \[0, 1\), got 1.0"),
        ({"numeric": ["age", "site"]}, "column 'site' is named twice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(GOOD)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **changes)


def test_a_site_of_one_row_is_left_out_where_that_is_asked_for_or_trains_where_nobody_is_tested(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(GOOD + "60,1,red,b,1\n")
    assert read(tmp_path, small_sites="drop").clients == ("a",)
    assert read(tmp_path, test_fraction=0).clients == ("a", "b")


# ---- what is shown of it --------------------------------------------------------------------------------------------


def test_the_run_folder_tells_how_many_of_each_class_each_site_trains_on(tmp_path: Path) -> None:
    generated(tmp_path)
    data = read(tmp_path)
    counts = data.label_counts()
    assert counts == [torch.bincount(data.train(client).labels(), minlength=2).tolist() for client in data.clients]
    tracking = rd.Tracking(root=str(tmp_path), name="run")
    job = rd.Job(model=lambda: Logistic(5, 2), data=data, num_rounds=1, learner=LocalSGD(lr=0.1), tracking=tracking)
    job.run(rd.Simulation("serial"))
    shown = json.loads((tmp_path / "run" / "label_counts.json").read_text())
    assert shown == {"clients": ["north", "south", "west"], "counts": counts}


def test_without_classes_there_is_nothing_to_count_and_no_item_is_read_for_it() -> None:
    numbers = rd.FederatedData.from_datasets({"a": (torch.zeros(3, 1), torch.zeros(3))})
    assert numbers.label_counts() is None

    class Costly:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise AssertionError("nobody asked for it")

    assert rd.FederatedData.from_datasets({"a": Costly()}).label_counts() is None

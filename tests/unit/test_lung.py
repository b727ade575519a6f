"""The lung data: who is left out, which class is which, both codings of a death, and the table inside lifelines."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from roundelay.data import lung
from roundelay.errors import ConfigError, DataError, MissingExtra

HEADER = "inst,time,status,age,sex,ph.ecog,ph.karno,pat.karno,meal.cal,wt.loss"
REST = "60,1,1,90,80,,5"
PATIENTS = [
    ("3.0", 100, 1, 1),  # died within the year
    ("3.0", 365, 1, 1),  # on its last day
    ("3.0", 366, 1, 0),  # after it
    ("3.0", 400, 0, 0),  # seen alive after it
    ("3.0", 365, 0, 0),  # and on its last day
    ("12", 200, 0, None),  # nobody knows
    ("12", 30, 1, 1),
    ("12", 800, 0, 0),
    ("", 30, 1, None),  # no institution
    ("33", 30, 1, None),  # the only one at its institution
]


def folder_with(tmp_path: Path, died: int = 1, censored: int = 0) -> Path:
    codes = {1: died, 0: censored}
    lines = [f"{inst},{time},{codes[status]},{REST}" for inst, time, status, _ in PATIENTS]
    (tmp_path / "lung.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return tmp_path


@pytest.mark.parametrize(("died", "censored"), [(1, 0), (2, 1)], ids=["lifelines", "R"])
def test_who_died_within_the_year_is_of_class_1_and_of_whom_nobody_knows_is_left_out(
    died: int, censored: int, tmp_path: Path
) -> None:
    assert lung(folder_with(tmp_path, died, censored)).clients == ("03", "12")
    data = lung(tmp_path, test_fraction=0)
    assert data.clients == ("03", "12", "33")  # one patient can train, where nobody is tested
    for client in ("03", "12"):
        wanted = [
            label
            for inst, _, _, label in PATIENTS
            if inst.removesuffix(".0") == client.lstrip("0") and label is not None
        ]
        assert data.train(client).labels().tolist() == wanted


def test_another_horizon_gives_other_classes_and_other_patients(tmp_path: Path) -> None:
    data = lung(folder_with(tmp_path), horizon_days=150, test_fraction=0)
    assert data.train("03").labels().tolist() == [1, 0, 0, 0, 0]
    assert data.train("12").labels().tolist() == [0, 1, 0]  # who left on day 200 was alive on day 150
    with pytest.raises(ConfigError, match="horizon_days: expected a number above 0, got 0"):
        lung(tmp_path, horizon_days=0)


def test_a_table_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lung\.csv: no such file; put the table there, as R writes it"):
        lung(tmp_path)
    file = folder_with(tmp_path, died=3) / "lung.csv"
    with pytest.raises(DataError, match=r"lung\.csv, column 'status': expected 0 and 1.*got 0, 3"):
        lung(tmp_path)
    file.write_text(file.read_text().replace("ph.ecog", "ecog"))
    with pytest.raises(DataError, match=r"lung\.csv: there is no column 'ph.ecog'"):
        lung(tmp_path)


def test_without_lifelines_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roundelay.data.ncctg.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"roundelay\[lung\]"):
        lung()


def test_the_table_inside_lifelines_is_that_of_the_paper() -> None:
    if find_spec("lifelines") is None:
        pytest.skip("no lung data: lifelines is not installed")
    data = lung()
    parts = [(data.train(client), data.test(client)) for client in data.clients]
    sizes = [len(train) + len(test) for train, test in parts if test is not None]
    assert (len(sizes), sum(sizes), min(sizes), max(sizes)) == (17, 184, 3, 30)
    assert sum(int(part.labels().sum()) for both in parts for part in both if part is not None) == 119
    ((inputs, _),) = data.train("01").batches(torch.arange(24), 24)
    assert inputs.shape == (24, 7)
    assert inputs.isfinite().all()

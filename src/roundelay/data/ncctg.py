"""Advanced lung cancer by institution: 228 patients of the North Central Cancer Treatment Group at 18 institutions.

Loprinzi et al. 1994, Prospective evaluation of prognostic variables from patient-completed questionnaires, J Clin Oncol
12(3), 601-607. The table is R's ``survival::lung``, and comes inside the package lifelines.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from roundelay.data.federated import FederatedData
from roundelay.data.tables import Table, read_table
from roundelay.data.tabular import Standardise, by_site
from roundelay.errors import ConfigError, DataError, MissingExtra

__all__ = ["lung"]

FEATURES = ("age", "sex", "ph.ecog", "ph.karno", "pat.karno", "meal.cal", "wt.loss")
"""Age in years; sex (1 male, 2 female); ECOG score and Karnofsky index as judged by the physician, the latter as judged
by the patient too; calories eaten at meals; pounds lost in the last six months.
"""


def lung(
    folder: str | os.PathLike[str] | None = None,
    horizon_days: float = 365.0,
    standardise: Standardise = "pooled",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> FederatedData:
    """Read ``lung.csv`` of a folder, else the one inside lifelines: institution = client, class 1 = died within
    ``horizon_days``. Inputs are the seven ``FEATURES``, float32 (N, 7); ``tabular.by_site`` says what is done to them.

    Left out: patients who were last seen alive before the horizon, since nobody knows (42 of 228 for a year); the one
    whose institution is not told; and, where there are tests, an institution that has one patient left. For a year
    that leaves 184 patients, 119 of whom died, at 17 institutions. ``status`` is as in lifelines (1 died, 0 censored)
    or in R (2 and 1).

    Raises:
        ConfigError: ``horizon_days`` is not above 0.
        DataError: the file is absent or something else; names it.
        MissingExtra: no folder is given, and lifelines is not installed.
    """
    if not horizon_days > 0:
        raise ConfigError(f"horizon_days: expected a number above 0, got {horizon_days!r}")
    table = read_table(_file(folder), ["inst"], ["time", "status", *FEATURES])
    time = table.numbers["time"]
    table.require("time", ~np.isnan(time), "say after how many days the patient died or was last seen alive")
    died = _died(table)
    known = (died | (time >= horizon_days)) & (table.words["inst"] != "")
    labels = (died & (time <= horizon_days)).astype(np.int64)[known]
    table = table.rows(known)
    sites = np.array([_institution(table, row) for row in range(len(table))], dtype=object)
    told = Table(table.file, {name: table.numbers[name] for name in FEATURES}, {}, table.lines)
    return by_site(
        told, sites, labels, standardise=standardise, small_sites="drop", test_fraction=test_fraction, seed=seed
    )


def _file(folder: str | os.PathLike[str] | None) -> Path:
    if folder is not None:
        file = Path(folder) / "lung.csv"
        if not file.is_file():
            raise DataError(f"{file}: no such file; put the table there, as R writes it with write.csv(survival::lung, "
                            "'lung.csv'), or leave folder out to read the one inside lifelines")  # fmt: skip
        return file
    found = find_spec("lifelines")  # importing it would bring in pandas and autograd, for a table of 9 kB
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("lifelines", "lung")
    return Path(found.submodule_search_locations[0]) / "datasets" / "lung.csv"


def _died(table: Table) -> np.ndarray:
    status = table.numbers["status"]
    table.require("status", ~np.isnan(status), "say whether the patient died")
    codes = set(status.tolist())
    if not (codes <= {0.0, 1.0} or codes <= {1.0, 2.0}):
        raise DataError(f"{table.file}, column 'status': expected 0 and 1, for censored and died (lifelines), or 1 and "
                        f"2 (R), got {', '.join(f'{code:g}' for code in sorted(codes))}")  # fmt: skip
    return np.asarray(status == max(codes))


def _institution(table: Table, row: int) -> str:
    """Return a number of two digits, so that the order of clients is that of institutions; lifelines writes "3.0"."""
    text = table.words["inst"][row]
    try:
        return f"{int(float(text)):02d}"
    except ValueError:
        raise DataError(
            f"{table.file}, line {table.lines[row]}, column 'inst': expected a number, got {text!r}"
        ) from None

"""Tables by site: a CSV file in which a column says at which site each row was written. A site is a client.

What is computed over sites is computed from sums that add up (``Moments``), so that sites can exchange them in place
of rows: a column's mean and standard deviation. Medians do not add up, and are not used.

Shapes: N rows, F numeric columns, W columns of what a model reads.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from roundelay import seeds
from roundelay.data.examples import TensorExamples
from roundelay.data.federated import FederatedData
from roundelay.data.tables import Table, read_table
from roundelay.errors import ConfigError, DataError

__all__ = ["csv_by_site"]

Standardise = Literal["pooled", "site", "none"]
Missing = Literal["mean", "drop", "refuse"]
SmallSites = Literal["refuse", "drop"]


def csv_by_site(
    folder: str | os.PathLike[str],
    target: str,
    site: str,
    file: str = "table.csv",
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    standardise: Standardise = "pooled",
    missing: Missing = "mean",
    small_sites: SmallSites = "refuse",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> FederatedData:
    """Read ``file`` in ``folder``: each different value of column ``site`` is a client, each one of ``target`` a class,
    in their order as numbers where all of them are numbers, else as text. Inputs are float32 (N, W), targets int64.

    ``numeric`` columns come first, then for each of the ``categorical`` ones a column of 0 and 1 for each of its values
    in the training rows, sorted; with neither, all other columns are numeric. See ``by_site`` for what is done to them.

    Raises:
        ConfigError: an argument means nothing.
        DataError: the file cannot be read so; names the file, the column and the line.
    """
    path = Path(folder) / file
    if not path.is_file():
        raise DataError(f"{path}: no such file; put the table there as CSV, its first line naming the columns, "
                        f"{target!r} and {site!r} among them, or give file = \"...\"")  # fmt: skip
    named = [target, site, *numeric, *categorical]
    if len(set(named)) != len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise ConfigError(f"column {twice!r} is named twice: it is the target, the site, numeric or categorical")
    table = read_table(path, [target, site, *categorical], numeric if numeric or categorical else None)
    table.require(target, table.words[target] != "", "a row without a target teaches nothing: remove it")
    table.require(site, table.words[site] != "", "say at which site the row was written, or remove it")
    classes = _sorted(set(table.words[target].tolist()))
    labels = np.array([classes.index(value) for value in table.words[target].tolist()], dtype=np.int64)
    return by_site(table, table.words[site], labels, categorical, standardise=standardise, missing=missing,
                   small_sites=small_sites, test_fraction=test_fraction, seed=seed)  # fmt: skip


def by_site(
    table: Table,
    sites: np.ndarray,
    labels: np.ndarray,
    categorical: Sequence[str] = (),
    *,
    standardise: Standardise = "pooled",
    missing: Missing = "mean",
    small_sites: SmallSites = "refuse",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> FederatedData:
    """Return a table's numeric columns and those ``categorical`` ones, row n with class ``labels[n]`` at ``sites[n]``.

    Each site keeps ``test_fraction`` of its rows for its test, rounded, at least one and never all; the server holds
    those of all sites together. Which ones depends on ``seed``, the site and how many rows it has. A site of one row,
    which cannot do both, is refused, or left out with ``small_sites = "drop"``.

    Numeric columns are standardised by mean and standard deviation (of the population) over the training rows of all
    sites, or of each site itself, or stay as they are. A number that is ``missing`` becomes that mean; or its row is
    dropped; or the table is refused. A category that is missing, or in no training row, is 0 in all its columns.
    """
    for name, value, known in (
        ("standardise", standardise, Standardise),
        ("missing", missing, Missing),
        ("small_sites", small_sites, SmallSites),
    ):
        if value not in get_args(known):
            raise ConfigError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction: expected a number in [0, 1), got {test_fraction!r}")
    if not table.numbers and not categorical:
        raise ConfigError("there is no column to learn from beside target and site: name numeric or categorical ones")
    values_NF = np.stack([*table.numbers.values()], axis=1) if table.numbers else np.empty((len(table), 0))
    if missing == "drop":
        kept = np.logical_not(np.isnan(values_NF).any(axis=1))
        table, sites, labels, values_NF = table.rows(kept), sites[kept], labels[kept], values_NF[kept]
    elif missing == "refuse":
        for name, column in table.numbers.items():
            table.require(name, ~np.isnan(column), 'fill it in, or say missing = "mean" or "drop"')
    parts = _parted(table, sites, small_sites, test_fraction, seed)
    columns = [
        _numbers(values_NF, parts, standardise),
        *(_indicators(table.words[name], parts) for name in categorical),
    ]
    inputs_NW = torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))
    base = TensorExamples(inputs_NW, torch.from_numpy(labels))
    train = {site: base.select(part) for site, (part, _) in parts.items()}
    test = {site: base.select(part) for site, (_, part) in parts.items() if len(part)}
    held_out = base.select(torch.cat([part for _, part in parts.values()])) if test else None
    return FederatedData.from_datasets(train, held_out, test or None)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """How many values each column has, their mean, and the sum of their squared distances from it, (F,) float64 each.
    Moments of two sites add up to those of both together (Chan, Golub and LeVeque 1979, equation 2.1).
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values_NF: np.ndarray) -> "Moments":
        """Return those of rows, in which NaN is no value."""
        there = ~np.isnan(values_NF)
        count = there.sum(axis=0).astype(np.float64)
        mean = np.where(there, values_NF, 0.0).sum(axis=0) / np.maximum(count, 1)
        return cls(count, mean, (np.where(there, values_NF - mean, 0.0) ** 2).sum(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        share, apart = other.count / np.maximum(count, 1), other.mean - self.mean
        return Moments(count, self.mean + share * apart, self.squares + other.squares + self.count * share * apart**2)

    def std(self) -> np.ndarray:
        """Return the population's standard deviation, and 1 where a column does not vary."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(deviation > 0, deviation, 1.0)


Part = tuple[torch.Tensor, torch.Tensor]
"""One site's rows, ascending int64 positions: those that it trains on, those of its test."""


def _parted(
    table: Table, sites: np.ndarray, small_sites: SmallSites, test_fraction: float, seed: int
) -> Mapping[str, Part]:
    """Return the parts of each site, in order of site."""
    parts: dict[str, Part] = {}
    names, owners, sizes = np.unique(sites, return_inverse=True, return_counts=True)
    for site, rows in zip(names.tolist(), np.split(owners.argsort(kind="stable"), sizes.cumsum()[:-1]), strict=True):
        positions, size = torch.from_numpy(rows), len(rows)
        if size == 1 and test_fraction > 0:
            if small_sites == "drop":
                continue
            raise DataError(
                f"{table.file}, line {table.lines[rows[0]]}: it is the only row that site {site!r} can use, which "
                'cannot both train and be tested; leave such sites out with small_sites = "drop", or test nobody with '
                "test_fraction = 0"
            )
        num_test = min(size - 1, max(1, round(test_fraction * size))) if test_fraction > 0 else 0
        order = torch.randperm(size, generator=seeds.generator(seed, 0, 0, site, "site test"))
        parts[site] = positions[order[num_test:].sort().values], positions[order[:num_test].sort().values]
    if not parts:
        raise DataError(f"{table.file}: no site has two rows or more that can be used, one to train and one to test")
    return parts


def _numbers(values_NF: np.ndarray, parts: Mapping[str, Part], standardise: Standardise) -> np.ndarray:
    own = {site: Moments.of(values_NF[train.numpy()]) for site, (train, _) in parts.items()}
    pooled = reduce(add, own.values())
    filled = values_NF.copy()
    for site, part in parts.items():
        moments = own[site] if standardise == "site" else pooled
        rows = torch.cat(part).numpy()
        values = np.where(np.isnan(values_NF[rows]), moments.mean, values_NF[rows])
        filled[rows] = values if standardise == "none" else (values - moments.mean) / moments.std()
    return filled


def _indicators(words: np.ndarray, parts: Mapping[str, Part]) -> np.ndarray:
    """Return (N, K): a column for each of the K values that some site trains on."""
    levels: set[str] = set().union(*(words[train.numpy()].tolist() for train, _ in parts.values())) - {""}
    return np.stack([words == level for level in _sorted(levels)], axis=1) if levels else np.empty((len(words), 0))


def _sorted(values: set[str]) -> list[str]:
    """Return values in their order as numbers where all of them are numbers, else as text."""
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)

"""Who holds what: partitioners, frozen values whose constructor is their configuration, and the ``Split`` they return.

All draws are keyed by (seed, "partition"), so a split depends on nothing but the seed, the labels and the arguments.
numpy may change its Dirichlet stream from one version to the next; where a split must outlive that, ``Split.save`` it
and use ``FromFile``.

Shapes: N examples, C clients, K classes.
"""

import json
import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Data
from roundelay.errors import ConfigError, DataError
from roundelay.files import save_atomically

MAX_DRAWS = 1000
"""How often a Dirichlet draw is repeated before a minimum size is called out of reach."""

FILE_FORMAT = "roundelay split 1"


@dataclass(frozen=True, slots=True, eq=False)
class Split(Mapping[str, Tensor]):
    """What each client holds: a mapping from client id to ascending int64 positions, in order of client id.

    Held as two tensors however many clients there are: client number i holds ``indices[offsets[i]:offsets[i + 1]]``.
    What the mapping gives are views of ``indices``; do not write to them. Clients may share examples, and an example
    may be held by nobody.

    Raises:
        DataError: ids are not ascending non-empty strings, or a client's positions not ascending below num_examples.

    >>> split = Split.from_parts({"b": [2, 0], "a": [1]}, num_examples=3)
    >>> {client: positions.tolist() for client, positions in split.items()}
    {'a': [1], 'b': [0, 2]}
    """

    clients: tuple[str, ...]
    indices: Tensor
    offsets: Tensor
    num_examples: int

    def __post_init__(self) -> None:
        if not self.clients:
            raise DataError("split: expected at least one client, got none")
        for client in self.clients:
            if not isinstance(client, str) or not client:
                raise DataError(f"split: expected client ids to be non-empty strings, got {client!r}")
        for before, after in pairwise(self.clients):
            if before >= after:
                raise DataError(
                    f"split: expected client ids in ascending order, each once, got {before!r} before {after!r}"
                )
        for name, tensor in (("indices", self.indices), ("offsets", self.offsets)):
            if tensor.dtype != torch.int64 or tensor.ndim != 1:
                raise DataError(
                    f"split: expected {name} int64 of shape (N,), got {tensor.dtype} of {tuple(tensor.shape)}"
                )
        ends = self.offsets.tolist()
        if len(ends) != len(self.clients) + 1 or ends[0] != 0 or ends[-1] != len(self.indices) or sorted(ends) != ends:
            raise DataError(f"split: offsets do not cut {len(self.indices)} positions into {len(self.clients)} clients")
        self._check_positions()

    def _check_positions(self) -> None:
        wrong = (self.indices < 0) | (self.indices >= self.num_examples)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            allowed = f"0 to {self.num_examples - 1}"
            raise DataError(
                f"client {self._holder(at)!r}: expected positions from {allowed}, got {int(self.indices[at])}"
            )
        descends = self.indices.diff() <= 0
        starts = self.offsets[1:-1]
        descends[starts[(starts > 0) & (starts < len(self.indices))] - 1] = False
        if descends.any():
            at = int(descends.nonzero()[0]) + 1
            raise DataError(
                f"client {self._holder(at)!r}: expected each position once, ascending, got {int(self.indices[at])} late"
            )

    def _holder(self, at: int) -> str:
        return self.clients[int(torch.searchsorted(self.offsets, at, right=True)) - 1]

    @classmethod
    def from_parts(cls, parts: Mapping[str, Sequence[int] | Tensor], num_examples: int) -> "Split":
        """Return the split that gives each client its part, in whatever order clients and positions come."""
        clients = tuple(sorted(parts, key=str))
        tensors = [_positions(client, parts[client]).sort().values for client in clients]
        offsets = torch.tensor([0, *map(len, tensors)]).cumsum(0)
        return cls(clients, torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.int64), offsets, num_examples)

    @classmethod
    def from_owners(cls, clients: Sequence[str], owners: Tensor) -> "Split":
        """Return the split that gives example n to ``clients[owners[n]]``: each example to exactly one client."""
        sizes = torch.bincount(owners, minlength=len(clients))
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        return cls(tuple(clients), owners.argsort(stable=True), offsets, len(owners))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Split":
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is absent or not a valid split; the message names the file and the culprit.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected a split saved by Split.save, cannot read it ({error})") from error
        try:
            return cls._parse(json.loads(text, object_pairs_hook=_unique_keys))
        except (ValueError, RecursionError) as error:  # DataError and json's own are ValueErrors
            raise DataError(f"{path}: not a valid split: {error}; was it made by Split.save?") from error

    @classmethod
    def _parse(cls, document: object) -> "Split":
        if not isinstance(document, dict) or set(document) != {"format", "num_examples", "clients"}:
            got = ", ".join(sorted(document)) if isinstance(document, dict) else type(document).__name__
            raise DataError(f"expected an object of format, num_examples and clients, got {got or 'an empty object'}")
        if document["format"] != FILE_FORMAT:
            raise DataError(f"format: expected {FILE_FORMAT!r}, got {document['format']!r}")
        num_examples, parts = document["num_examples"], document["clients"]
        if type(num_examples) is not int or not 0 <= num_examples < 2**63:
            raise DataError(f"num_examples: expected a whole number, got {num_examples!r}")
        if not isinstance(parts, dict):
            raise DataError(f"clients: expected an object, got {type(parts).__name__}")
        for client, part in parts.items():
            if not isinstance(part, list):
                raise DataError(f"client {client!r}: expected a list of positions, got {type(part).__name__}")
            for position in part:
                if type(position) is not int or not 0 <= position < num_examples:
                    raise DataError(
                        f"client {client!r}: expected positions from 0 to {num_examples - 1}, got {position!r}"
                    )
        return cls.from_parts(parts, num_examples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON; the file is either the old one or the whole new one, whatever interrupts."""
        indices = self.indices.tolist()
        parts = {
            client: indices[start:stop]
            for client, (start, stop) in zip(self.clients, pairwise(self.offsets.tolist()), strict=True)
        }
        document = {"format": FILE_FORMAT, "num_examples": self.num_examples, "clients": parts}
        text = json.dumps(document, separators=(",", ":"))
        save_atomically(Path(path), lambda file: file.write(text.encode()))

    def sizes(self) -> Tensor:
        """Return how many examples each client holds, int64 of shape (C,)."""
        return self.offsets.diff()

    def label_counts(self, labels: Tensor) -> Tensor:
        """Return how many examples of each class each client holds, int64 (C, K); K is the largest label plus one.

        Raises:
            DataError: ``labels`` is not one class, 0 or more, for each example that was split.
        """
        if labels.shape != (self.num_examples,) or labels.is_floating_point() or labels.is_complex():
            got = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise DataError(f"labels: expected one class for each of {self.num_examples} examples, got {got}")
        if len(labels) and int(labels.min()) < 0:
            raise DataError(f"labels: expected classes from 0 up, got {int(labels.min())}")
        num_classes = int(labels.max()) + 1 if len(labels) else 0
        holders = torch.repeat_interleave(torch.arange(len(self.clients)), self.sizes())
        cells = holders * num_classes + labels.to(torch.int64)[self.indices]
        return torch.bincount(cells, minlength=len(self.clients) * num_classes).view(len(self.clients), num_classes)

    def __getitem__(self, client: str) -> Tensor:
        at = bisect_left(self.clients, client)
        if at == len(self.clients) or self.clients[at] != client:
            raise KeyError(client)
        return self.indices[int(self.offsets[at]) : int(self.offsets[at + 1])]

    def __iter__(self) -> Iterator[str]:
        return iter(self.clients)

    def __len__(self) -> int:
        return len(self.clients)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Split):
            return NotImplemented
        same = (self.clients, self.num_examples) == (other.clients, other.num_examples)
        return same and torch.equal(self.offsets, other.offsets) and torch.equal(self.indices, other.indices)

    def __repr__(self) -> str:
        return f"Split({len(self.clients)} clients hold {len(self.indices)} of {self.num_examples} examples)"


class Partitioner(Protocol):
    """One way to give a data set's training examples to clients."""

    def split(self, data: Data, seed: int) -> Split:
        """Return who holds what; labels and groups are read only where the partitioner needs them.

        Raises:
            ConfigError: the arguments ask for what this data cannot give.
            DataError: the data lacks labels or groups that are needed.
        """
        ...


@dataclass(frozen=True, slots=True)
class IID:
    """Examples at random, sizes that differ by at most one.

    >>> IID(3).split(Data.from_labels([0, 1, 0, 1, 0, 1, 0]), seed=1).sizes().tolist()
    [3, 2, 2]
    """

    num_clients: int

    def __post_init__(self) -> None:
        _check_count("num_clients", self.num_clients)

    def split(self, data: Data, seed: int) -> Split:
        num_examples = len(data.train)
        _check_enough("num_clients", self.num_clients, self.num_clients, num_examples)
        owners = _empty_owners(num_examples)
        owners[_shuffled(num_examples, seed)] = torch.arange(num_examples) % self.num_clients
        return Split.from_owners(client_ids(self.num_clients), owners)


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Label skew: each class goes to the clients in proportions drawn from a symmetric Dirichlet(alpha) over clients.

    This is the *class-wise* variant of Yurochkin et al. 2019 (Bayesian nonparametric federated learning):
    for each class k draw p_k ~ Dir_C(alpha) and give client c the share p_kc of that class; sizes are unequal too. As
    in NIID-Bench (Li et al. 2022), everything is drawn again until each client has ``min_examples``, here at most
    ``MAX_DRAWS`` times. Two relatives are something else: Hsu et al. 2019 draw a mixture of classes for each client,
    all of one size; and the code of NIID-Bench also gives a client that already has N/C examples nothing of the
    classes still to come, which makes sizes a little more even.
    """

    num_clients: int
    alpha: float
    min_examples: int = 10

    def __post_init__(self) -> None:
        _check_count("num_clients", self.num_clients)
        _check_alpha(self.alpha)
        _check_count("min_examples", self.min_examples)

    def split(self, data: Data, seed: int) -> Split:
        labels = data.train.labels()
        num_examples = len(labels)
        _check_enough("min_examples", self.min_examples, self.num_clients * self.min_examples, num_examples)
        class_sizes = torch.unique(labels, return_counts=True)[1].tolist()
        counts = _draw_counts(self.num_clients, self.alpha, class_sizes, self.min_examples, seed)
        # Shuffled within each class, the classes one after the other, as the counts are.
        shuffled = _shuffled(num_examples, seed)
        order = shuffled[labels[shuffled].argsort(stable=True)]
        owners = _empty_owners(num_examples)
        holders = torch.arange(self.num_clients).repeat(len(class_sizes))
        owners[order] = holders.repeat_interleave(torch.from_numpy(counts).flatten())
        return Split.from_owners(client_ids(self.num_clients), owners)


@dataclass(frozen=True, slots=True)
class Shards:
    """Few classes a client: sort by label, cut into equal shards, deal ``shards_per_client`` to each client at random.

    The pathological non-IID split of McMahan et al. 2017 (section 3); examples are shuffled within a class, and shard
    sizes differ by at most one where the division leaves a rest.
    """

    num_clients: int
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        _check_count("num_clients", self.num_clients)
        _check_count("shards_per_client", self.shards_per_client)

    def split(self, data: Data, seed: int) -> Split:
        labels = data.train.labels()
        num_examples, num_shards = len(labels), self.num_clients * self.shards_per_client
        _check_enough("shards_per_client", self.shards_per_client, num_shards, num_examples)
        draws = _generator(seed)
        shuffled = torch.randperm(num_examples, generator=draws)
        order = shuffled[labels[shuffled].argsort(stable=True)]
        shard_owners = torch.randperm(num_shards, generator=draws) // self.shards_per_client
        owners = _empty_owners(num_examples)
        owners[order] = shard_owners[torch.arange(num_examples) * num_shards // num_examples]
        return Split.from_owners(client_ids(self.num_clients), owners)


@dataclass(frozen=True, slots=True)
class QuantitySkew:
    """Sizes in proportions drawn from a symmetric Dirichlet(alpha), labels at random (NIID-Bench's quantity skew).

    Drawn again, at most ``MAX_DRAWS`` times, until each client has ``min_examples``.
    """

    num_clients: int
    alpha: float
    min_examples: int = 10

    def __post_init__(self) -> None:
        _check_count("num_clients", self.num_clients)
        _check_alpha(self.alpha)
        _check_count("min_examples", self.min_examples)

    def split(self, data: Data, seed: int) -> Split:
        num_examples = len(data.train)
        _check_enough("min_examples", self.min_examples, self.num_clients * self.min_examples, num_examples)
        counts = _draw_counts(self.num_clients, self.alpha, [num_examples], self.min_examples, seed)
        owners = _empty_owners(num_examples)
        owners[_shuffled(num_examples, seed)] = torch.repeat_interleave(torch.from_numpy(counts[0]))
        return Split.from_owners(client_ids(self.num_clients), owners)


@dataclass(frozen=True, slots=True)
class Natural:
    """Who made it holds it: a client for each distinct id in ``groups``, or in the data set's own where that is None.

    ``groups`` has one non-empty string for each training example; the clients bear these names.
    """

    groups: Sequence[str] | None = None

    def split(self, data: Data, seed: int) -> Split:
        groups = data.groups if self.groups is None else self.groups
        if groups is None:
            raise DataError(
                f"{data.name}: it has no natural client ids; give Natural(groups=...), one string an example"
            )
        if len(groups) != len(data.train):
            raise ConfigError(f"groups: expected {len(data.train)} client ids, one an example, got {len(groups)}")
        for position, group in enumerate(groups):
            if not isinstance(group, str) or not group:
                raise ConfigError(f"groups: expected non-empty strings, got {group!r} for example {position}")
        clients = sorted({str(group) for group in groups})
        numbers = {client: number for number, client in enumerate(clients)}
        return Split.from_owners(clients, torch.tensor([numbers[group] for group in groups], dtype=torch.int64))


@dataclass(frozen=True, slots=True)
class Replicate:
    """Every client holds all the examples: for measuring speed, and as the control of an experiment on skew."""

    num_clients: int

    def __post_init__(self) -> None:
        _check_count("num_clients", self.num_clients)

    def split(self, data: Data, seed: int) -> Split:
        num_examples = len(data.train)
        indices = torch.arange(num_examples).repeat(self.num_clients)
        return Split(
            client_ids(self.num_clients), indices, torch.arange(self.num_clients + 1) * num_examples, num_examples
        )


@dataclass(frozen=True, slots=True)
class FromFile:
    """The split that ``Split.save`` wrote to ``path``; the seed changes nothing.

    Raises:
        DataError: at ``split``: the file is absent, is no valid split, or splits a data set of another size.
    """

    path: str | os.PathLike[str]

    def split(self, data: Data, seed: int) -> Split:
        split = Split.load(self.path)
        if split.num_examples != len(data.train):
            got = f"{split.num_examples} examples, {data.name} has {len(data.train)}"
            raise DataError(f"{self.path}: it splits {got}; was it made from another data set?")
        return split


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Return decimal ids, padded so that their order as strings is their order as numbers.

    >>> client_ids(11)[:3]
    ('00', '01', '02')
    """
    width = len(str(num_clients - 1))
    return tuple(f"{number:0{width}d}" for number in range(num_clients))


def _positions(client: str, part: Sequence[int] | Tensor) -> Tensor:
    positions = torch.as_tensor(part)
    if positions.ndim != 1 or (len(positions) and (positions.is_floating_point() or positions.is_complex())):
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise DataError(f"client {client!r}: expected whole positions of shape (N,), got {got}")
    return positions.to("cpu", torch.int64)


def _generator(seed: int) -> torch.Generator:
    return seeds.generator(seed, 0, 0, "", "partition")


def _shuffled(num_examples: int, seed: int) -> Tensor:
    return torch.randperm(num_examples, generator=_generator(seed))


def _empty_owners(num_examples: int) -> Tensor:
    # -1 is no owner: bincount refuses it, so an example that a partitioner forgot cannot pass for client 0's.
    return torch.full((num_examples,), -1, dtype=torch.int64)


def _cut(shares: np.ndarray, size: int) -> np.ndarray:
    """Return whole numbers that sum to ``size`` in the proportions ``shares``, each within one of the exact share."""
    ends = np.floor(np.minimum(shares.cumsum(), 1.0) * size).astype(np.int64)
    ends[shares.nonzero()[0][-1] :] = size
    return np.diff(ends, prepend=0)


def _draw_counts(
    num_clients: int, alpha: float, class_sizes: Sequence[int], min_examples: int, seed: int
) -> np.ndarray:
    """Return the first draw of whole counts (K, C) in which each client has ``min_examples``."""
    draws = np.random.Generator(np.random.PCG64(seeds.key(seed, 0, 0, "", "partition")))
    nearest = 0
    for _ in range(MAX_DRAWS):
        shares = draws.dirichlet(np.full(num_clients, float(alpha)), size=len(class_sizes))
        counts = np.stack([_cut(share, size) for share, size in zip(shares, class_sizes, strict=True)])
        smallest = int(counts.sum(axis=0).min())
        if smallest >= min_examples:
            return counts
        nearest = max(nearest, smallest)
    raise ConfigError(
        f"min_examples: expected at least {min_examples} examples for each client, but in {MAX_DRAWS} draws the "
        f"smallest client never had more than {nearest}; raise alpha, or lower min_examples or num_clients"
    )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")


def _check_alpha(value: object) -> None:
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigError(f"alpha: expected a finite number above 0, got {value!r}")


def _check_enough(name: str, value: int, needed: int, num_examples: int) -> None:
    if needed > num_examples:
        raise ConfigError(
            f"{name}: {value!r} needs at least {needed} examples in all, got a data set of {num_examples}"
        )


def _unique_keys(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"{key!r} occurs twice")
        found[key] = value
    return found

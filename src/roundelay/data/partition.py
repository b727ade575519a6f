"""Who holds what: partitioners, frozen values whose constructor is their configuration, and return a ``Split``.

All draws are keyed by (seed, "partition"), so a split depends on nothing but the seed, the labels and the arguments.
numpy may change its Dirichlet stream from one version to the next; where a split must outlive that, ``Split.save`` it
and use ``FromFile``.

Shapes: N examples, C clients, K classes.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Data
from roundelay.data.ids import NumberedIds
from roundelay.data.split import Split
from roundelay.errors import ConfigError, DataError

__all__ = ["IID", "ClassMixture", "Dirichlet", "FromFile", "Named", "Natural", "QuantitySkew", "Replicate", "Shards"]
"""What a job file can name; the rest is for Python."""

MAX_DRAWS = 1000
"""How often a Dirichlet draw is repeated before a minimum size is called out of reach."""


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
        check_count("num_clients", self.num_clients)

    def split(self, data: Data, seed: int) -> Split:
        num_examples = len(data.train)
        check_enough("num_clients", self.num_clients, self.num_clients, num_examples)
        owners = _empty_owners(num_examples)
        owners[_shuffled(num_examples, seed)] = torch.arange(num_examples) % self.num_clients
        return Split.from_owners(client_ids(self.num_clients), owners)


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Label skew: each class goes to the clients in proportions drawn from a symmetric Dirichlet(alpha) over clients.

    This is the *class-wise* variant of Yurochkin et al. 2019 (Bayesian nonparametric federated learning):
    for each class k draw p_k ~ Dir_C(alpha) and give client c the share p_kc of that class; sizes are unequal too. As
    in NIID-Bench (Li et al. 2022), everything is drawn again until each client has ``min_examples``, here at most
    ``MAX_DRAWS`` times. Two relatives are something else: that of Hsu et al. 2019, here ``ClassMixture``; and
    the code of NIID-Bench also gives a client that already has N/C examples nothing of the classes still to come, which
    makes sizes a little more even.
    """

    num_clients: int
    alpha: float
    min_examples: int = 10

    def __post_init__(self) -> None:
        check_count("num_clients", self.num_clients)
        check_alpha(self.alpha)
        check_count("min_examples", self.min_examples)

    def split(self, data: Data, seed: int) -> Split:
        labels = data.train.labels()
        num_examples = len(labels)
        check_enough("min_examples", self.min_examples, self.num_clients * self.min_examples, num_examples)
        class_sizes = torch.unique(labels, return_counts=True)[1].tolist()
        counts = _draw_counts(self.num_clients, self.alpha, class_sizes, self.min_examples, seed)
        return _dealt(labels, counts, seed)


@dataclass(frozen=True, slots=True)
class ClassMixture:
    """Label skew, all clients of one size: each draws from a mixture of classes of its own, p_c ~ Dir_K(alpha).

    This is the split of Hsu et al. 2019 (Measuring the effects of non-identical data distribution), with a uniform
    prior over classes, and that of pfl-research's benchmarks. Clients take their examples one after another; a class
    that is used up is left out of the mixtures from then on, so that those of the last clients are of the few classes
    that are left. Sizes differ by at most one.
    """

    num_clients: int
    alpha: float

    def __post_init__(self) -> None:
        check_count("num_clients", self.num_clients)
        check_alpha(self.alpha)

    def split(self, data: Data, seed: int) -> Split:
        labels = data.train.labels()
        num_examples = len(labels)
        check_enough("num_clients", self.num_clients, self.num_clients, num_examples)
        draws = np.random.Generator(np.random.PCG64(seeds.key(seed, 0, 0, "", "partition")))
        left = torch.unique(labels, return_counts=True)[1].numpy()
        counts = np.zeros((len(left), self.num_clients), dtype=np.int64)
        for client in range(self.num_clients):
            mixture = draws.dirichlet(np.full(len(left), float(self.alpha)))
            wanted = num_examples // self.num_clients + (client < num_examples % self.num_clients)
            while wanted:
                shares = np.where(left > 0, mixture, 0.0)
                shares = shares if shares.sum() > 0 else left  # what it is a mixture of is used up
                taken = np.minimum(draws.multinomial(wanted, shares / shares.sum()), left)
                counts[:, client] += taken
                left, wanted = left - taken, wanted - int(taken.sum())
        return _dealt(labels, counts, seed)


@dataclass(frozen=True, slots=True)
class Shards:
    """Few classes a client: sort by label, cut into equal shards, deal ``shards_per_client`` to each client at random.

    The pathological non-IID split of McMahan et al. 2017 (section 3); examples are shuffled within a class, and shard
    sizes differ by at most one where the division leaves a rest.
    """

    num_clients: int
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        check_count("num_clients", self.num_clients)
        check_count("shards_per_client", self.shards_per_client)

    def split(self, data: Data, seed: int) -> Split:
        labels = data.train.labels()
        num_examples, num_shards = len(labels), self.num_clients * self.shards_per_client
        check_enough("shards_per_client", self.shards_per_client, num_shards, num_examples)
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
        check_count("num_clients", self.num_clients)
        check_alpha(self.alpha)
        check_count("min_examples", self.min_examples)

    def split(self, data: Data, seed: int) -> Split:
        num_examples = len(data.train)
        check_enough("min_examples", self.min_examples, self.num_clients * self.min_examples, num_examples)
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
        check_count("num_clients", self.num_clients)

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


@dataclass(frozen=True, slots=True)
class Named:
    """What ``inner`` gives, to clients of these names: its k-th part, in order of id, is ``names[k]``'s."""

    names: Sequence[str]
    inner: Partitioner

    def split(self, data: Data, seed: int) -> Split:
        return self.inner.split(data, seed).renamed(self.names)


def client_ids(num_clients: int) -> tuple[str, ...]:
    """Return decimal ids, padded so that their order as strings is their order as numbers.

    >>> client_ids(11)[:3]
    ('00', '01', '02')
    """
    return tuple(NumberedIds(num_clients))


def _generator(seed: int) -> torch.Generator:
    return seeds.generator(seed, 0, 0, "", "partition")


def _shuffled(num_examples: int, seed: int) -> Tensor:
    return torch.randperm(num_examples, generator=_generator(seed))


def _empty_owners(num_examples: int) -> Tensor:
    # -1 is no owner: bincount refuses it, so an example that a partitioner forgot cannot pass for client 0's.
    return torch.full((num_examples,), -1, dtype=torch.int64)


def _dealt(labels: Tensor, counts: np.ndarray, seed: int) -> Split:
    """Return a split in which client c holds ``counts[k, c]`` examples of class k, drawn at random."""
    # Shuffled within each class, the classes one after the other, as the counts are.
    shuffled = _shuffled(len(labels), seed)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    owners = _empty_owners(len(labels))
    num_classes, num_clients = counts.shape
    holders = torch.arange(num_clients).repeat(num_classes)
    owners[order] = holders.repeat_interleave(torch.from_numpy(counts).flatten())
    return Split.from_owners(client_ids(num_clients), owners)


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


def check_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_alpha(value: object) -> None:
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigError(f"alpha: expected a finite number above 0, got {value!r}")


def check_enough(name: str, value: int, needed: int, num_examples: int) -> None:
    if needed > num_examples:
        raise ConfigError(
            f"{name}: {value!r} needs at least {needed} examples in all, got a data set of {num_examples}"
        )

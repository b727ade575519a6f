"""A data set in the hands of its clients. Nothing is copied for a client; only the list of ids grows with their
number, and not even that where ids and parts are worked out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Data, Examples, MapExamples, as_examples
from roundelay.data.ids import Ids, NumberedIds, place
from roundelay.data.parts import (
    Elsewhere,
    Made,
    Parts,
    Pooled,
    Seen,
    Separate,
    Stretches,
    check_size,
    read_part,
)
from roundelay.data.split import Split
from roundelay.errors import ConfigError, DataError

__all__ = ["Data", "FederatedData"]

VIEWS_KEPT = 4096
"""A part that is a view takes some hundred bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class FederatedData:
    """What each client trains and is tested on, and what the server keeps; clients in ascending order of id.

    Make one with ``from_split``, ``from_datasets`` or, for many clients, ``from_function``. Pickled, it holds each
    tensor once. Each process that trains keeps the parts of ``num_cached`` clients, those that it trained last.

    >>> import numpy as np
    >>> parts = {"bob": (np.zeros((3, 2)), np.zeros(3)), "ann": (np.ones((1, 2)), np.ones(1))}
    >>> data = FederatedData.from_datasets(parts)
    >>> data.clients, len(data.train("bob"))
    (('ann', 'bob'), 3)
    """

    clients: Sequence[str]
    held_out: Examples | None
    _train: Parts
    _test: Parts | None
    num_cached: int = VIEWS_KEPT
    _sizes: Callable[[str], int] | None = None

    @classmethod
    def from_split(cls, data: Data, split: Split, client_test_fraction: float = 0.0, seed: int = 0) -> "FederatedData":
        """Return ``data.train`` in the hands of ``split``'s clients, ``data.test`` with the server.

        With a ``client_test_fraction`` above 0 each client keeps that share of its own examples, rounded, for its
        test: at least one and never all, so that a client of one example has no test part. Which ones depends on the
        seed, the client and what it holds.

        Raises:
            ConfigError: ``client_test_fraction`` is not in [0, 1).
            DataError: the split is of another data set, or leaves a client without examples.
        """
        if not 0.0 <= client_test_fraction < 1.0:
            raise ConfigError(f"client_test_fraction: expected a number in [0, 1), got {client_test_fraction!r}")
        if split.num_examples != len(data.train):
            raise DataError(
                f"{data.name}: it has {len(data.train)} training examples, the split is of {split.num_examples}"
            )
        for client, size in zip(split.clients, split.sizes().tolist(), strict=True):
            check_size(client, size)
        if client_test_fraction == 0.0:
            return cls(split.clients, data.test, Pooled(data.train, split.indices, split.offsets), None)
        tested = _keep_for_test(split, client_test_fraction, seed)
        train, test = (Pooled(data.train, split.indices[mask], _offsets(split, mask)) for mask in (~tested, tested))
        return cls(split.clients, data.test, train, test)

    @classmethod
    def from_datasets(
        cls,
        datasets: Mapping[str, object],
        held_out: object | None = None,
        tests: Mapping[str, object] | None = None,
    ) -> "FederatedData":
        """Return data that came apart already: for each client id anything that ``as_examples`` takes.

        ``tests`` may leave clients out.

        Raises:
            DataError: no client, an id that is no string, a client without examples, a test of an unknown client.
        """
        _check_ids("datasets", datasets)
        unknown = sorted(set(tests or {}) - set(datasets), key=str)
        if unknown:
            raise DataError(f"tests: client {unknown[0]!r} has no training data; known are {_some(sorted(datasets))}")
        clients = tuple(sorted(datasets))
        train = tuple(read_part(client, datasets[client]) for client in clients)
        test = (
            tuple(read_part(client, tests[client]) if client in tests else None for client in clients)
            if tests
            else None
        )
        return cls(
            clients,
            None if held_out is None else as_examples(held_out),
            Separate(train),
            None if test is None else Separate(test),
        )

    @classmethod
    def from_sizes(cls, examples: Examples, sizes: Mapping[str, tuple[int, int]]) -> "FederatedData":
        """Return ``examples`` in the hands of clients who stand in them one after the other, in order of id: first what
        a client trains on, then what it is tested on, as many as ``sizes`` says. The server holds out what all are
        tested on.

        A client costs its id and two numbers.

        Raises:
            DataError: an id is no string or out of order, a client trains on nothing, or sizes do not add up.
        """
        clients = tuple(sizes)
        if not clients or not all(isinstance(client, str) and client for client in clients):
            raise DataError(f"sizes: expected client ids, at least one, to be non-empty strings, got {_some(clients)}")
        if list(clients) != sorted(clients):
            raise DataError(f"sizes: expected client ids in ascending order, got {_some(clients)}")
        for client, (num_train, _) in sizes.items():
            check_size(client, num_train)
        ends = torch.tensor(list(sizes.values())).flatten().cumsum(0)
        if int(ends[-1]) != len(examples):
            raise DataError(f"sizes: they add up to {int(ends[-1])}, but there are {len(examples)} examples")
        starts = torch.cat([ends.new_zeros(1), ends[1:-1:2]])
        train, test = Stretches(examples, starts, ends[::2]), Stretches(examples, ends[::2], ends[1::2])
        held_out = test.whole()
        return cls(clients, held_out if len(held_out) else None, train, test)

    @classmethod
    def from_function(
        cls,
        clients: int | Sequence[str],
        make: Callable[[str], object],
        *,
        sizes: Callable[[str], int] | None = None,
        tests: Callable[[str], object | None] | None = None,
        held_out: object | None = None,
        seed: int = 0,
        num_cached: int = 16,
    ) -> "FederatedData":
        """Return data of which each client's part is made when the client trains: ``make(client)`` gives anything that
        ``as_examples`` takes, the same every time. It runs in the process that trains the client.

        ``clients`` are the ids, in any order, or a number of clients, whose ids then are those of ``NumberedIds``. What
        is worked out (an ``Ids``) is held as it is: a million clients cost nothing before one of them is asked.
        ``sizes(client)`` says how many examples a client has, where that is known without making them; a modelled
        network reckons with it. ``tests(client)`` is what the client is tested on, or None. What these functions draw
        from global generators follows from ``seed`` and the client.

        Raises:
            ConfigError: ``num_cached`` is below 0, or ``clients`` a number below 1.
            DataError: no client, an id that is no non-empty string, or one that comes twice.

        >>> data = FederatedData.from_function(1_000_000, lambda client: (torch.ones(3, 1), torch.zeros(3)))
        >>> data, len(data.train("000007"))
        (FederatedData(1000000 clients: '000000', '000001', '000002', '000003', '000004', ... (1000000 in all)), 3)
        """
        if num_cached < 0:
            raise ConfigError(f"num_cached must be at least 0, got {num_cached!r}")
        ids = NumberedIds(clients) if isinstance(clients, int) else _ascending(clients)
        server = None if held_out is None else as_examples(held_out)
        own = None if tests is None else Made(ids, tests, seed, "test data")
        return cls(ids, server, Made(ids, make, seed), own, num_cached, sizes)

    @classmethod
    def elsewhere(cls, clients: Sequence[str], held_out: Examples | None = None) -> "FederatedData":
        """Return what a server knows of clients that keep their data: their ids, and its own held-out examples."""
        ids = tuple(sorted(clients))
        return cls(ids, held_out, Elsewhere(ids), None)

    def train(self, client: str) -> Examples:
        """Return what the client trains on, at least one example.

        Raises:
            DataError: there is no such client.
        """
        part = self._train.part(self._number(client))
        if part is None:  # the others are refused when the data is put together
            raise DataError(f"client {client!r}: the function that makes its data returned None; expected examples")
        return part

    def test(self, client: str) -> Examples | None:
        """Return the client's own held-out part, or None where it has none.

        Raises:
            DataError: there is no such client.
        """
        number = self._number(client)
        return None if self._test is None else self._test.part(number)

    def known_size(self, client: str) -> int | None:
        """Return how many examples the client trains on, where that is known without reading or making them.

        Raises:
            DataError: there is no such client.
        """
        number = self._number(client)
        return self._train.size(number) if self._sizes is None else self._sizes(client)

    def size(self, client: str) -> int:
        """Return how many examples the client trains on; they are made where nothing else tells.

        Raises:
            DataError: there is no such client, or its data is with it.
        """
        known = self.known_size(client)
        return len(self.train(client)) if known is None else known

    def among(self, clients: Sequence[str]) -> "FederatedData":
        """Return data of which only these clients have a part.

        Raises:
            DataError: one of them has none here.
        """
        own = {client: test for client in clients if (test := self.test(client)) is not None}
        return self.from_datasets({client: self.train(client) for client in clients}, self.held_out, own or None)

    def held_by(self, holder: str, client: str) -> "FederatedData":
        """Return data in which ``client`` is the only one, with what ``holder`` has here.

        Raises:
            DataError: there is no such holder.
        """
        own = self.test(holder)
        return self.from_datasets({client: self.train(holder)}, self.held_out, None if own is None else {client: own})

    def pooled(self, client: str = "all") -> "FederatedData":
        """Return data in which one ``client`` has what all have here, for centralised training: their parts one after
        the other, in order of id, as views; held-out examples stay with the server.

        Raises:
            DataError: the data is with the clients.
        """
        test = None if self._test is None else self._test.whole()
        own = {client: test} if test is not None and len(test) else None
        return self.from_datasets({client: self._train.whole()}, self.held_out, own)

    def seen_through(self, change: Callable[[str, Examples], Examples]) -> "FederatedData":
        """Return data whose clients train on ``change(client, part)``; what they are tested on stays."""
        return replace(self, _train=Seen(self.clients, self._train, change))

    def label_counts(self) -> list[list[int]] | None:
        """Return how many training examples of each class each client has, (C, K) in order of id; None where there are
        no classes, every item would have to be read or made to find them, or the data is with the clients.
        """
        if isinstance(self._train, Elsewhere | Made):
            return None
        counts: list[Tensor] = []
        for client in self.clients:
            part = self.train(client)
            if isinstance(part, MapExamples):
                return None
            try:
                counts.append(torch.bincount(part.labels()))
            except (DataError, RuntimeError):  # regression, or text: nothing to count; or a class below 0
                return None
        width = max(map(len, counts))
        return [[*row.tolist(), *[0] * (width - len(row))] for row in counts]

    def _number(self, client: str) -> int:
        number = place(self.clients, client)
        if number is None:
            raise DataError(f"client {client!r}: it holds no data; known are {_some(self.clients)}")
        return number

    def __repr__(self) -> str:
        return f"FederatedData({len(self.clients)} clients: {_some(self.clients)})"


def read(data: object, seed: int) -> object:
    """Return data, called where it is a function, as every process of a job reads it: from the same random state."""
    with seeds.preserved_globals():
        seeds.seed_globals(seeds.key(seed, 0, 0, "", "data"))
        return data() if callable(data) else data


def _keep_for_test(split: Split, fraction: float, seed: int) -> Tensor:
    """Return a mask over ``split.indices``: which entries their clients keep for their tests."""
    mask = torch.zeros(len(split.indices), dtype=torch.bool)
    for client, (start, stop) in zip(split.clients, pairwise(split.offsets.tolist()), strict=True):
        size = stop - start
        if size > 1:
            num_test = min(size - 1, max(1, round(fraction * size)))
            order = torch.randperm(size, generator=seeds.generator(seed, 0, 0, client, "client test"))
            mask[start + order[:num_test]] = True
    return mask


def _offsets(split: Split, mask: Tensor) -> Tensor:
    kept_before = torch.cat([torch.zeros(1, dtype=torch.int64), mask.cumsum(0)])
    return kept_before[split.offsets]


def _ascending(clients: Sequence[str]) -> Sequence[str]:
    if isinstance(clients, Ids):
        return clients
    _check_ids("clients", clients)
    if len(set(clients)) != len(clients):
        raise DataError(f"clients: expected each id once, got {_some(clients)}")
    return tuple(sorted(clients))


def _check_ids(what: str, clients: Collection[str]) -> None:
    if not clients:
        raise DataError(f"{what}: expected at least one client, got none")
    for client in clients:
        if not isinstance(client, str) or not client:
            raise DataError(f"{what}: expected client ids to be non-empty strings, got {client!r}")


def _some(clients: Sequence[str]) -> str:
    return ", ".join(map(repr, clients[:5])) + (f", ... ({len(clients)} in all)" if len(clients) > 5 else "")

"""A data set in the hands of its clients. Nothing is copied for a client; only the list of ids grows with their
number."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Data, Examples, MapExamples, as_examples
from roundelay.data.parts import Elsewhere, Parts, Pooled, Seen, Separate, Stretches
from roundelay.data.split import Split
from roundelay.errors import ConfigError, DataError

__all__ = ["Data", "FederatedData"]


@dataclass(frozen=True, slots=True, eq=False)
class FederatedData:
    """What each client trains and is tested on, and what the server keeps; clients in ascending order of id.

    Make one with ``from_split`` or ``from_datasets``. Pickled, it holds each tensor once.

    >>> import numpy as np
    >>> parts = {"bob": (np.zeros((3, 2)), np.zeros(3)), "ann": (np.ones((1, 2)), np.ones(1))}
    >>> data = FederatedData.from_datasets(parts)
    >>> data.clients, len(data.train("bob"))
    (('ann', 'bob'), 3)
    """

    clients: tuple[str, ...]
    held_out: Examples | None
    _train: Parts
    _test: Parts | None

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
            _check_size(client, size)
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
        if not datasets:
            raise DataError("datasets: expected at least one client, got none")
        for client in datasets:
            if not isinstance(client, str) or not client:
                raise DataError(f"datasets: expected client ids to be non-empty strings, got {client!r}")
        unknown = sorted(set(tests or {}) - set(datasets), key=str)
        if unknown:
            raise DataError(f"tests: client {unknown[0]!r} has no training data; known are {_some(sorted(datasets))}")
        clients = tuple(sorted(datasets))
        train = tuple(_read(client, datasets[client]) for client in clients)
        test = tuple(_read(client, tests[client]) if client in tests else None for client in clients) if tests else None
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
            _check_size(client, num_train)
        ends = torch.tensor(list(sizes.values())).flatten().cumsum(0)
        if int(ends[-1]) != len(examples):
            raise DataError(f"sizes: they add up to {int(ends[-1])}, but there are {len(examples)} examples")
        starts = torch.cat([ends.new_zeros(1), ends[1:-1:2]])
        train, test = Stretches(examples, starts, ends[::2]), Stretches(examples, ends[::2], ends[1::2])
        held_out = test.whole()
        return cls(clients, held_out if len(held_out) else None, train, test)

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
        assert part is not None, "a client without examples is refused when the data is put together"
        return part

    def test(self, client: str) -> Examples | None:
        """Return the client's own held-out part, or None where it has none.

        Raises:
            DataError: there is no such client.
        """
        number = self._number(client)
        return None if self._test is None else self._test.part(number)

    def known_size(self, client: str) -> int | None:
        """Return how many examples the client trains on, where that is known without reading them.

        Raises:
            DataError: there is no such client.
        """
        return self._train.size(self._number(client))

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
        no classes, every item would have to be read to find them, or the data is with the clients.
        """
        if isinstance(self._train, Elsewhere):
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
        number = bisect_left(self.clients, client)
        if number == len(self.clients) or self.clients[number] != client:
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


def _read(client: str, value: object) -> Examples:
    try:
        examples = as_examples(value)
    except DataError as error:
        raise DataError(f"client {client!r}: {error}") from error
    _check_size(client, len(examples))
    return examples


def _check_size(client: str, size: int) -> None:
    if size == 0:
        raise DataError(
            f"client {client!r}: expected at least one example, got none; leave the client out or give it data"
        )


def _some(clients: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, clients[:5])) + (f", ... ({len(clients)} in all)" if len(clients) > 5 else "")

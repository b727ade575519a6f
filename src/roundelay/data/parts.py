"""Who holds which part of a data set: one form for each way in which parts lie. None copies anything."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.data.examples import Examples, as_examples
from roundelay.data.joined import Joined
from roundelay.errors import DataError


class Parts(Protocol):
    """What each client of a data set holds."""

    def part(self, number: int) -> Examples | None:
        """Return what client ``number``, in order of id, holds."""
        ...

    def size(self, number: int) -> int | None:
        """Return how many examples client ``number`` holds; None where nobody knows who has not got them at hand."""
        ...

    def whole(self) -> Examples:
        """Return what all clients hold, in order of id."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Parts of one data set: client i holds ``indices[offsets[i]:offsets[i + 1]]``, a view made when asked for."""

    examples: Examples
    indices: Tensor
    offsets: Tensor

    def part(self, number: int) -> Examples | None:
        start, stop = self.offsets[number : number + 2].tolist()
        return self.examples.select(self.indices[start:stop]) if stop > start else None

    def size(self, number: int) -> int:
        start, stop = self.offsets[number : number + 2].tolist()
        return int(stop - start)

    def whole(self) -> Examples:
        return self.examples.select(self.indices)


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """Parts that are stretches of one data set: client i holds its examples ``starts[i]`` to ``stops[i]``."""

    examples: Examples
    starts: Tensor
    stops: Tensor

    def part(self, number: int) -> Examples | None:
        start, stop = int(self.starts[number]), int(self.stops[number])
        return self.examples.select(torch.arange(start, stop)) if stop > start else None

    def size(self, number: int) -> int:
        return int(self.stops[number]) - int(self.starts[number])

    def whole(self) -> Examples:
        stretches = zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        return self.examples.select(torch.cat([torch.arange(start, stop) for start, stop in stretches]))


@dataclass(frozen=True, slots=True, eq=False)
class Separate:
    """One data set for each client."""

    examples: tuple[Examples | None, ...]

    def part(self, number: int) -> Examples | None:
        return self.examples[number]

    def size(self, number: int) -> int:
        part = self.examples[number]
        return 0 if part is None else len(part)

    def whole(self) -> Examples:
        return Joined([part for part in self.examples if part is not None])


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """Parts that ``make(client)`` gives whenever they are asked for, which nothing here keeps.

    What it draws from global generators follows from ``seed`` and the client alone, and the caller finds its own as
    they were: a part is the same in every process, however often it is made.
    """

    clients: Sequence[str]
    make: Callable[[str], object]
    seed: int
    purpose: str = "data"

    def part(self, number: int) -> Examples | None:
        client = self.clients[number]
        with seeds.preserved_globals():
            seeds.seed_globals(seeds.key(self.seed, 0, 0, client, self.purpose))
            value = self.make(client)
        return None if value is None else read_part(client, value)

    def size(self, number: int) -> None:
        return None

    def whole(self) -> Examples:
        parts = (self.part(number) for number in range(len(self.clients)))
        return Joined([part for part in parts if part is not None])


@dataclass(frozen=True, slots=True, eq=False)
class Elsewhere:
    """Parts that only the clients themselves have."""

    clients: Sequence[str]

    def part(self, number: int) -> Examples | None:
        raise DataError(f"client {self.clients[number]!r}: its data is with its script, not here")

    def size(self, number: int) -> None:
        return None

    def whole(self) -> Examples:
        raise DataError("each client's data is with its script: there is nothing here to pool")


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Parts seen through a function of client id and part."""

    clients: Sequence[str]
    parts: Parts
    change: Callable[[str, Examples], Examples]

    def part(self, number: int) -> Examples | None:
        part = self.parts.part(number)
        return None if part is None else self.change(self.clients[number], part)

    def size(self, number: int) -> int | None:
        return self.parts.size(number)

    def whole(self) -> Examples:
        parts = (self.part(number) for number in range(len(self.clients)))
        return Joined([part for part in parts if part is not None])


def read_part(client: str, value: object) -> Examples:
    """Return what a client holds, given as anything that ``as_examples`` takes.

    Raises:
        DataError: it is nothing of that kind, or no example; names the client.
    """
    try:
        examples = as_examples(value)
    except DataError as error:
        raise DataError(f"client {client!r}: {error}") from error
    check_size(client, len(examples))
    return examples


def check_size(client: str, size: int) -> None:
    if size == 0:
        raise DataError(
            f"client {client!r}: expected at least one example, got none; leave the client out or give it data"
        )

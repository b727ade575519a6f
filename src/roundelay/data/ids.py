"""Client ids that are worked out when they are asked for, so that a population costs no memory, however many there are.

Everything here is in ascending order, as Python compares strings.
"""

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import overload

from roundelay.errors import ConfigError


class Ids(Sequence[str]):
    """A sequence of ids by a rule; a slice of it is one too."""

    __slots__ = ()

    @abstractmethod
    def at(self, number: int) -> str:
        """Return the id at a place, from 0 up."""

    @abstractmethod
    def number(self, client: object) -> int | None:
        """Return an id's place, or None where it is none of these."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        chosen = range(len(self))[index]
        return Picked(self, chosen) if isinstance(chosen, range) else self.at(chosen)

    def __contains__(self, client: object) -> bool:
        return self.number(client) is not None

    def index(self, client: str, start: int = 0, stop: int | None = None) -> int:
        number = self.number(client)
        if number is None or number not in range(len(self))[start:stop]:
            raise ValueError(f"{client!r} is not among these ids")
        return number


@dataclass(frozen=True, slots=True)
class NumberedIds(Ids):
    """The numbers 0 to ``num_clients`` - 1 as ids: behind ``prefix``, with zeros in front, so that their order as ids
    is that of the numbers. Nothing but the rule is held.

    Raises:
        ConfigError: there is no client.

    >>> ids = NumberedIds(1_000_000)
    >>> ids[7], ids[-1], ids.index("000123"), "7" in ids
    ('000007', '999999', 123, False)
    """

    num_clients: int
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.num_clients, bool) or not isinstance(self.num_clients, int) or self.num_clients < 1:
            raise ConfigError(f"num_clients must be a whole number of at least 1, got {self.num_clients!r}")

    def __len__(self) -> int:
        return self.num_clients

    def at(self, number: int) -> str:
        return f"{self.prefix}{number:0{self._width}d}"

    def number(self, client: object) -> int | None:
        if not isinstance(client, str) or not client.startswith(self.prefix):
            return None
        digits = client[len(self.prefix) :]
        if len(digits) != self._width or not (digits.isascii() and digits.isdigit()):
            return None
        number = int(digits)
        return number if number < self.num_clients else None

    @property
    def _width(self) -> int:
        return len(str(self.num_clients - 1))


@dataclass(frozen=True, slots=True)
class Picked(Ids):
    """Those of ``ids`` at ``numbers``, which ascend or descend."""

    ids: Sequence[str]
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, number: int) -> str:
        return self.ids[self.numbers[number]]

    def number(self, client: object) -> int | None:
        number = place(self.ids, client)
        return None if number is None or number not in self.numbers else self.numbers.index(number)


@dataclass(frozen=True, slots=True)
class Without(Ids):
    """``ids`` without those ``left_out``: an item costs as much as the logarithm of how many these are.

    >>> list(Without(NumberedIds(6), {"2", "4", "elsewhere"}))
    ['0', '1', '3', '5']
    """

    ids: Sequence[str]
    left_out: Collection[str]
    _gone: Sequence[int] = field(init=False, repr=False, compare=False)
    _stay: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gone = sorted(number for client in set(self.left_out) if (number := place(self.ids, client)) is not None)
        object.__setattr__(self, "_gone", gone)
        # before the k-th of those who are gone, so many stay
        object.__setattr__(self, "_stay", [number - k for k, number in enumerate(gone)])

    def __len__(self) -> int:
        return len(self.ids) - len(self._gone)

    def at(self, number: int) -> str:
        return self.ids[number + bisect_right(self._stay, number)]

    def number(self, client: object) -> int | None:
        number = place(self.ids, client)
        if number is None:
            return None
        before = bisect_left(self._gone, number)
        return None if self._gone[before : before + 1] == [number] else number - before


def place(ids: Sequence[str], client: object) -> int | None:
    """Return an id's place among ascending ``ids``, or None where it is none of them."""
    if isinstance(ids, Ids):
        return ids.number(client)
    if not isinstance(client, str):
        return None
    at = bisect_left(ids, client)
    return at if at < len(ids) and ids[at] == client else None

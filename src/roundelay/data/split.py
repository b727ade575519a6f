"""``Split``: which client holds which examples, in memory and in a file.

Shapes: N examples, C clients, K classes.
"""

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from roundelay.errors import DataError
from roundelay.files import save_atomically

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

    def renamed(self, names: Sequence[str]) -> "Split":
        """Return the same parts in other hands: the k-th of these, in order of client id, is ``names[k]``'s.

        Raises:
            DataError: there are not as many names as parts, or a name comes twice.
        """
        if len(names) != len(self.clients) or len(set(names)) != len(names):
            raise DataError(f"split: expected {len(self.clients)} different names, one a part, got {list(names)}")
        return Split.from_parts(
            {name: self[client] for name, client in zip(names, self.clients, strict=True)}, self.num_examples
        )

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


def _positions(client: str, part: Sequence[int] | Tensor) -> Tensor:
    positions = torch.as_tensor(part)
    if positions.ndim != 1 or (len(positions) and (positions.is_floating_point() or positions.is_complex())):
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise DataError(f"client {client!r}: expected whole positions of shape (N,), got {got}")
    return positions.to("cpu", torch.int64)


def _unique_keys(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"{key!r} occurs twice")
        found[key] = value
    return found

"""Windows onto a text: what a character model reads, cut out when a batch needs it and never kept.

Shapes: T characters, R runs, N windows, B of them in a batch, L characters that the model sees of each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundelay.data.checks import check_batch_size, check_positions, checked_index
from roundelay.errors import DataError

IGNORED = -100
"""A target that is none: padding. It is what torch's ``cross_entropy`` leaves out of its mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Characters as numbers, uint8 (T,), and where windows of ``length`` + 1 of them begin: one in ``stride``
    characters of each run.

    Run r has its first window at ``starts[r]``; ``ends[r]`` windows are in it and those before it, both int64 (R,). A
    target is the character after the window, or with ``every_position`` each of its L successors, but never ``pad``.
    """

    codes: Tensor
    starts: Tensor
    ends: Tensor
    stride: int
    length: int
    every_position: bool = False
    pad: int | None = None

    @classmethod
    def of(
        cls, runs: Sequence[bytes], stride: int, length: int, every_position: bool = False, pad: int | None = None
    ) -> "Text":
        """Return the text of ``runs``, at least one, which no window crosses; a run shorter than a window has none."""
        codes = torch.frombuffer(bytearray(b"".join(runs)), dtype=torch.uint8)
        sizes = torch.tensor([len(run) for run in runs])
        ends = torch.tensor([num_windows(len(run), stride, length) for run in runs]).cumsum(0)
        return cls(codes, sizes.cumsum(0) - sizes, ends, stride, length, every_position, pad)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def windows(self, positions: Tensor) -> Tensor:
        """Return the windows at ``positions`` (B,) as int64 (B, L + 1)."""
        return self.codes[self._first(positions)[:, None] + torch.arange(self.length + 1)].to(torch.int64)

    def last(self, positions: Tensor) -> Tensor:
        """Return the last character of each window at ``positions``, int64 (B,)."""
        return self.codes[self._first(positions) + self.length].to(torch.int64)

    def _first(self, positions: Tensor) -> Tensor:
        runs = torch.searchsorted(self.ends, positions, right=True)
        before = torch.where(runs > 0, self.ends[runs - 1], 0)
        return self.starts[runs] + (positions - before) * self.stride

    def pairs(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the model sees, int64 (B, L), and what comes next: (B, L), or (B,) for the last position only."""
        windows = self.windows(positions)
        inputs, targets = windows[:, :-1], windows[:, 1:] if self.every_position else windows[:, -1]
        return inputs, targets if self.pad is None else targets.masked_fill(targets == self.pad, IGNORED)


@dataclass(frozen=True, slots=True, eq=False)
class TextWindows:
    """Examples that are windows onto one text, int64; ``indices`` makes it a view on some of them.

    Views share the text. Pickling a view takes its own windows along, and nothing else of the text.

    >>> text = Text.of([b"abcdef", b"xyz"], stride=1, length=2)
    >>> inputs, targets = next(TextWindows(text).batches(torch.tensor([0, 3, 4]), 3))
    >>> [bytes(row) for row in inputs.tolist()], bytes(targets.tolist())
    ([b'ab', b'de', b'xy'], b'cfz')
    """

    text: Text
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.text) if self.indices is None else self.indices.shape[0]

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        inputs, targets = self.text.pairs(self._base(torch.tensor([checked_index(index, len(self))])))
        return inputs[0], targets[0]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        check_positions(order, len(self), "order")
        return (self.text.pairs(group) for group in torch.split(self._base(order), batch_size) if len(group))

    def labels(self) -> Tensor:
        if self.text.every_position:
            raise DataError("labels: a window whose every character is predicted has no class of its own")
        return self.text.last(self._base(torch.arange(len(self))))

    def select(self, indices: Tensor) -> "TextWindows":
        check_positions(indices, len(self), "indices")
        return TextWindows(self.text, self._base(indices))

    def __reduce__(self) -> tuple[Callable[..., "TextWindows"], tuple[Any, ...]]:  # Any: the fields of either form
        text = self.text
        if self.indices is None:
            return TextWindows, (text,)
        size = text.length + 1
        codes = text.windows(self.indices).to(torch.uint8).flatten()
        own = Text(
            codes, torch.tensor([0]), torch.tensor([len(self)]), size, text.length, text.every_position, text.pad
        )
        return TextWindows, (own,)

    def _base(self, positions: Tensor) -> Tensor:
        return positions if self.indices is None else self.indices.index_select(0, positions)


def num_windows(size: int, stride: int, length: int) -> int:
    """Return how many windows a run of ``size`` characters has.

    >>> [num_windows(size, stride=81, length=80) for size in (162, 161, 81, 80)]
    [2, 1, 1, 0]
    """
    return max(0, (size - length - 1) // stride + 1)

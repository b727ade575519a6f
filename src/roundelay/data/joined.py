"""Several parts read as one, where they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundelay.data.checks import check_batch_size, check_positions, checked_index
from roundelay.data.examples import Examples


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """The examples of ``parts``, one after the other; nothing is copied but the batches that cross parts.

    >>> from roundelay.data.examples import as_examples
    >>> parts = [as_examples((torch.arange(n).float(), torch.full((n,), n))) for n in (2, 3)]
    >>> [targets.tolist() for _, targets in Joined(parts).batches(torch.tensor([4, 0, 2]), 2)]
    [[3, 2], [3]]
    """

    parts: Sequence[Examples]
    indices: Tensor | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.indices is None else self.indices.shape[0]

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:  # Any: see Examples
        number, position = self._place(self._base(torch.tensor([checked_index(index, len(self))])))
        return self.parts[int(number)][int(position)]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        check_positions(order, len(self), "order")
        return (self._batch(group) for group in torch.split(self._base(order), batch_size) if len(group))

    def labels(self) -> Tensor:
        labels = torch.cat([part.labels() for part in self.parts])
        return labels if self.indices is None else labels.index_select(0, self.indices)

    def select(self, indices: Tensor) -> "Joined":
        check_positions(indices, len(self), "indices")
        return Joined(self.parts, self._base(indices))

    def _base(self, positions: Tensor) -> Tensor:
        return positions if self.indices is None else self.indices.index_select(0, positions)

    def _place(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return each position's part, and where it is in there."""
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        numbers = torch.searchsorted(ends, positions, right=True)
        return numbers, positions - torch.cat([ends.new_zeros(1), ends])[numbers]

    def _batch(self, group: Tensor) -> tuple[Tensor, Tensor]:
        numbers, positions = self._place(group)
        pieces, places = list[tuple[Tensor, Tensor]](), list[Tensor]()
        for number in sorted(set(numbers.tolist())):
            (place,) = (numbers == number).nonzero(as_tuple=True)
            pieces += self.parts[number].batches(positions[place], len(place))
            places.append(place)
        if len(pieces) == 1:
            return pieces[0]
        inputs, targets = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        back = torch.cat(places).argsort().to(inputs.device)
        return inputs[back], targets[back]

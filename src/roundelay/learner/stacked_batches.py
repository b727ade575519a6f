"""The batches of many clients, each in its own order, and who takes a step together.

C clients of a block; R of them in a step; B examples a batch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from roundelay.data.examples import Examples, TensorExamples
from roundelay.data.images.pixels import PixelExamples, normalised
from roundelay.errors import DataError
from roundelay.learner.stacked_descent import Rows


@dataclass(frozen=True, slots=True)
class Step:
    """``rows`` take a batch of ``size`` examples each. The first of them has made ``behind`` steps; so have all where
    steps were planned ``in_step``. ``numbers`` names the rows."""

    rows: Rows
    numbers: Sequence[int]
    size: int
    behind: int


def planned(lengths: Sequence[int], sizes: Sequence[int], epochs: int, in_step: bool) -> Iterator[Step]:
    """Yield steps until every row has gone through its ``epochs``, in batches of ``sizes``; the last one of an epoch
    may be short.

    As many rows as have next batches of one size take a step together; ``in_step`` keeps those apart that have made
    unequal numbers of steps. Rows of one length are always together, so lengths are what is planned.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for row, kind in enumerate(zip(lengths, sizes, strict=True)):
        alike.setdefault(kind, []).append(row)
    left = {kind: _batches(*kind, epochs) for kind in alike}
    steps = dict.fromkeys(alike, 0)
    together: dict[tuple[tuple[int, int], ...], tuple[Rows, list[int]]] = {}
    while left:
        waiting: Counter[tuple[int, int]] = Counter()
        for kind, batches in left.items():
            waiting[batches[steps[kind]], steps[kind] if in_step else 0] += len(alike[kind])
        size, behind = max(waiting.items(), key=lambda one: (one[1], one[0]))[0]
        chosen = tuple(kind for kind, batches in left.items()
                       if batches[steps[kind]] == size and (not in_step or steps[kind] == behind))  # fmt: skip
        if chosen not in together:
            numbers = sorted(chain.from_iterable(alike[kind] for kind in chosen))
            together[chosen] = _rows(numbers), numbers
        yield Step(*together[chosen], size, steps[chosen[0]])
        for kind in chosen:
            steps[kind] += 1
            if steps[kind] == len(left[kind]):
                del left[kind]


class Batches:
    """What the rows of a step train on. Parts that are views of the same tensors are read in one gather a step."""

    def __init__(self, parts: Sequence[Examples], orders: Sequence[Sequence[Tensor]], sizes: Sequence[int]) -> None:
        """``orders`` holds each client's epochs, ``sizes`` how many examples its batches have."""
        views = _common_views(parts)
        self._base = None if views is None else views[0]
        if views is None:
            self._streams = [_stream(*one) for one in zip(parts, orders, sizes, strict=True)]
            return
        first, device = parts[0], views[0].inputs.device
        self._pixels = first if isinstance(first, PixelExamples) else None
        held = [_held(view) for view in views]
        counts = torch.tensor([indices.shape[0] for indices in held])
        lengths = counts * torch.tensor([len(epochs) for epochs in orders])
        positions = torch.cat([order for epochs in orders for order in epochs])
        positions += (counts.cumsum(0) - counts).repeat_interleave(lengths)
        self._positions = torch.cat(held).index_select(0, positions.to(device))
        self._next = (lengths.cumsum(0) - lengths).to(device)

    def take(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return (R, B, ...) inputs and targets, each row's next ones."""
        if self._base is None:
            read = [self._following(row) for row in step.numbers]
            return torch.stack([inputs for inputs, _ in read]), torch.stack([targets for _, targets in read])
        at = self._next[step.rows]
        positions = self._positions[at[:, None] + torch.arange(step.size, device=at.device)].view(-1)
        self._next[step.rows] = at + step.size
        inputs, targets = (whole.index_select(0, positions) for whole in (self._base.inputs, self._base.targets))
        if self._pixels is not None:
            inputs = normalised(inputs, self._pixels.mean, self._pixels.std)
        shape = (len(at), step.size)
        return inputs.view(*shape, *inputs.shape[1:]), targets.view(*shape, *targets.shape[1:])

    def _following(self, row: int) -> tuple[Tensor, Tensor]:
        batch = next(self._streams[row], None)
        if batch is None:
            raise DataError("a client's data set has given fewer batches than its length and the batch size make")
        return batch


def _stream(part: Examples, epochs: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for order in epochs:
        yield from part.batches(order, size)


def _batches(length: int, size: int, epochs: int) -> list[int]:
    return ([size] * (length // size) + [length % size] * (length % size > 0)) * epochs


def _rows(numbers: list[int]) -> Rows:
    """Return ascending row numbers as a stretch where they are one."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if last - first + 1 == len(numbers) else torch.tensor(numbers)


def _common_views(parts: Sequence[Examples]) -> list[TensorExamples] | None:
    """Return the parts as views of the same tensors, where they are such; pixels are then normalised alike."""
    pixels = [part for part in parts if isinstance(part, PixelExamples)]
    if len(pixels) not in (0, len(parts)) or any((p.mean, p.std) != (pixels[0].mean, pixels[0].std) for p in pixels):
        return None
    views = [part.pixels for part in pixels] or [part for part in parts if isinstance(part, TensorExamples)]
    if len(views) < len(parts):
        return None
    inputs, targets = views[0].inputs, views[0].targets
    return views if all(view.inputs is inputs and view.targets is targets for view in views) else None


def _held(view: TensorExamples) -> Tensor:
    """Return the positions that a part has in the tensors that it is a view of."""
    return torch.arange(len(view), device=view.inputs.device) if view.indices is None else view.indices

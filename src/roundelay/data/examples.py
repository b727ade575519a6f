"""What a learner reads: ``Examples``, one client's part or the server's held-out set, and what counts as one.

Shapes: N examples; a part is a view, ``indices`` holds positions within the base that the parts share.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from roundelay.data.checks import check_batch_size, check_positions, checked_index
from roundelay.errors import DataError

BLOCK_BYTES = 4 * 2**20
"""One gather brings at most about this much input (always at least one batch); it stays in the processor's cache."""


@runtime_checkable
class Examples(Protocol):
    """One part of a data set, in a fixed order, read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:  # Any: what an item is, only the data set knows
        """Return one example, as map-style data sets do: a ``DataLoader`` takes a part as it is."""
        ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets) for consecutive groups of ``order``, int64 positions within this part.

        The last group may be short. A batch may share memory with its neighbours: use it before asking for the next,
        change nothing in place.
        """
        ...

    def labels(self) -> Tensor:
        """Return the class of each example, int64 of shape (N,).

        Raises:
            DataError: the data set has no class labels.
        """
        ...

    def select(self, indices: Tensor) -> "Examples":
        """Return a view onto the examples at ``indices``, positions within this part."""
        ...


@runtime_checkable
class MapStyle(Protocol):
    """A map-style data set: an item is a pair (input, target)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...  # Any: what an item is, only the data set knows


@dataclass(frozen=True, slots=True, eq=False)
class TensorExamples:
    """Examples in two tensors of one device, (N, ...) each, dtypes as they are; ``indices`` makes it a view on them.

    Views of one base share it: nothing is copied. Pickling gathers a view's own examples, and never the base behind
    them.

    Raises:
        DataError: lengths or devices differ, or an index is out of range.

    >>> examples = TensorExamples(torch.arange(6).view(6, 1), torch.tensor([0, 1, 0, 1, 0, 1]))
    >>> [targets.tolist() for _, targets in examples.select(torch.tensor([5, 0, 3])).batches(torch.arange(3), 2)]
    [[1, 0], [1]]
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor | None = None

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or self.targets.ndim == 0 or len(self.inputs) != len(self.targets):
            got = f"{tuple(self.inputs.shape)} and {tuple(self.targets.shape)}"
            raise DataError(
                f"inputs and targets: expected the same first dimension, one row an example, got shapes {got}"
            )
        if self.inputs.device != self.targets.device:
            got = f"{self.inputs.device} and {self.targets.device}"
            raise DataError(f"inputs and targets: expected one device, got {got}; move them with .to(...)")
        if self.indices is not None:
            check_positions(self.indices, len(self.inputs), "indices")

    def __len__(self) -> int:
        return (self.inputs if self.indices is None else self.indices).shape[0]  # a tensor's len() is slow Python

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        position = checked_index(index, len(self))
        base = position if self.indices is None else int(self.indices[position])
        return self.inputs[base], self.targets[base]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        if self.indices is None or order.dtype != torch.int64 or order.ndim != 1:
            check_positions(order, len(self), "order")
        try:
            return self._gather(self._base(order), batch_size)
        except IndexError:  # torch has looked at every position: a second look is for the message
            check_positions(order, len(self), "order")
            raise

    def labels(self) -> Tensor:
        if self.targets.ndim != 1 or self.targets.is_floating_point() or self.targets.is_complex():
            got = f"{self.targets.dtype} of shape {tuple(self.targets.shape)}"
            raise DataError(f"labels: expected one integer class for each example, got targets that are {got}")
        targets = self.targets if self.indices is None else self.targets.index_select(0, self.indices)
        return targets.to("cpu", torch.int64)

    def select(self, indices: Tensor) -> "TensorExamples":
        check_positions(indices, len(self), "indices")
        return TensorExamples(self.inputs, self.targets, self._base(indices))

    def __reduce__(self) -> tuple[Callable[..., "TensorExamples"], tuple[Tensor, Tensor]]:
        # torch pickles all of the storage behind a slice: a hundred slices of one tensor would be a hundred copies.
        if self.indices is None:
            return TensorExamples, (_own(self.inputs), _own(self.targets))
        return TensorExamples, (self.inputs.index_select(0, self.indices), self.targets.index_select(0, self.indices))

    def _base(self, positions: Tensor) -> Tensor:
        positions = positions.to(self.inputs.device)
        return positions if self.indices is None else self.indices.index_select(0, positions)

    def _gather(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # One large gather and cheap views of it: gathering ten small images at a time costs more in calls than bytes.
        batch_bytes = max(1, self.inputs[:1].nbytes) * batch_size
        rows = max(1, BLOCK_BYTES // batch_bytes) * batch_size
        for start in range(0, positions.shape[0], rows):
            block = positions[start : start + rows]
            inputs, targets = self.inputs.index_select(0, block), self.targets.index_select(0, block)
            for at in range(0, block.shape[0], batch_size):
                yield inputs[at : at + batch_size], targets[at : at + batch_size]


@dataclass(frozen=True, slots=True, eq=False)
class MapExamples:
    """Any map-style data set, an item a pair (input, target), batched by torch's ``default_collate``.

    Items are read when a batch needs them and are kept by nobody; random transforms are the data set's own affair.
    """

    dataset: MapStyle
    indices: Tensor | None = None

    def __post_init__(self) -> None:
        if self.indices is not None:
            check_positions(self.indices, len(self.dataset), "indices")

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:  # Any: see MapStyle
        position = checked_index(index, len(self))
        return self._item(position if self.indices is None else int(self.indices[position]))

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        check_batch_size(batch_size)
        check_positions(order, len(self), "order")
        return (self._collate(group) for group in torch.split(self._base(order), batch_size) if len(group))

    def labels(self) -> Tensor:
        """Return ``dataset.targets`` or ``dataset.labels`` where there is one; otherwise every item is read, once.

        The attribute is taken as it stands: a ``target_transform`` of the data set does not pass over it.
        """
        for name in ("targets", "labels"):
            values = getattr(self.dataset, name, None)
            if values is not None:
                return self._declared(values, name)
        positions = range(len(self.dataset)) if self.indices is None else self.indices.tolist()
        return torch.tensor([self._label(position) for position in positions], dtype=torch.int64)

    def select(self, indices: Tensor) -> "MapExamples":
        check_positions(indices, len(self), "indices")
        return MapExamples(self.dataset, self._base(indices))

    def _base(self, positions: Tensor) -> Tensor:
        return positions if self.indices is None else self.indices.index_select(0, positions)

    def _item(self, position: int) -> tuple[Any, Any]:  # Any: see MapStyle
        item = self.dataset[position]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"item {position} of {_name(self.dataset)}: expected a pair (input, target), got {_describe(item)}"
            )
        return item[0], item[1]

    def _collate(self, group: Tensor) -> tuple[Tensor, Tensor]:
        items = [self._item(position) for position in group.tolist()]
        try:
            inputs, targets = default_collate(items)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"{_name(self.dataset)}: its items do not stack into a batch of tensors ({error})"
            ) from error
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            got = f"{_describe(inputs)} and {_describe(targets)}"
            raise DataError(
                f"{_name(self.dataset)}: expected a batch to be two tensors, got {got}; add a transform to it"
            )
        return inputs, targets

    def _declared(self, values: object, name: str) -> Tensor:
        wanted = f"{_name(self.dataset)}.{name}: expected {len(self.dataset)} integer classes"
        try:
            labels = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{wanted}, got {_describe(values)} ({error})") from error
        if labels.shape != (len(self.dataset),) or labels.is_floating_point() or labels.is_complex():
            raise DataError(f"{wanted}, got {labels.dtype} of shape {tuple(labels.shape)}")
        labels = labels.to("cpu", torch.int64)
        return labels if self.indices is None else labels.index_select(0, self.indices)

    def _label(self, position: int) -> int:
        target = torch.as_tensor(self._item(position)[1])
        if target.ndim != 0 or target.is_floating_point() or target.is_complex():
            got = f"{target.dtype} of shape {tuple(target.shape)}"
            raise DataError(f"item {position} of {_name(self.dataset)}: expected an integer class as target, got {got}")
        return int(target)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A data set before it is given out: what clients may hold, what the server keeps, who wrote each training example.

    ``train`` and ``test`` may be given as anything that ``as_examples`` takes. ``groups`` are natural client ids, one
    for each training example (a speaker, a patient), where there are any.

    Raises:
        DataError: ``train`` or ``test`` holds no examples, or ``groups`` has another length than ``train``.
    """

    train: Examples
    test: Examples | None = None
    groups: Sequence[str] | None = None
    name: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", as_examples(self.train))
        if self.test is not None:
            object.__setattr__(self, "test", as_examples(self.test))
        if self.groups is not None and len(self.groups) != len(self.train):
            raise DataError(f"{self.name}: expected {len(self.train)} groups, one an example, got {len(self.groups)}")

    @classmethod
    def from_labels(cls, labels: Sequence[int] | np.ndarray | Tensor, groups: Sequence[str] | None = None) -> "Data":
        """Return data that has labels and nothing else: enough for a partitioner to split."""
        classes = torch.as_tensor(labels)
        return cls(train=TensorExamples(classes, classes), groups=groups, name="labels")


def as_examples(value: object) -> Examples:
    """Return ``value`` as Examples, sharing its memory wherever numpy and torch can.

    Accepted: an Examples; a pair (inputs, targets) of tensors or numpy arrays; a TensorDataset of two tensors; any
    map-style data set; a Subset of one.

    Raises:
        DataError: it is none of these.

    >>> len(as_examples((np.zeros((3, 4), dtype=np.float32), np.array([0, 1, 1]))))
    3
    """
    if isinstance(value, Examples):
        return value
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        return TensorExamples(*value.tensors)
    if isinstance(value, Subset):
        return as_examples(value.dataset).select(torch.as_tensor(value.indices, dtype=torch.int64))
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, (Tensor, np.ndarray)) for v in value):
        return TensorExamples(_tensor(value[0], "inputs"), _tensor(value[1], "targets"))
    refused = (Tensor, np.ndarray, TensorDataset, IterableDataset, tuple, str, bytes, Mapping)
    if isinstance(value, MapStyle) and not isinstance(value, refused):
        return MapExamples(value)
    raise DataError(
        "expected examples: a pair (inputs, targets) of tensors or arrays, a TensorDataset of two tensors, or a "
        f"map-style data set (__len__, and __getitem__ giving a pair); got {_describe(value)}"
    )


def _tensor(array: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    # torch shares neither reversed nor read-only memory.
    usable = np.ascontiguousarray(array) if array.flags.writeable else np.array(array)
    try:
        return torch.from_numpy(usable)
    except TypeError as error:
        raise DataError(f"{name}: torch cannot hold an array of {array.dtype} ({error})") from error


def _own(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _name(dataset: object) -> str:
    return type(dataset).__name__


def _describe(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {_name(value)} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        kinds = [_name(v) for v in value[:4]] + ["..."] * (len(value) > 4)
        return f"a {_name(value)} of {len(value)} ({', '.join(kinds)})"
    return f"a {type(value).__module__}.{type(value).__qualname__}"

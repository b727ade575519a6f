"""``WindowExamples``: windows of one long signal, cut out when a batch needs them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from roundelay.data.examples import TensorExamples
from roundelay.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class WindowExamples:
    """Example n is ``signal[start_n : start_n + length]`` as one channel, shape (1, length), with its target.

    ``signal`` is (T,); ``places`` holds (start, target), int64 of shape (N,) each. Windows may overlap. Views share the
    signal: nothing of it is copied but the batch at hand, (B, 1, length).

    Raises:
        DataError: a window would leave the signal.

    >>> import torch
    >>> places = TensorExamples(torch.tensor([0, 1, 7]), torch.tensor([0, 1, 0]))
    >>> examples = WindowExamples(torch.arange(10.0), 3, places)
    >>> [inputs.tolist() for inputs, _ in examples.select(torch.tensor([2, 0])).batches(torch.arange(2), 1)]
    [[[[7.0, 8.0, 9.0]]], [[[0.0, 1.0, 2.0]]]]
    """

    signal: Tensor
    length: int
    places: TensorExamples

    def __post_init__(self) -> None:
        if len(self.places) == 0:
            return
        first, last = (int(bound) for bound in self.places.inputs.aminmax())
        if first < 0 or last + self.length > len(self.signal):
            got = f"{first} to {last + self.length}"
            raise DataError(f"windows: expected them within a signal of {len(self.signal)} samples, got {got}")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        start, target = self.places[index]
        return self.signal[None, int(start) : int(start) + self.length], target

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        windows = self.signal.unfold(0, self.length, 1)  # a view: (T - length + 1, length)
        return ((windows[starts][:, None], targets) for starts, targets in self.places.batches(order, batch_size))

    def labels(self) -> Tensor:
        return self.places.labels()

    def select(self, indices: Tensor) -> "WindowExamples":
        return WindowExamples(self.signal, self.length, self.places.select(indices))

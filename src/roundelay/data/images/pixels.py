"""Pictures as they are stored, a byte a value, and normalised when a batch is read: a quarter of their float32."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from roundelay.data import checks, examples
from roundelay.data.examples import TensorExamples
from roundelay.errors import DataError

Channels = tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PixelExamples:
    """Examples whose inputs are float32 (N, C, H, W), (pixel / 255 - mean) / std by channel, of ``pixels``, uint8 of
    that shape. The bits are those of normalising them all at once.

    Views of one base share it. What is read is a copy, and about 4 MiB of it exists at a time.

    Raises:
        DataError: pixels are not uint8 of shape (N, C, H, W), or mean and std are not one number a channel.

    >>> grey = PixelExamples(TensorExamples(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([3])))
    >>> grey[0]
    (tensor([[[0., 1.]]]), tensor(3))
    """

    pixels: TensorExamples
    mean: Channels = (0.0,)
    std: Channels = (1.0,)

    def __post_init__(self) -> None:
        held = self.pixels.inputs
        if held.dtype != torch.uint8 or held.ndim != 4:
            raise DataError(f"pixels: expected uint8 of shape (N, C, H, W), got {held.dtype} of {tuple(held.shape)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != held.shape[1]:
                raise DataError(f"{name}: expected {held.shape[1]} numbers, one for each channel, got {len(values)}")
        if min(self.std) <= 0:
            raise DataError(f"std: expected numbers above 0, got {self.std}")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        image, target = self.pixels[index]
        return normalised(image, self.mean, self.std), target

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        checks.check_batch_size(batch_size)
        batch_bytes = max(1, 4 * self.pixels.inputs[:1].numel()) * batch_size
        rows = max(1, examples.BLOCK_BYTES // batch_bytes) * batch_size
        blocks = self.pixels.batches(order, rows)  # raises here, not when the first batch is asked for
        return self._cut(blocks, batch_size)

    def labels(self) -> Tensor:
        return self.pixels.labels()

    def select(self, indices: Tensor) -> "PixelExamples":
        return PixelExamples(self.pixels.select(indices), self.mean, self.std)

    def _cut(self, blocks: Iterator[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, targets in blocks:
            inputs = normalised(pixels, self.mean, self.std)
            for at in range(0, targets.shape[0], batch_size):
                yield inputs[at : at + batch_size], targets[at : at + batch_size]


def normalised(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Return uint8 ``pixels`` (..., C, H, W) as float32, (pixel / 255 - mean) / std by channel."""
    shape = (-1, 1, 1)
    images = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    means, stds = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(shape) for values in (mean, std)
    )
    return images.copy_(pixels).div_(255).sub_(means).div_(stds)

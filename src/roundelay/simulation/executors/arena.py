"""One growing piece of memory that the server and its workers share, without a name that could outlive them.

The memory is an anonymous file: it is passed on by descriptor, mapped region by region, and gone with the last process.
"""

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 64
MAX_VIEWS = 4096
"""How many ways of reading regions are kept ready."""


class Region(NamedTuple):
    """A range of the arena, in bytes; both numbers are multiples of the page size."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """How tensors lie in a region: dtype and length of each, one after another on 64-byte boundaries."""

    parts: tuple[tuple[torch.dtype, int], ...]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "Packed":
        return Packed(tuple((t.dtype, t.numel()) for t in tensors))

    @property
    def size(self) -> int:
        return sum(_aligned(dtype.itemsize * length) for dtype, length in self.parts)


class Arena:
    def __init__(self) -> None:
        self._fd = os.memfd_create("roundelay") if hasattr(os, "memfd_create") else _unlinked_file()
        self._end = 0
        self._free: dict[int, list[Region]] = {}
        self._maps: dict[int, Tensor] = {}
        self._views: dict[tuple[object, ...], list[Tensor]] = {}

    def allocate(self, num_bytes: int) -> Region:
        """Return a region of at least ``num_bytes``; one that was given back, if its size fits exactly."""
        size = max(1, -(-num_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        if self._free.get(size):
            return self._free[size].pop()
        region = Region(self._end, size)
        self._end += size
        os.ftruncate(self._fd, self._end)
        return region

    def free(self, region: Region) -> None:
        self._free.setdefault(region.size, []).append(region)

    def bytes_of(self, region: Region) -> Tensor:
        """Return the region as uint8 (size,), mapped once per process."""
        mapped = self._maps.get(region.offset)
        if mapped is None:
            mapped = torch.frombuffer(mmap.mmap(self._fd, region.size, offset=region.offset), dtype=torch.uint8)
            self._maps[region.offset] = mapped
        return mapped

    def write(self, region: Region, tensors: Sequence[Tensor], start: int = 0) -> Packed:
        """Copy tensors (1-D each) into the region from byte ``start`` on, a multiple of 64."""
        packed = Packed.of(tensors)
        torch._foreach_copy_(self.read(region, packed, start), list(tensors))
        return packed

    def read(self, region: Region, packed: Packed, start: int = 0) -> list[Tensor]:
        """Return views of the tensors that lie in the region; the same ones for the same arguments."""
        key = (region.offset, start, packed.parts)
        views = self._views.get(key)
        if views is None:
            raw, at, views = self.bytes_of(region), start, []
            for dtype, length in packed.parts:
                views.append(raw[at : at + dtype.itemsize * length].view(dtype))
                at += _aligned(dtype.itemsize * length)
            if len(self._views) >= MAX_VIEWS:  # encoded vectors have other lengths each time
                self._views.clear()
            self._views[key] = views
        return views

    def close(self) -> None:
        """Give the memory back, but for regions of which somebody still has a view."""
        self._maps.clear()
        self._views.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __reduce__(self) -> Any:  # Any: what pickle's protocol asks for
        return _attach, (reduction.DupFd(self._fd),)


def _attach(descriptor: Any) -> Arena:  # Any: multiprocessing's private wrapper of a descriptor
    arena = Arena.__new__(Arena)
    arena._fd, arena._end, arena._free, arena._maps, arena._views = descriptor.detach(), 0, {}, {}, {}
    return arena


def _unlinked_file() -> int:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its descriptor is what is kept
    return os.dup(file.fileno())


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT

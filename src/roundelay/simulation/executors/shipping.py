"""Sending a job's work to the workers of one machine: functions by cloudpickle, arrays once, through shared memory.

Classes and functions of a notebook or of ``__main__`` travel by value. Nothing here reads bytes from a network.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.simulation.executors.arena import Arena, Region
from roundelay.trainer import Work

SHARED_FROM_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Shipment:
    """Pickled work, and where each of its large arrays lies in the arena."""

    pickled: bytes
    regions: tuple[tuple[Region, int], ...]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:  # Any: pickle's protocol
        if type(obj) is Tensor and _shareable(obj):
            return _as_tensor, (obj.contiguous().view(-1).view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))
        return super().reducer_override(obj)


def pack(work: Work, arena: Arena) -> Shipment:
    """Put the work's large arrays into the arena and pickle the rest.

    Raises:
        ConfigError: a part of the job cannot be sent to another process.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < SHARED_FROM_BYTES:
            return True
        buffers.append(buffer)
        return False

    try:
        _Pickler(stream, protocol=5, buffer_callback=out_of_band).dump(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the job cannot be sent to worker processes: {error}; use the serial executor, or build what cannot be "
            "pickled (locks, open files, sockets) inside the function that uses it"
        ) from error
    regions: list[tuple[Region, int]] = []
    placed: dict[tuple[int, int], tuple[Region, int]] = {}
    for buffer in buffers:
        raw = np.frombuffer(buffer.raw(), dtype=np.uint8)
        address = (raw.ctypes.data, raw.nbytes)  # views of the same array are stored once
        if address not in placed:
            region = arena.allocate(raw.nbytes)
            arena.bytes_of(region).numpy()[: raw.nbytes] = raw
            placed[address] = (region, raw.nbytes)
        regions.append(placed[address])
    return Shipment(stream.getvalue(), tuple(regions))


def unpack(shipment: Shipment, arena: Arena) -> Work:
    """Rebuild the work; its large arrays are views of the arena."""
    buffers = [arena.bytes_of(region).numpy()[:size] for region, size in shipment.regions]
    work = pickle.loads(shipment.pickled, buffers=buffers)
    assert isinstance(work, Work)
    return work


def _shareable(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.requires_grad
    return plain and tensor.device.type == "cpu" and tensor.nbytes >= SHARED_FROM_BYTES


def _as_tensor(raw: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(raw).view(dtype).view(shape)

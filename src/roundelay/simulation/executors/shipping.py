"""Values on their way to workers, as cloudpickle makes bytes of them: a ``Parcel`` keeps their arrays apart, each once.

Classes and functions of a notebook or of ``__main__`` travel by value. The pool puts a job's arrays into its shared
memory, Ray puts a parcel into its object store. Nothing here reads bytes that anybody but our own workers sent.
"""

import ctypes
import io
import pickle
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from roundelay.errors import ConfigError
from roundelay.messages import Task
from roundelay.simulation.executors.arena import Arena, Region
from roundelay.trainer import Work

SHARED_FROM_BYTES = 4096

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def fields_of(task: Task) -> tuple[Any, ...]:  # Any: fields of several types
    """Return what ``Task`` makes the task of again: that pickles faster than the value."""
    return task.id, task.client, task.round, task.attempt, task.kind, task.config


@dataclass(frozen=True, slots=True)
class Parcel:
    """A pickled value, its arrays as bytes, and in which order unpickling asks for them."""

    pickled: bytes
    arrays: tuple[Bytes, ...]
    order: tuple[int, ...]

    @staticmethod
    def of(value: object, apart_from_bytes: int = 0) -> "Parcel":
        """Pickle a value. Its arrays are not copied; those that are smaller than ``apart_from_bytes`` are pickled."""
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()

        def stays(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < apart_from_bytes:
                return True
            buffers.append(buffer)
            return False

        _Pickler(stream, apart_from_bytes, stays).dump(value)
        placed: dict[tuple[int, int], int] = {}
        arrays: list[Bytes] = []
        order: list[int] = []
        for buffer in buffers:
            raw = np.frombuffer(buffer.raw(), dtype=np.uint8)
            address = (raw.ctypes.data, raw.nbytes)  # views of the same array are stored once
            if address not in placed:
                placed[address] = len(arrays)
                arrays.append(raw)
            order.append(placed[address])
        return Parcel(stream.getvalue(), tuple(arrays), tuple(order))

    def open(self) -> Any:  # Any: what was pickled
        """Rebuild the value; its arrays are views of the parcel's."""
        return pickle.loads(self.pickled, buffers=[_writable(self.arrays[index]) for index in self.order])


@dataclass(frozen=True, slots=True)
class Shipment:
    """Pickled work, and where each of its large arrays lies in the arena."""

    pickled: bytes
    regions: tuple[tuple[Region, int], ...]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, stream: io.BytesIO, apart_from_bytes: int, stays: Any) -> None:  # Any: a callback of pickle's
        super().__init__(stream, protocol=5, buffer_callback=stays)
        self._apart_from_bytes = apart_from_bytes

    def reducer_override(self, obj: Any) -> Any:  # Any: pickle's protocol
        if type(obj) is Tensor and _plain(obj) and obj.nbytes >= self._apart_from_bytes:
            return _as_tensor, (obj.contiguous().view(-1).view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))
        return super().reducer_override(obj)


def packed(work: Work) -> Parcel:
    """Return the work as a parcel, its large arrays apart.

    Raises:
        ConfigError: a part of the job cannot be sent to another process.
    """
    try:
        return Parcel.of(work, SHARED_FROM_BYTES)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the job cannot be sent to worker processes: {error}; use the serial executor, or build what cannot be "
            "pickled (locks, open files, sockets) inside the function that uses it"
        ) from error


def pack(work: Work, arena: Arena) -> Shipment:
    """Put the work's large arrays into the arena and pickle the rest.

    Raises:
        ConfigError: a part of the job cannot be sent to another process.
    """
    parcel = packed(work)
    placed: list[tuple[Region, int]] = []
    for raw in parcel.arrays:
        region = arena.allocate(raw.nbytes)
        arena.bytes_of(region).numpy()[: raw.nbytes] = raw
        placed.append((region, raw.nbytes))
    return Shipment(parcel.pickled, tuple(placed[index] for index in parcel.order))


def unpack(shipment: Shipment, arena: Arena) -> Work:
    """Rebuild the work; its large arrays are views of the arena."""
    buffers = [arena.bytes_of(region).numpy()[:size] for region, size in shipment.regions]
    work = pickle.loads(shipment.pickled, buffers=buffers)
    assert isinstance(work, Work)
    return work


def _plain(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.requires_grad
    return strided and tensor.device.type == "cpu"


def _as_tensor(raw: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(raw).view(dtype).view(shape)


def _writable(raw: Bytes) -> Bytes:
    """Return the same memory, which an object store marks as read-only, as an array that torch takes silently."""
    if raw.flags.writeable:
        return raw
    memory = (ctypes.c_uint8 * raw.nbytes).from_address(raw.ctypes.data)
    memory.owner = raw  # type: ignore[attr-defined]  # the store keeps what somebody refers to
    return np.frombuffer(memoryview(memory), dtype=np.uint8)

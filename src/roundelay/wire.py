"""Frames: a checked JSON header, raw tensor bytes, a digest. For sockets, requests, files; nothing in it is executed.

A frame is four parts, one after another. All numbers are little-endian.

======== ============ ==========================================================================================
part     bytes        content
======== ============ ==========================================================================================
prefix   24           magic ``rdl-wire`` (8), version 1 (uint32), header's length (uint32), body's length (uint64)
header   as said      JSON in UTF-8, filled up with spaces so that prefix and header are a multiple of 64 together
body     as said      the tensors' values in the header's order
digest   32           SHA-256, see below
======== ============ ==========================================================================================

**Header.** An object with exactly these keys: ``kind``, a word of 1 to 64 characters ``a-z 0-9 _ . -`` that begins with
a letter; ``fields``, an object with any JSON values; ``tensors``, a list of ``[name, dtype, shape]``. A name is a
string of 1 to 512 characters, and no name comes twice. A dtype is one of float16, float32, float64, bfloat16, bool,
int8, int16, int32, int64, uint8, uint16, uint32, uint64. A shape is a list of at most 64 whole numbers, from 0 on;
their product without the zeros, times the bytes of one value, stays below 2**63.

In all of it no key comes twice in one object; whole numbers lie from -2**63 to 2**64 - 1; ``fields`` is at most 32
levels deep, itself counted; no string holds half a surrogate pair. A number with a point or an exponent is a float64.
One step beyond JSON: ``NaN``, ``Infinity`` and ``-Infinity`` stand for the floats that JSON lacks, since a loss that
became NaN must be reported. A literal that is too large for a float64 is refused.

**Body.** A tensor begins at the first multiple of 64, counted from the body's start, at or after the end of the one
before; the bytes between are zero. Its values lie in row-major order, a bool as a byte 0 or 1. The body ends where the
last tensor ends; without tensors it is empty. Positions are thus not written down, and cannot overlap.

**Digest.** SHA-256 over prefix, header, and the SHA-256 (32 raw bytes) of each 4 MiB of the body in order, the last
piece as short as it comes, none for an empty body. Pieces can be hashed side by side, and while the rest is on its way.
It guards against accidents; it is not a signature.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from roundelay import header
from roundelay.errors import WireError
from roundelay.header import Bytes, Head, Limits
from roundelay.load import available_cores

DIGEST_BYTES, CHUNK_BYTES, HASH_THREADS = 32, 4 << 20, 4
FIRST_BYTES, GROWTH = 16 << 20, 4  # a stream's body: the first buffer, and how many times larger the next one is
LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. ``kind`` is a short word; ``fields`` is what JSON holds, in its own Python types (no tuples, no
    subclasses); ``tensors`` are dense and on the CPU, of any shape.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON's types nest
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


# ---- encoding -------------------------------------------------------------------------------------------------------


def encode(frame: Frame, limits: Limits = LIMITS) -> list[Bytes]:
    """Return the frame's buffers in order. Those of contiguous tensors are the tensors' own memory, not copies: write
    them out before the tensors change, or the digest is wrong.

    Raises:
        WireError: the frame holds what a frame cannot, or more than ``limits`` allow.
    """
    head = head_of(frame, limits)
    body = body_of(head, frame.tensors)
    return [head.raw, *body, digest(head.raw, body)]


def to_bytes(frame: Frame, limits: Limits = LIMITS) -> bytes:
    """Return the frame as one string of bytes, a copy.

    >>> decode(to_bytes(Frame("answer", {"loss": 0.5}, {"step": torch.tensor([1, 2])}))).tensors["step"]
    tensor([1, 2])
    """
    return b"".join(encode(frame, limits))


def head_of(frame: Frame, limits: Limits = LIMITS) -> Head:
    """Return what stands before the frame's body."""
    return header.build(frame.kind, frame.fields, frame.tensors, limits)


def body_of(head: Head, tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the body's buffers in order: the memory of contiguous tensors, and the zeros between."""
    gaps = {stop: memoryview(bytes(stop - start)) for start, stop in head.gaps()}
    buffers = []
    for place in head.places:
        if place.start in gaps:
            buffers.append(gaps.pop(place.start))
        dense = tensors[place.name].detach().resolve_neg().contiguous()
        flat = dense.as_strided((dense.numel(),), (1,))  # not view(-1), which keeps the odd stride of a single value
        buffers.append(flat.view(torch.uint8).numpy().data)
    return buffers


def digest(head: bytes, body: Iterable[memoryview]) -> bytes:
    """Return the digest of a frame whose body lies in these buffers. Large ones are hashed in threads."""
    chunks, total = list(_chunks(body)), hashlib.sha256(head)
    threads = min(HASH_THREADS, len(chunks), available_cores())
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(_hash, chunks))
    else:
        parts = [_hash(chunk) for chunk in chunks]
    total.update(b"".join(parts))
    return total.digest()


def _chunks(buffers: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    chunk, room = list[memoryview](), CHUNK_BYTES
    for buffer in buffers:
        left = buffer
        while left:
            piece, left = left[:room], left[room:]
            chunk.append(piece)
            room -= len(piece)
            if not room:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _hash(chunk: Sequence[memoryview]) -> bytes:
    sha = hashlib.sha256()
    for piece in chunk:
        sha.update(piece)
    return sha.digest()


# ---- decoding -------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """What a frame is read from: a file opened in binary mode, for one. 0 means that nothing will follow."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


def decode(data: Bytes, limits: Limits = LIMITS, *, verified: bool = False) -> Frame:
    """Return the frame that ``data`` is, all of it. Its tensors are views of ``data`` where that is writable and begins
    on a 64-byte boundary, else views of one aligned copy.

    ``verified``: the caller knows that these are the bytes that were once found to be in order, by their own digest or
    by another one over all of them; the frame's is not computed again, which for large models is most of the work.

    Raises:
        WireError: the bytes are no frame, not a whole one, more than one, or one beyond ``limits``.
    """
    view = memoryview(data).cast("B")
    header_bytes, body_bytes = header.lengths_in(view[: header.PREFIX.size], limits)
    start = header.PREFIX.size + header_bytes
    stop = start + body_bytes
    if len(view) != stop + DIGEST_BYTES:
        raise WireError(f"the prefix speaks of {stop + DIGEST_BYTES} bytes in all, but {len(view)} came")
    head = header.parse(bytes(view[:start]), limits)
    body = _as_tensor(view[start:stop])
    came = view[stop:]
    return finish(head, body, bytes(came) if verified else digest(head.raw, [bytes_of(body)]), came)


def read(stream: Source, limits: Limits = LIMITS) -> Frame | None:
    """Read one frame and leave the stream behind it; None where the stream ends before a frame begins.

    Memory grows with what has come, to 16 MiB and at most five times as much: a false length allocates no more.

    Raises:
        WireError: the bytes are no frame, not a whole one, or one beyond ``limits``.
    """
    frame, num_read = incoming(limits), 0
    wanted = next(frame)
    while True:
        count = stream.readinto(wanted)
        if not count:
            if num_read == 0:
                return None
            raise WireError(f"the stream ended {num_read} bytes into a frame, where {len(wanted)} or more were to come")
        num_read += count
        try:
            wanted = frame.send(count)
        except StopIteration as done:
            complete: Frame = done.value
            return complete


def incoming(
    limits: Limits = LIMITS, memory: Callable[[int], Tensor] | None = None
) -> Generator[memoryview, int, Frame]:
    """Yield buffers to be filled, get told how many bytes (at least 1) were put into each, return the frame.

    It may rest between two steps for as long as its driver likes. With ``memory``, the body does not come with the
    other bytes but lies in what ``memory(its length)`` returns: uint8, on a 64-byte boundary. The body is hashed before
    the digest is asked for, so that the sender can hash at the same time.
    """
    prefix = bytearray(header.PREFIX.size)
    yield from fill(prefix)
    header_bytes, body_bytes = header.lengths_in(prefix, limits)
    text = bytearray(header_bytes)
    yield from fill(text)
    head = header.parse(bytes(prefix + text), limits)
    body = (yield from _grow(body_bytes)) if memory is None else memory(body_bytes)
    computed, came = digest(head.raw, [bytes_of(body)]), bytearray(DIGEST_BYTES)
    yield from fill(came)
    return finish(head, body, computed, came)


def fill(buffer: Bytes) -> Generator[memoryview, int, None]:
    """Yield what is left of a buffer until all of it was filled."""
    left = memoryview(buffer)
    while left:
        left = left[(yield left) :]


def _grow(num_bytes: int) -> Generator[memoryview, int, Tensor]:
    body, filled = aligned(min(num_bytes, FIRST_BYTES)), 0
    while True:
        yield from fill(bytes_of(body)[filled:])
        filled = len(body)
        if filled == num_bytes:
            return body
        larger = aligned(min(num_bytes, GROWTH * filled))
        larger[:filled] = body
        body = larger


def finish(head: Head, body: Tensor, computed: bytes, came: Bytes) -> Frame:
    """Return the frame, once its digest and the bytes of its body have been found to be in order."""
    if computed != bytes(came):
        raise WireError(f"the digest over the bytes is {computed.hex()}, the frame says {bytes(came).hex()}: damaged")
    for start, stop in head.gaps():
        if any(bytes_of(body[start:stop])):
            raise WireError(f"bytes {start} to {stop} of the body lie between tensors and must be zero")
    tensors = head.views(body)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise WireError(f"tensor {name!r}: a bool is a byte 0 or 1, a larger one came")
    return Frame(head.kind, head.fields, tensors)


def aligned(num_bytes: int) -> Tensor:
    """Return new memory on a 64-byte boundary, uint8 (num_bytes,), not initialised."""
    raw = np.empty(num_bytes + header.ALIGNMENT - 1, np.uint8)
    start = -raw.ctypes.data % header.ALIGNMENT
    return torch.from_numpy(raw[start : start + num_bytes])


def bytes_of(body: Tensor) -> memoryview:
    """Return the memory of a uint8 vector."""
    return body.numpy().data


def _as_tensor(view: memoryview) -> Tensor:
    if view and not view.readonly:
        body = torch.frombuffer(view, dtype=torch.uint8)
        if body.data_ptr() % header.ALIGNMENT == 0:
            return body
    body = aligned(len(view))
    bytes_of(body)[:] = view
    return body

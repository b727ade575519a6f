"""Frames between two processes of one machine: a local socket, and shared memory for large bodies.

On the socket each frame has four bytes before it: what it is, which memory its body lies in, whether a descriptor comes
with it, zero. The digest follows once it is computed, so that both ends hash at the same time.

**Memory.** On Linux the sender owns up to two anonymous files, whose descriptors travel once each. A frame occupies its
file until the receiver says that it no longer needs it, which it does when it asks for the next frame (`release` says so
earlier). While both are occupied, further frames go through the socket whole: nothing is ever written over what was not
read. In request and answer, one file or two carry everything.

The peer is a process of the same user. Whatever it sends is checked as any frame is; but it can change the values of
tensors in its memory afterwards. The file is sealed so that it cannot shrink under the reader.
"""

import contextlib
import hmac
import mmap
import os
import secrets
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from roundelay import wire
from roundelay.errors import ChannelClosed, ConfigError, WireError
from roundelay.wire import Bytes, Frame, Head, Limits

if sys.platform == "linux":
    import fcntl

    SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
HAS_MEMORY = sys.platform == "linux" and hasattr(os, "memfd_create")
MEMORY_FROM = 256 << 10  # bytes of a body from which on memory is faster than the socket: benchmarks/wire.py
SOCKET_BUFFER = 1 << 20
NUM_MEMORIES = 2
ENVELOPE = struct.Struct("<BBBx")
INLINE, MEMORY, FREE = 1, 2, 3
MAX_BUFFERS = 512  # of one system call; Linux takes 1024
MAX_PATH = 100  # of a Unix socket, in bytes; systems allow 104 or 108
TOKEN_BYTES, TOKEN_WAIT_S = 32, 2.0


class Channel:
    """One end of a connection. One thread may send while another receives.

    Two ends that both send more than the socket holds before either receives wait for each other: large frames that are
    not an answer to the peer's last one belong on a channel of their own.
    """

    def __init__(self, sock: socket.socket, limits: Limits = wire.LIMITS) -> None:
        """Take over a connected stream socket."""
        sock.setblocking(True)
        self._socket, self._limits = sock, limits
        self._closed = False
        self._is_unix = hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX
        if self._is_unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        # what we send
        self._own: list[Tensor | None] = [None] * (NUM_MEMORIES if self._is_unix and HAS_MEMORY else 0)
        self._occupied: set[int] = set()
        # what we receive
        self._message: Generator[memoryview, int, Frame | None] | None = None  # the one under way, if any
        self._wanted = memoryview(b"")
        self._descriptors: list[int] = []
        self._theirs: dict[int, Tensor] = {}
        self._held: int | None = None  # the memory in which the last received frame lies
        self._to_free: list[int] = []

    def fileno(self) -> int:
        """For ``select``. Readable does not mean that a whole frame is there, nor a frame at all."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other then gets ``ChannelClosed``. Received tensors stay valid."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits
        self._socket.close()
        self._drop_descriptors()

    # ---- sending ----

    def send(self, frame: Frame) -> None:
        """Send the whole frame. Its tensors may be changed afterwards. A sender that was interrupted half-way closes the
        channel.

        Raises:
            ChannelClosed: the peer is gone, or this end was closed.
            WireError: the frame holds what a frame cannot; nothing was sent.
        """
        head = wire.head_of(frame, self._limits)
        with self._sending:
            self._check_open()
            memory = self._free_memory(head.body_bytes) if head.body_bytes >= MEMORY_FROM else None
            try:
                if memory is None:
                    body = wire.body_of(head, frame.tensors)
                    self._write([ENVELOPE.pack(INLINE, 0, 0), head.raw, *body])
                    self._write([wire.digest(head.raw, body)])
                else:
                    self._send_by_memory(head, frame, memory)
            except BaseException:
                self.close()  # the peer must not take what comes next for the rest of this frame
                raise
        self._send_frees()

    def _send_by_memory(self, head: Head, frame: Frame, memory: int) -> None:
        own, descriptor = self._own[memory], -1
        if own is None or len(own) < head.body_bytes:
            own, descriptor = _new_memory(head.body_bytes)
            self._own[memory] = own
        try:
            body = own[: head.body_bytes]
            for start, stop in head.gaps():
                body[start:stop].zero_()
            places = head.views(body)
            torch._foreach_copy_(list(places.values()), [frame.tensors[name].detach() for name in places])
            self._occupied.add(memory)
            begin = ENVELOPE.pack(MEMORY, memory, descriptor >= 0) + head.raw
            self._write([begin], descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._write([wire.digest(head.raw, [wire.bytes_of(body)])])

    def _free_memory(self, num_bytes: int) -> int | None:
        """Return a memory that the peer does not read from, rather one that is large enough already; None if none is."""
        if self._occupied:
            self._take_frees()
        free = [i for i in range(len(self._own)) if i not in self._occupied]
        large = [i for i in free if (own := self._own[i]) is not None and len(own) >= num_bytes]
        made = [i for i in free if self._own[i] is not None]
        return next(iter(large or made or free), None)

    def _take_frees(self) -> None:
        """Take in what the peer says of our memory, unless frames stand before it."""
        if not self._receiving.acquire(blocking=False):
            return  # whoever receives takes it in
        try:
            while self._message is None:
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
                with contextlib.suppress(OSError):
                    begin = self._socket.recv(ENVELOPE.size, flags)
                    if len(begin) == ENVELOPE.size and begin[0] == FREE:
                        self._step(None)
                        continue
                return
        finally:
            self._receiving.release()

    def _write(self, buffers: Sequence[Bytes], descriptor: int = -1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))] if descriptor >= 0 else []
        left = [memoryview(b) for b in buffers if len(b)]
        try:
            while left:
                sent = self._socket.sendmsg(left[:MAX_BUFFERS], rights)
                rights = []
                while left and sent >= len(left[0]):
                    sent -= len(left.pop(0))
                if sent:
                    left[0] = left[0][sent:]
        except OSError as problem:
            raise ChannelClosed(f"the other end of the channel is gone, nothing can be sent: {problem}") from None

    # ---- receiving ----

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Return the next frame. Its tensors may be views of memory that the sender uses again: they are valid until the
        next ``receive`` or ``release`` on this channel. Copy what is to be kept.

        Raises:
            TimeoutError: no whole frame came in time; nothing is lost, a later call goes on.
            ChannelClosed: the peer is gone, or this end was closed.
            WireError: what came is not a frame; the channel is closed, since nothing behind it can be understood.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._receiving:
            self.release()
            try:
                while (frame := self._step(deadline)) is None:
                    pass
            except WireError:
                self.close()
                raise
            return frame

    def release(self) -> None:
        """Say that the tensors of the last received frame are no longer needed."""
        if self._held is not None:
            self._to_free.append(self._held)
            self._held = None
        self._send_frees()

    def _send_frees(self) -> None:
        """Send what is to be said without ever waiting: a later send or receive tries again."""
        while self._to_free and self._sending.acquire(blocking=False):
            try:
                self._socket.send(ENVELOPE.pack(FREE, self._to_free[0], 0), socket.MSG_DONTWAIT)
                self._to_free.pop(0)
            except OSError:
                return  # the socket is full, or closed, which receive will notice
            finally:
                self._sending.release()

    def _step(self, deadline: float | None) -> Frame | None:
        """Read on until a message is complete; return its frame, if it is one."""
        while True:
            wanted = self._wanted if self._message is not None else memoryview(bytearray(ENVELOPE.size))
            count = self._read(wanted, deadline)
            if self._message is None:
                self._message = self._begin(wanted)
                next(self._message)
            try:
                self._wanted = self._message.send(count)
            except StopIteration as done:
                self._message = None
                frame: Frame | None = done.value
                return frame

    def _begin(self, envelope: memoryview) -> Generator[memoryview, int, Frame | None]:
        yield from wire.fill(envelope)
        kind, memory, with_descriptor = ENVELOPE.unpack(envelope)
        if len(self._descriptors) != with_descriptor:
            raise WireError(f"{with_descriptor} descriptors were announced, {len(self._descriptors)} came")
        if kind == FREE and memory in self._occupied:
            self._occupied.discard(memory)
            return None
        if kind == INLINE:
            return (yield from wire.incoming(self._limits))
        if kind != MEMORY or not self._is_unix or not HAS_MEMORY or memory >= NUM_MEMORIES:
            raise WireError(f"expected a frame, but a message {bytes(envelope).hex()} came")
        if with_descriptor:
            self._theirs[memory] = _map(self._descriptors.pop(), self._limits)
        frame = yield from wire.incoming(self._limits, lambda num_bytes: self._memory(memory, num_bytes))
        self._held = memory
        return frame

    def _memory(self, memory: int, num_bytes: int) -> Tensor:
        theirs = self._theirs.get(memory)
        if theirs is None or len(theirs) < num_bytes:
            size = "no memory" if theirs is None else f"a memory of {len(theirs)} bytes"
            raise WireError(f"a body of {num_bytes} bytes is said to lie in {size}")
        return theirs[:num_bytes]

    def _read(self, wanted: memoryview, deadline: float | None) -> int:
        while True:
            self._check_open()
            try:
                return self._read_now(wanted)
            except BlockingIOError:
                pass
            except OSError as problem:
                raise ChannelClosed(f"the other end of the channel is gone: {problem}") from None
            _wait(self._socket, deadline, "a whole frame")

    def _read_now(self, wanted: memoryview) -> int:
        if self._is_unix and HAS_MEMORY:
            room, flags = socket.CMSG_SPACE(array("i").itemsize), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            count, ancillary, _, _ = self._socket.recvmsg_into([wanted], room, flags)
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._descriptors.extend(array("i", data))
            if len(self._descriptors) > 1:
                self._drop_descriptors()
                raise WireError("more descriptors came than were announced")
        else:
            count = self._socket.recv_into(wanted, 0, socket.MSG_DONTWAIT)
        if not count:
            where = "within a frame" if self._message is not None else "after whole frames only"
            raise ChannelClosed(f"the other end of the channel was closed, {where}")
        return count

    def _drop_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosed("this end of the channel was closed")

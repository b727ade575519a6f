"""Frames between two processes of one machine: a local socket, and shared memory for large bodies.

On the socket each frame has four bytes before it: what it is, which memory its body lies in, whether a descriptor comes
with it, zero. The digest follows once it is computed, so that both ends hash at the same time.

**Memory.** On Linux the sender owns up to two anonymous files, whose descriptors travel once each. A frame occupies
its file until the receiver says that it no longer needs it, which it does when it asks for the next frame (`release`
says so earlier). While both are occupied, further frames go through the socket whole: nothing is ever written over what
was not read. In request and answer, one file or two carry everything.

The peer is a process of the same user. Whatever it sends is checked as any frame is; but it can change the values of
tensors in its memory afterwards. The file is sealed so that it cannot shrink under the reader.
"""

import contextlib
import hmac
import os
import secrets
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from array import array
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from roundelay import sealed, wire
from roundelay.errors import ChannelClosed, ConfigError, WireError
from roundelay.header import Bytes, Head, Limits
from roundelay.wire import Frame

MEMORY_FROM = 256 << 10  # bytes of a body; below, the socket is as fast: benchmarks/wire.py
HASH_ALONGSIDE_FROM = 32 << 10  # below, waking the receiver twice costs more than it saves
SOCKET_BUFFER = 1 << 20
NUM_MEMORIES = 2
ENVELOPE = struct.Struct("<BBBx")
INLINE, MEMORY, FREE = 1, 2, 3
MAX_BUFFERS = 512  # of one system call; Linux takes 1024
MAX_PATH = 100  # of a Unix socket, in bytes; systems allow 104 or 108
TOKEN_BYTES, TOKEN_WAIT_S = 32, 2.0
DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)  # systems without it wait before each call instead
CONTROL_BYTES = 128  # for descriptors; the kernel closes those that find no room


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
        is_unix = hasattr(socket, "AF_UNIX") and sock.family == socket.AF_UNIX
        self._has_memory = is_unix and sealed.AVAILABLE
        if is_unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        # what we send
        self._own: list[Tensor | None] = [None] * (NUM_MEMORIES if self._has_memory else 0)
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
        """Close this end; the other then gets ``ChannelClosed``, and so does a thread that waits here. What was
        received stays valid.
        """
        self._closed = True
        if self._receiving.locked() or self._sending.locked():
            self._break()  # not otherwise, since it reaches into every process that inherited the socket
        with self._receiving, self._sending:  # a descriptor that is closed in use may come to mean another file
            self._socket.close()
            while self._descriptors:
                os.close(self._descriptors.pop())
            self._own, self._theirs, self._message = [], {}, None

    def _break(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # ---- sending ----

    def send(self, frame: Frame) -> None:
        """Send the whole frame. Its tensors may be changed afterwards. Whatever interrupts this half-way ends the
        connection.

        Raises:
            ChannelClosed: the peer is gone, or this end was closed.
            WireError: the frame holds what a frame cannot; nothing was sent.
        """
        head = wire.head_of(frame, self._limits)
        with self._sending:
            self._check_open()
            try:
                memory = self._free_memory(head.body_bytes) if head.body_bytes >= MEMORY_FROM else None
                if memory is None:
                    body = wire.body_of(head, frame.tensors)
                    begin: list[Bytes] = [ENVELOPE.pack(INLINE, 0, 0), head.raw, *body]
                    if head.body_bytes >= HASH_ALONGSIDE_FROM:
                        self._write(begin)
                        begin = []
                    self._write([*begin, wire.digest(head.raw, body)])
                else:
                    self._send_by_memory(head, frame, *memory)
            except BaseException:
                self._break()  # the peer must not take what comes next for the rest of this frame
                raise
        self._send_frees()

    def _send_by_memory(self, head: Head, frame: Frame, memory: int, own: Tensor, descriptor: int) -> None:
        try:
            body = own[: head.body_bytes]
            for start, stop in head.gaps():
                body[start:stop].zero_()
            places = head.views(body)
            torch._foreach_copy_(list(places.values()), [frame.tensors[name].detach() for name in places])
            self._occupied.add(memory)
            self._write([ENVELOPE.pack(MEMORY, memory, descriptor >= 0) + head.raw], descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        self._write([wire.digest(head.raw, [wire.bytes_of(body)])])

    def _free_memory(self, num_bytes: int) -> tuple[int, Tensor, int] | None:
        """Return a memory that the peer does not read from: number, bytes, descriptor (-1 where the peer has it)."""
        if self._occupied:
            self._take_frees()
        free = [i for i in range(len(self._own)) if i not in self._occupied]
        for i in free:
            if (own := self._own[i]) is not None and len(own) >= num_bytes:
                return i, own, -1
        for i in sorted(free, key=lambda i: self._own[i] is None):  # rather make one larger than have another
            with contextlib.suppress(OSError):  # none left: the socket carries it
                made, descriptor = sealed.create(num_bytes)
                self._own[i] = made
                return i, made, descriptor
        return None

    def _take_frees(self) -> None:
        """Take in what the peer says of our memory, unless frames stand before it."""
        if not self._receiving.acquire(blocking=False):
            return  # whoever receives takes it in
        try:
            while self._message is None:
                begin = self._socket.recv(ENVELOPE.size, socket.MSG_PEEK | DONT_WAIT)
                if len(begin) < ENVELOPE.size or begin[0] != FREE:
                    return
                self._step(None)
        except OSError:
            return  # nothing there; or gone, which the writing will tell
        finally:
            self._receiving.release()

    def _write(self, buffers: Sequence[Bytes], descriptor: int = -1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))] if descriptor >= 0 else []
        left = [memoryview(b) for b in buffers if len(b)]
        try:
            while left:
                if not hasattr(self._socket, "sendmsg"):
                    self._socket.sendall(left.pop(0))
                    continue
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
        """Return the next frame. Its tensors may be views of memory that the sender uses again: they are valid until
        the next ``receive`` or ``release`` on this channel. Copy what is to be kept.

        Raises:
            TimeoutError: no whole frame came in time; nothing is lost, a later call goes on.
            ChannelClosed: the peer is gone, or this end was closed.
            WireError: what came is not a frame; the connection has ended, since nothing behind it can be understood.

        Any other exception, such as KeyboardInterrupt, ends the connection too.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._receiving:
            self.release()
            try:
                while (frame := self._step(deadline)) is None:
                    pass
            except (TimeoutError, ChannelClosed):
                raise
            except BaseException:
                self._break()  # bytes may have been taken from the socket that nobody counted
                raise
            return frame

    def release(self) -> None:
        """Say that the tensors of the last received frame are no longer needed; for the thread that receives."""
        if self._held is not None:
            self._to_free.append(self._held)
            self._held = None
        self._send_frees()

    def _send_frees(self) -> None:
        """Send what is to be said without ever waiting: a later send or receive tries again."""
        while self._to_free and self._sending.acquire(blocking=False):
            try:
                if self._to_free:  # still: another thread may have been faster
                    self._socket.send(ENVELOPE.pack(FREE, self._to_free[0], 0), DONT_WAIT)
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
        by_memory = kind == MEMORY and memory < len(self._own)
        if not (by_memory or kind == INLINE or (kind == FREE and memory in self._occupied)):
            raise WireError(f"expected a frame, but a message came that begins {bytes(envelope)!r}")
        if len(self._descriptors) != with_descriptor:
            raise WireError(f"{with_descriptor} descriptors were announced, {len(self._descriptors)} came")
        if kind == FREE:
            self._occupied.discard(memory)
            return None
        if kind == INLINE:
            return (yield from wire.incoming(self._limits))
        if with_descriptor:
            self._theirs[memory] = sealed.attach(self._descriptors.pop(), self._limits.body_bytes)
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
            if not DONT_WAIT:
                _wait(self._socket, deadline, "a whole frame")
            try:
                count = self._read_now(wanted)
            except BlockingIOError:
                _wait(self._socket, deadline, "a whole frame")
                continue
            except OSError as problem:
                raise ChannelClosed(f"the other end of the channel is gone: {problem}") from None
            if not count:
                where = "within a message" if self._message is not None else "after whole messages"
                raise ChannelClosed(f"the other end of the channel was closed, {where}")
            return count

    def _read_now(self, wanted: memoryview) -> int:
        if not self._has_memory:
            return self._socket.recv_into(wanted, 0, DONT_WAIT)
        flags = DONT_WAIT | socket.MSG_CMSG_CLOEXEC
        count, rights, _, _ = self._socket.recvmsg_into([wanted], CONTROL_BYTES, flags)
        for level, kind, data in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(array("i", data))
        if len(self._descriptors) > 1:
            raise WireError(f"{len(self._descriptors)} descriptors came, where one is the most")
        return count

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosed("this end of the channel was closed")


class Listener:
    """Waits for one peer, which learns ``address`` by other means, an environment variable for one.

    A Unix socket in a private folder, which only this user may enter; or, where there are none or every temporary
    folder's path is too long for one, loopback TCP with a one-time token, since there anybody on the machine may knock.
    """

    def __init__(self, limits: Limits = wire.LIMITS) -> None:
        self._limits, self._token = limits, ""
        folder = _private_folder() if hasattr(socket, "AF_UNIX") else None
        self._folder = folder
        if folder is None:
            self._socket = socket.create_server(("127.0.0.1", 0))
            self._token = secrets.token_hex(TOKEN_BYTES // 2)
            self.address = f"tcp:127.0.0.1:{self._socket.getsockname()[1]}:{self._token}"
        else:
            path = folder / "socket"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(path))
            self._socket.listen(1)
            self.address = f"unix:{path}"
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For ``select``: readable when a peer is there."""
        return self._socket.fileno()

    def accept(self, timeout_s: float | None = None) -> Channel:
        """Return the channel to the peer. Over TCP, whoever does not know the token is turned away.

        Raises:
            TimeoutError: nobody came in time; a later call goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            _wait(self._socket, deadline, "a peer")
            try:
                peer, _ = self._socket.accept()
            except BlockingIOError:  # gone again
                continue
            if not self._token or self._knows_token(peer):
                return Channel(peer, self._limits)
            peer.close()

    def _knows_token(self, peer: socket.socket) -> bool:
        came, deadline = b"", time.monotonic() + TOKEN_WAIT_S
        try:
            while len(came) < TOKEN_BYTES:
                _wait(peer, deadline, "a token")
                more = peer.recv(TOKEN_BYTES - len(came))
                if not more:
                    return False
                came += more
        except OSError:  # a timeout too
            return False
        return hmac.compare_digest(came, self._token.encode("ascii"))

    def close(self) -> None:
        """Stop listening and remove the folder. Channels stay open."""
        self._socket.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def connect(address: str, limits: Limits = wire.LIMITS) -> Channel:
    """Return the channel to a listener.

    Raises:
        ChannelClosed: nobody listens there.
        ConfigError: the address is none.
    """
    scheme, _, rest = address.partition(":")
    host, _, port_and_token = rest.partition(":")
    port, _, token = port_and_token.partition(":")
    if scheme == "unix" and rest and hasattr(socket, "AF_UNIX"):
        sock, where = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), rest
    elif scheme == "tcp" and host and token and port.isdecimal() and int(port) < 1 << 16:
        sock, where = socket.socket(socket.AF_INET, socket.SOCK_STREAM), f"{host}:{port}"
    else:
        raise ConfigError(f"expected an address unix:PATH or tcp:HOST:PORT:TOKEN, one came that begins {scheme[:40]!r}")
    try:
        sock.connect(rest if scheme == "unix" else (host, int(port)))
        sock.sendall(token.encode() if scheme == "tcp" else b"")
        return Channel(sock, limits)
    except OSError as problem:
        sock.close()
        raise ChannelClosed(f"nobody listens at {scheme}:{where}: {problem}") from None


def pair(limits: Limits = wire.LIMITS) -> tuple[Channel, Channel]:
    """Return both ends of a new channel, for threads of one process and for children that inherit one."""
    one, other = socket.socketpair()
    return Channel(one, limits), Channel(other, limits)


def _private_folder() -> Path | None:
    """Return a new folder that only this user may enter, short enough for a socket's path; None where there is none."""
    for parent in (None, "/tmp"):
        with contextlib.suppress(OSError):
            folder = Path(tempfile.mkdtemp(prefix="roundelay-", dir=parent))
            if len(os.fsencode(folder / "socket")) <= MAX_PATH:
                return folder
            folder.rmdir()
    return None


def _wait(sock: socket.socket, deadline: float | None, what: str) -> None:
    """Wait until there is something to read."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if hasattr(select, "poll"):  # select takes no descriptors from 1024 on
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        ready = bool(poll.poll(None if left is None else left * 1000))
    else:
        ready = bool(select.select([sock], [], [], left)[0])
    if not ready:
        raise TimeoutError(f"{what} did not come in time")

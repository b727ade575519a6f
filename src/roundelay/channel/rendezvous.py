"""Where two processes meet: a listener with an address, who connects to it, and both ends of a channel at once."""

import contextlib
import hmac
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path

from roundelay import wire
from roundelay.channel.connection import Channel, wait
from roundelay.errors import ChannelClosed, ConfigError
from roundelay.header import Limits

MAX_PATH = 100  # of a Unix socket, in bytes; systems allow 104 or 108
TOKEN_BYTES, TOKEN_WAIT_S = 32, 2.0


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
            wait(self._socket, deadline, "a peer")
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
                wait(peer, deadline, "a token")
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

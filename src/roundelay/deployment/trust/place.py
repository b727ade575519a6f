"""Where a server listens, what clients reach it under, and the folder in which it keeps who is who."""

import os
import socket
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from roundelay.deployment.greeting import COORDINATOR, Worker, is_loopback
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import checked_names
from roundelay.errors import IdentityError
from roundelay.files import save_atomically

SETTINGS, LAST_ADDRESS = "server.toml", "address"
"""In the folder: under which names and port the server is to be reached, if that was settled; where it was last."""

PORT = 8443
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Listening:
    """An address of this machine at which something is open."""

    host: str
    port: int

    @staticmethod
    def of(text: str) -> "Listening":
        """Read ``9464``, which only this machine itself can reach, or ``host:9464``.

        Raises:
            IdentityError: it is something else.
        """
        try:
            parts = urlsplit(f"//{text}" if ":" in text else f"//{LOOPBACK}:{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or port is None or parts.netloc.count("@") or parts.path or parts.query or parts.fragment:
            raise IdentityError(f"expected a port, as 9464, or an address with one, as 10.0.0.5:9464, got {text!r}")
        return Listening(host, port)


@dataclass(frozen=True, slots=True)
class Place:
    """``names`` are what clients reach the server under, the first in the join line; without any, those that the folder
    was made for, or what this machine is known by. The same goes for the port. With ``workers`` it does not listen: it
    dials them. ``metrics`` is where Prometheus asks, None: nowhere. Without TLS (``insecure``), whoever stands between
    sees and changes all; to this machine itself, TLS is not needed.
    """

    folder: Path
    host: str = "0.0.0.0"
    port: int | None = None
    names: Sequence[str] = ()
    insecure: bool = False
    workers: Sequence[Worker] = ()
    metrics: Listening | None = None

    @property
    def is_secured(self) -> bool:
        dials_out = not self.workers or any(not is_loopback(worker.host) for worker in self.workers)
        return dials_out and not self.insecure

    def known_as(self) -> list[str]:
        """Return the names that the server's certificate must have.

        Raises:
            IdentityError: the folder's settings cannot be read.
        """
        if self.workers:
            return [COORDINATOR]
        names = list(self.names) or settled(self.folder)[0]
        if names:
            return names
        if self.host in ("0.0.0.0", "::"):
            return list(dict.fromkeys([_outward(), socket.gethostname(), "localhost", "127.0.0.1"]))
        return list(dict.fromkeys([self.host, "localhost", "127.0.0.1"]))

    def listens_on(self) -> int:
        """Raises:
        IdentityError: the folder's settings cannot be read.
        """
        return settled(self.folder)[1] if self.port is None else self.port

    def make(self) -> None:
        """Make the folder, where it is not there yet.

        Raises:
            IdentityError: it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(f"{self.folder}: cannot keep there who is who ({error.strerror}); give another folder, "
                                "or make this one writable") from error  # fmt: skip

    def note(self, address: Address) -> None:
        """Remember where the server is, for whoever looks after it."""
        save_atomically(self.folder / LAST_ADDRESS, lambda file: file.write(f"{address}\n".encode()))


def settle(folder: Path, names: Sequence[str], port: int) -> None:
    """Write down under which names and port the server of this folder is to be reached."""
    text = f"names = [{', '.join(repr(name) for name in names)}]\nport = {port}\n"
    save_atomically(folder / SETTINGS, lambda file: file.write(text.encode()))


def settled(folder: Path) -> tuple[list[str], int]:
    """Return the names and the port that were settled, none and the usual one where they were not.

    Raises:
        IdentityError: the file says something else.
    """
    path = folder / SETTINGS
    if not os.path.lexists(path):
        return [], PORT
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        names, port = content.pop("names"), content.pop("port")
    except (OSError, ValueError, KeyError):
        raise _wrong(path) from None
    if content or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong(path)
    if type(port) is not int or not 0 <= port <= 65_535:
        raise _wrong(path)
    checked_names(names)
    return names, port


def last_address(folder: Path) -> Address | None:
    """Return where the server of this folder was last, None where it never was, or that cannot be read."""
    try:
        url = (folder / LAST_ADDRESS).read_text().strip()
        return Address.plain(url) if url.startswith("http://") else Address.of(url)
    except (OSError, ValueError):
        return None


def _wrong(path: Path) -> IdentityError:
    return IdentityError(f"{path}: expected names = ['fl.example.org'] and port = 8443, and nothing else; correct it")


def _outward() -> str:
    """Return the address with which this machine goes out; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:  # no way out
            return "127.0.0.1"
        return str(probe.getsockname()[0])

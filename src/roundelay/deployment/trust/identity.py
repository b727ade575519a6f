"""Who a device is: an Ed25519 key that is made on it and never leaves it; and files that nobody else may read.

Keys, digests and tokens are written as base64url without padding, in one spelling only: a text that decodes to the same
bytes but is written differently is refused, so that comparing texts is comparing bytes.
"""

import base64
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from roundelay.errors import IdentityError
from roundelay.files import save_atomically

PUBLIC_KEY_BYTES = 32
CLOCK_SKEW_S = 7 * 24 * 3600.0
"""How far a device's clock may be off, either way. It dates requests and certificates; freshness never rests on it."""

_MAX_SECRET_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVE = 1_000


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device's private key. It can sign, and it is not shown: not in a ``repr``, not in an error."""

    _private: Ed25519PrivateKey = field(repr=False)

    @staticmethod
    def new() -> "DeviceKey":
        return DeviceKey(Ed25519PrivateKey.generate())

    @staticmethod
    def load(path: Path) -> "DeviceKey":
        """Read the key that ``save`` wrote.

        Raises:
            IdentityError: the file is absent, is no such key, or others than its owner may read it.
        """
        pem = read_secret(path)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Not chained: what a parser says about a secret may quote it.
            raise IdentityError(f"{path}: expected a private key in PEM, without a password; {_RENEW_KEY}") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise IdentityError(f"{path}: expected an Ed25519 key, got {type(private).__name__}; {_RENEW_KEY}")
        return DeviceKey(private)

    @staticmethod
    def load_or_create(path: Path) -> "DeviceKey":
        """Return the device's key, made now if there is none. One process at a time: whoever keeps a lock calls this.

        Raises:
            IdentityError: there is a file, but not a key that may be used.
        """
        if not os.path.lexists(path):
            DeviceKey.new().save(path)
        return DeviceKey.load(path)

    def save(self, path: Path) -> None:
        """Write the key as PKCS #8 in PEM, for its owner's eyes only."""
        form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write_secret(path, self._private.private_bytes(serialization.Encoding.PEM, form, secret))

    @property
    def public(self) -> bytes:
        """32 bytes, which everybody may know."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message."""
        return self._private.sign(message)


class Counter:
    """Numbers that only go up, also after a crash: the file holds a bound that no number handed out has reached.

    The file is written once for 1,000 numbers; a restart skips what was reserved and not used. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist: the numbers then begin at 1.

        Raises:
            IdentityError: the file holds something else than a number.
        """
        self._path = path
        text = path.read_text(encoding="ascii", errors="replace") if path.exists() else "0"
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise IdentityError(f"{path}: expected a whole number; after deleting it, this device must join anew")
        self._last = self._reserved = int(text)

    def next(self) -> int:
        if self._last == self._reserved:
            reserved = str(self._reserved + _RESERVE).encode()
            save_atomically(self._path, lambda file: file.write(reserved))
            self._reserved += _RESERVE
        self._last += 1
        return self._last


def checked_name(name: str, what: str = "client") -> str:
    """Return ``name`` if it can be a client's or a run's: it stands in headers, in file names and in lines to be typed.

    Raises:
        IdentityError: it has other characters, begins with a dot or a dash, or is longer than 64.
    """
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"{what} {name!r}: expected up to 64 letters, digits, '.', '_' and '-', of which the first is a letter or "
            "a digit; give it such a name"
        )
    return name


def encode(raw: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def decode(text: str, num_bytes: int, what: str) -> bytes:
    """Return the bytes that ``encode`` wrote as ``text``.

    Raises:
        IdentityError: it is of another length or spelling; the message says which, and does not quote it.
    """
    expected = f"{what}: expected {num_bytes} bytes as base64url without padding"
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise IdentityError(f"{expected}, got other characters; was it copied whole, and nothing else with it?")
    length = -(-num_bytes * 4 // 3)
    if len(text) != length:
        raise IdentityError(f"{expected}, which is {length} characters, got {len(text)}; was it copied whole?")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(raw) != text:
        raise IdentityError(f"{expected}, got one that does not end as such a text ends; was it copied whole?")
    return raw


def write_secret(path: Path, content: bytes) -> None:
    """Put ``content`` in place in one step, in a file of mode 0600 from its first moment."""
    save_atomically(path, lambda file: file.write(content), mode=0o600)


def read_secret(path: Path, limit: int = _MAX_SECRET_BYTES) -> bytes:
    """Return what is in a file that only its owner may open.

    Raises:
        IdentityError: it is absent, is no plain file, is absurdly long, or others may read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would wait for a writer
    except OSError as error:
        raise IdentityError(f"{path}: cannot open it ({error.strerror}); expected a secret file there") from error
    try:
        status = os.fstat(descriptor)  # of the file that is open: a name may come to mean another
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path}: expected a plain file; it is something else")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise IdentityError(
                f"{path}: others than its owner may open this secret (mode {mode:04o}, expected 0600); run "
                f"`chmod 600 {path}`, and if others had access to this machine, make a new one"
            )
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(min(status.st_size, limit) + 1)  # so much is taken at once, whatever comes
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise IdentityError(f"{path}: expected a secret of up to {limit} bytes, it is longer")
    return content


_RENEW_KEY = "restore it from a copy, or delete it and join anew with a new token"

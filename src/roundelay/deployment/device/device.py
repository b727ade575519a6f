"""A device's folder: who it is, whom it trusts, and what must outlive its process.

=================  ===================================================================================================
``device.key``     the private key, made here
``sequence``       a bound above every number that a request was signed with
``authority.crt``  the authority of the one server that this device trusts; absent where nothing is encrypted
``joined.json``    which client this is, and where its server is
``models/``        the last models that were fetched, by SHA-256; beside them ``.part``, what came of one before a cut
``memory/RUN/``    what the client remembers, by the task that it learned it in
``answers/RUN/``   finished answers, from the moment that they are done until the server has said what became of them
=================  ===================================================================================================
"""

import fcntl
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from pydantic import ValidationError

from roundelay.deployment.device.shelves import Answers, Memories, Models, made
from roundelay.deployment.protocol import Message, Name
from roundelay.deployment.trust.certificates import AUTHORITY_PUBLIC, pin_of
from roundelay.deployment.trust.identity import Counter, DeviceKey, checked_name
from roundelay.deployment.trust.kits import DEVICE_KEY
from roundelay.errors import DeviceError, IdentityError
from roundelay.files import remove_unfinished, save_atomically

SEQUENCE, JOINED = "sequence", "joined.json"


class Membership(Message):
    """Which client this is, of which server. ``server`` is as it is typed; "" where the server comes to the device."""

    client: Name
    server: str


class Device:
    """May be used from one thread at a time; one process has it open."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it.

        Raises:
            DeviceError: another process has it open, it cannot be made, or a file in it is not what it should be.
        """
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock: int | None = _locked(folder)
        except OSError as error:
            raise DeviceError(f"{folder}: cannot keep a device's files there ({error.strerror}); give another folder, "
                              "or make this one writable") from error  # fmt: skip
        try:
            folder.chmod(0o700)  # one that was there already may be open to others
            remove_unfinished(folder)
            self.counter = Counter(folder / SEQUENCE)
            self.models = Models(made(folder / "models"))
            self.memories, self.answers = Memories(made(folder / "memory")), Answers(made(folder / "answers"))
            self.joined = self._membership()
        except OSError as error:
            self.close()
            raise DeviceError(f"{folder}: cannot be used as a device's folder ({error.strerror}): "
                              f"{error.filename}") from error  # fmt: skip
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. May be repeated."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- who it is --------------------------------------------------------------------------------------------------

    def key(self) -> DeviceKey:
        """Return the device's key, which is made when it is first asked for."""
        return DeviceKey.load_or_create(self.folder / DEVICE_KEY)

    def take_key(self, key: DeviceKey) -> None:
        """Use a key that came in a kit.

        Raises:
            DeviceError: the device has another one already.
        """
        path = self.folder / DEVICE_KEY
        if os.path.lexists(path):
            if DeviceKey.load(path).public != key.public:
                raise DeviceError(f"{path}: this device has a key already, and the kit brings another one; give "
                                  "another folder, or move the old key away if it was lost to somebody")  # fmt: skip
            return
        key.save(path)

    def join(self, client: str, server: str) -> None:
        """Note that this device is ``client`` of the server at ``server``."""
        joined = Membership(client=checked_name(client), server=server)
        text = joined.model_dump_json().encode() + b"\n"
        save_atomically(self.folder / JOINED, lambda file: file.write(text), mode=0o600)
        self.joined = joined

    def require(self, client: str | None, server: str) -> Membership | None:
        """Return who this device is, or None where it has not joined yet.

        A server that proves itself with the same authority may have moved to another address; one that proves nothing
        may not.

        Raises:
            DeviceError: it is another client, or of another server.
        """
        joined = self.joined
        if joined is None:
            return None
        if client is not None and client != joined.client:
            raise DeviceError(f"{self.folder}: belongs to client {joined.client!r}, not to {client!r}; give another "
                              "folder, one for each client")  # fmt: skip
        if joined.server != server:
            if self.authority is None:
                raise DeviceError(f"{self.folder}: belongs to the server {joined.server or 'that dials'}, not to "
                                  f"{server or 'one that dials'}; give another folder, one a server")  # fmt: skip
            self.join(joined.client, server)
        return self.joined

    # ---- whom it trusts ---------------------------------------------------------------------------------------------

    @property
    def authority(self) -> bytes | None:
        """The certificate, in PEM, of the authority that this device trusts."""
        path = self.folder / AUTHORITY_PUBLIC
        return path.read_bytes() if path.exists() else None

    @property
    def pin(self) -> str | None:
        """The pin of that authority."""
        pem = self.authority
        return None if pem is None else _pin_in(pem, str(self.folder / AUTHORITY_PUBLIC))

    def trust(self, pem: bytes) -> None:
        """Remember the one authority that this device trusts from now on.

        Raises:
            DeviceError: it trusts another one already.
            IdentityError: it is none.
        """
        came, known = _pin_in(pem, "the authority's certificate that came"), self.pin
        if known is None:
            save_atomically(self.folder / AUTHORITY_PUBLIC, lambda file: file.write(pem))
        elif known != came:
            raise DeviceError(
                f"{self.folder}: trusts the server with pin {known}, and this is one with pin {came}: another server, "
                "or somebody poses as yours. If your server has a new pin, give another folder, and join anew"
            )

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _membership(self) -> Membership | None:
        path = self.folder / JOINED
        if not path.exists():
            return None
        try:
            return Membership.model_validate_json(path.read_bytes())
        except ValidationError:
            raise DeviceError(f"{path}: does not say which client this is; after deleting it, join anew") from None


def _pin_in(pem: bytes, what: str) -> str:
    try:
        return pin_of(x509.load_pem_x509_certificate(pem))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise IdentityError(
            f"{what}: expected a certificate in PEM; take {AUTHORITY_PUBLIC} from the server's administrator again"
        ) from None


def _locked(folder: Path) -> int:
    """Return a descriptor that keeps other processes out until it is closed, which the end of a process does as well.

    Raises:
        DeviceError: somebody has it open.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DeviceError(
            f"{folder}: another process takes part from this folder; stop that one, or give another folder: each "
            "client needs its own"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock

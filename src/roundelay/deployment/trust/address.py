"""Where a server is, what is typed to join it, and what a failed connection to it means."""

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from roundelay.errors import IdentityError

DEFAULT_PORT, PLAIN_PORT = 443, 80

_EXPIRED, _NOT_YET, _UNTRUSTED, _HOST, _ADDRESS = 10, 9, {7, 18, 19, 20, 21}, 62, 64
"""What OpenSSL calls X509_V_ERR_*: the numbers are stable, its words are not."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: ``host`` is a name or an address without brackets. One that is not ``secured`` speaks plain
    HTTP, which only ``plain`` reads.
    """

    host: str
    port: int
    secured: bool = True

    @staticmethod
    def of(url: str) -> "Address":
        """Read ``https://host:port``; without a port it is 443.

        Raises:
            IdentityError: it is something else.
        """
        return _address(url, "https", "https://fl.example.org:8443")

    @staticmethod
    def plain(url: str) -> "Address":
        """Read ``http://host:port``, where nothing is encrypted and the server proves nothing.

        Raises:
            IdentityError: it is something else.
        """
        return _address(url, "http", "http://127.0.0.1:8080")

    @property
    def is_loopback(self) -> bool:
        """Whether what is said to it stays on this machine, without asking anybody what a name means."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        scheme = "https" if self.secured else "http"
        return f"{scheme}://[{self.host}]:{self.port}" if ":" in self.host else f"{scheme}://{self.host}:{self.port}"


def _address(url: str, scheme: str, example: str) -> Address:
    wrong = IdentityError(f"expected an address as {example}, got {url!r}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if port is None:
        port = DEFAULT_PORT if scheme == "https" else PLAIN_PORT
    rest = (parts.username, parts.password, parts.path.strip("/"), parts.query, parts.fragment)
    if parts.scheme != scheme or not host or not port or any(rest):
        raise wrong
    return Address(host, port, scheme == "https")


def join_line(address: Address, pin: str | None, token: str = "") -> str:
    """Return what an administrator types at a site. With a token it is a secret until it was used. A server without TLS
    has no pin.
    """
    shown = f" --token {token}" if token else ""
    return f"roundelay join {address}{shown} {'--insecure' if pin is None else f'--pin {pin}'}"


def explained(error: BaseException, address: Address) -> str:
    """Say what a failed connection means for whoever sits before it, and what to do.

    An HTTP library's own error is looked through, down to what the system or TLS had said.
    """
    while isinstance(error.__cause__, OSError):
        error = error.__cause__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{address}: {_unverified(error, address)}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if "PROTOCOL" in reason or ("VERSION" in reason and reason != "WRONG_VERSION_NUMBER"):
            return (
                f"{address}: server and client have no version of TLS in common (1.2 or newer is needed); if a proxy "
                "or firewall stands between, it must let TLS 1.2 pass"
            )
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
            return (
                f"{address}: what answers there does not speak TLS, but plain HTTP perhaps; check the port, and "
                "whether a proxy answers in the server's place"
            )
        return f"{address}: TLS failed ({reason.replace('_', ' ').lower() or 'no reason given'}); check host and port"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"{address}: no such host; check the spelling, and the DNS of this network"
    if isinstance(error, TimeoutError):
        return f"{address}: no answer in time; does this network's firewall let you out to port {address.port}?"
    if isinstance(error, ConnectionRefusedError):
        return f"{address}: nothing listens there; is the server running, and is the port right?"
    said = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return f"{address}: the connection failed ({said}); is it a roundelay server, and does it run?"


def _unverified(error: ssl.SSLCertVerificationError, address: Address) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return ("the server's certificate has run out, or this device's clock is ahead; check the clock with `date`; "
                "if it is right, the server's administrator must restart the server, which renews it")  # fmt: skip
    if code == _NOT_YET:
        return "the server's certificate is not valid yet: this device's clock is late; set it (`date` shows it)"
    if code in (_HOST, _ADDRESS):
        return (f"the server's certificate is not for {address.host!r}; use the name or address in the join line, or "
                "have the server's administrator add this one to the server's names")  # fmt: skip
    if code in _UNTRUSTED:
        return ("the server's certificate is not from the pinned authority: it is another server, or somebody stands "
                "between you and it; ask the server's administrator for the join line, and send nothing")  # fmt: skip
    return (f"the server's certificate is not acceptable (OpenSSL's reason {code}: {error.verify_message}); show this "
            "to the server's administrator")  # fmt: skip

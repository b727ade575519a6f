"""How a device that was told a pin comes to trust one server, and what to do when it cannot.

1. It fetches the authority's certificate over TLS that verifies nothing, and says nothing else there.
2. It compares the certificate's public key with the pin, and has the certificate prove that it was signed by that key.
3. It connects anew, trusting this one authority and nobody else, with the name checked. Only then may secrets be said.

A device that got the certificate in its kit starts at 3.
"""

import hmac
import http.client
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from roundelay.deployment.trust.certificates import pin_of
from roundelay.deployment.trust.identity import decode
from roundelay.errors import IdentityError

AUTHORITY_PATH = "/authority.crt"
"""Where a server offers its authority's certificate to everybody, in PEM. Needs no authentication: the pin is it."""

PIN_BYTES = 32
DEFAULT_PORT, PLAIN_PORT = 443, 80
_MAX_BYTES = 16 * 1024

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


def trusted_authority(address: Address, pin: str, timeout_s: float = 20.0) -> bytes:
    """Return the certificate, as PEM, of the authority that ``pin`` names, after a verified handshake with the server.

    Blocks. ``timeout_s`` holds for each step of talking to the server.

    Raises:
        IdentityError: the server is not the one that the pin names, or cannot be reached; the message says what to do.
    """
    expected = decode(pin, PIN_BYTES, "the pin")
    certificate = _parsed(_fetched(address, timeout_s), address)
    came = pin_of(certificate)
    if not hmac.compare_digest(decode(came, PIN_BYTES, "the pin"), expected):
        raise IdentityError(
            f"{address}: the pin is {pin}, this server has {came}: it is another server, or somebody stands between "
            "you and it. Compare the pin with the server's administrator on another way than this one; send nothing"
        )
    try:
        # Whoever has the public key can put it into a certificate of their own making; only its owner can sign it.
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(
            f"{address}: offers a certificate with the pinned key that this key has not signed: somebody stands "
            "between you and the server. Tell its administrator; send nothing"
        ) from None
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    check_server(address, pem, timeout_s)
    return pem


def client_context(authority_pem: bytes) -> ssl.SSLContext:
    """Return TLS 1.2 or newer that trusts this one authority, whatever the system trusts, and checks the server's name.

    Raises:
        IdentityError: it is not a certificate in PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority_pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise IdentityError("the authority's certificate: expected a certificate in PEM, got something else; take "
                            "authority.crt from the server's administrator again") from None  # fmt: skip
    return context


def check_server(address: Address, authority_pem: bytes, timeout_s: float = 20.0) -> None:
    """Shake hands with the server as ``client_context`` does, send nothing, and hang up.

    Raises:
        IdentityError: it failed; the message says what to do.
    """
    context = client_context(authority_pem)
    try:
        with (
            socket.create_connection((address.host, address.port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            pass
    except (OSError, UnicodeError) as error:
        raise IdentityError(explained(error, address)) from error


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


def _fetched(address: Address, timeout_s: float) -> bytes:
    """Ask for the authority's certificate. Nothing that comes back is believed, and nothing but this is asked."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    unverified.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=unverified)
    try:
        connection.request("GET", AUTHORITY_PATH, headers={"User-Agent": "roundelay"})
        answer = connection.getresponse()
        content = answer.read(_MAX_BYTES + 1)
    except (OSError, UnicodeError) as error:
        raise IdentityError(explained(error, address)) from error
    except http.client.HTTPException as error:
        raise IdentityError(
            f"{address}: what answers there does not speak HTTP ({type(error).__name__}); check host and port"
        ) from error
    finally:
        connection.close()
    if answer.status != http.client.OK or len(content) > _MAX_BYTES:
        raise IdentityError(
            f"{address}: offers no authority's certificate (status {answer.status}); is it a roundelay server, or does "
            "a proxy answer in its place?"
        )
    return content


def _parsed(pem: bytes, address: Address) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        pin_of(certificate)  # a key of an unknown kind shows itself here
        return certificate
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise IdentityError(
            f"{address}: what it offers as its authority's certificate is none; is it a roundelay server?"
        ) from error

"""How a device that was told a pin comes to trust one server.

1. It fetches the authority's certificate over TLS that verifies nothing, and says nothing else there.
2. It compares the certificate's public key with the pin, and has the certificate prove that it was signed by that key.
3. It connects anew, trusting this one authority and nobody else, with the name checked. Only then may secrets be said.

A device that got the certificate in its kit starts at 3.
"""

import hmac
import http.client
import socket
import ssl

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from roundelay.deployment.trust.address import Address, explained
from roundelay.deployment.trust.certificates import pin_of
from roundelay.deployment.trust.identity import decode
from roundelay.deployment.trust.questions import ask, believing_anything
from roundelay.errors import IdentityError

AUTHORITY_PATH = "/authority.crt"
"""Where a server offers its authority's certificate to everybody, in PEM. Needs no authentication: the pin is it."""

PIN_BYTES = 32
_MAX_BYTES = 16 * 1024


def trusted_authority(address: Address, pin: str, timeout_s: float = 20.0) -> bytes:
    """Return the certificate, as PEM, of the authority that ``pin`` names, after a verified handshake with the server.

    Blocks. ``timeout_s`` holds for each step of talking to the server.

    Raises:
        IdentityError: the server is not the one that the pin names, or cannot be reached; the message says what to do.
    """
    expected = decode(pin, PIN_BYTES, "the pin")
    said = ask(address, AUTHORITY_PATH, believing_anything(), timeout_s=timeout_s,
               max_bytes=_MAX_BYTES + 1)  # fmt: skip
    if said.status != http.client.OK or len(said.body) > _MAX_BYTES:
        raise IdentityError(
            f"{address}: offers no authority's certificate (status {said.status}); is it a roundelay server, or does "
            "a proxy answer in its place?"
        )
    certificate = _parsed(said.body, address)
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


def _parsed(pem: bytes, address: Address) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        pin_of(certificate)  # a key of an unknown kind shows itself here
        return certificate
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise IdentityError(
            f"{address}: what it offers as its authority's certificate is none; is it a roundelay server?"
        ) from error

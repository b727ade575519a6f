"""The server's certificates: a small authority that is made once, and certificates for the names it is served under.

What devices pin is the authority's public key. So the server's own certificate may change with its names and with the
years, and no device hears of it.
"""

import hashlib
import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from roundelay.deployment.trust.identity import CLOCK_SKEW_S, encode, read_secret, write_secret
from roundelay.errors import IdentityError
from roundelay.files import save_atomically

AUTHORITY_SECRET, AUTHORITY_PUBLIC, SERVER_SECRET = "authority.key", "authority.crt", "server.key"
"""In the server's folder. Each secret is one PEM file with the key and what belongs to it, so that they never part."""

AUTHORITY_DAYS = 20 * 365
SERVER_DAYS = 365
RENEW_DAYS = 90
"""A server's certificate with fewer days left is replaced when it is next asked for."""

_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
_SERVES = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Authority:
    """The key that signs server certificates, and its own certificate."""

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @staticmethod
    def new(now_s: float, days: float = AUTHORITY_DAYS, name: str = "roundelay authority") -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        called = _called(name)
        certificate = (
            _begun(called, called, key.public_key(), now_s, _time(now_s) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return Authority(certificate, key)

    @staticmethod
    def open(folder: Path, now_s: float) -> "Authority":
        """Return the authority of a server's folder, made now if the folder has none.

        Raises:
            IdentityError: it is unreadable, open to others, or has run out.
        """
        path = folder / AUTHORITY_SECRET
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            Authority.new(now_s)._save(folder)
        key, (certificate, *_) = _parts(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise IdentityError(f"{path}: the key and the certificate do not belong together; {_RESTORE}")
        authority = Authority(certificate, key)
        if _time(now_s) >= certificate.not_valid_after_utc:
            raise IdentityError(
                f"{path}: this authority ran out on {certificate.not_valid_after_utc:%Y-%m-%d}; move the file away, "
                "start again, and hand the new join lines to all sites"
            )
        if not (folder / AUTHORITY_PUBLIC).exists():
            save_atomically(folder / AUTHORITY_PUBLIC, lambda file: file.write(authority.pem))
        return authority

    @property
    def pem(self) -> bytes:
        """The certificate, which everybody may have."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pin(self) -> str:
        return pin_of(self.certificate)

    def issue(self, names: Sequence[str], now_s: float, days: float = SERVER_DAYS) -> bytes:
        """Return a new key and its certificate for ``names`` as PEM: a secret. It ends with the authority, at most.

        Raises:
            IdentityError: a name is neither a host name nor an address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(_time(now_s) + timedelta(days=days), self.certificate.not_valid_after_utc)
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _begun(_called("roundelay server"), self.certificate.subject, key.public_key(), now_s, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SERVES, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        return _pem(key) + certificate.public_bytes(serialization.Encoding.PEM)

    def _save(self, folder: Path) -> None:
        write_secret(folder / AUTHORITY_SECRET, _pem(self._key) + self.pem)
        save_atomically(folder / AUTHORITY_PUBLIC, lambda file: file.write(self.pem))


def server_certificate(folder: Path, names: Sequence[str], now_s: float) -> Path:
    """Return the file with the server's key and certificate for ``names``; ``folder`` keeps it, and its authority.

    They are made anew when there are none, when ``names`` changed, or when they near their end. The authority stays,
    and so does the pin. A server that runs for months asks once a day, and loads the file into the context that it has.

    Raises:
        IdentityError: a file is unreadable or open to others, a name cannot be, or the authority has run out.
    """
    authority = Authority.open(folder, now_s)
    path = folder / SERVER_SECRET
    if not path.exists() or _is_stale(path, authority, names, now_s):
        write_secret(path, authority.issue(names, now_s))
    return path


def server_context(folder: Path, names: Sequence[str], now_s: float) -> ssl.SSLContext:
    """Return what a server under ``names`` speaks TLS with, TLS 1.2 or newer, with ``server_certificate``.

    Raises:
        IdentityError: as there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(server_certificate(folder, names, now_s))
    return context


def pin_of(certificate: x509.Certificate) -> str:
    """Return SHA-256 of the certificate's SubjectPublicKeyInfo, as base64url without padding: 43 characters."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return encode(hashlib.sha256(certificate.public_key().public_bytes(serialization.Encoding.DER, form)).digest())


def checked_names(names: Sequence[str]) -> list[str]:
    """Return host names and addresses in one spelling, sorted, without repeats.

    Raises:
        IdentityError: there is none, or one is neither a host name nor an address.
    """
    if isinstance(names, str) or not names:
        raise IdentityError(f"expected a list of the names and addresses that clients reach the server under, "
                            f"got {names!r}; give at least one")  # fmt: skip
    return sorted({_checked_host(name) for name in names})


def _checked_host(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        host = name.lower().removesuffix(".")
    if not _HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise IdentityError(f"{name!r} is neither a host name nor an address; expected for example 'fl.example.org', "
                            "'192.0.2.7' or '2001:db8::7', without a scheme and without a port")  # fmt: skip
    return host


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in checked_names(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _is_stale(path: Path, authority: Authority, names: Sequence[str], now_s: float) -> bool:
    _, (certificate, *_) = _parts(path)
    try:
        certificate.verify_directly_issued_by(authority.certificate)
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return True
    left = certificate.not_valid_after_utc - _time(now_s)
    return list(has) != _general_names(names) or left < timedelta(days=RENEW_DAYS)


def _parts(path: Path) -> tuple[object, list[x509.Certificate]]:
    pem = read_secret(path)
    try:
        return serialization.load_pem_private_key(pem, password=None), x509.load_pem_x509_certificates(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not chained: what a parser says about a secret may quote it.
        raise IdentityError(f"{path}: expected a private key and its certificate in PEM; {_RESTORE}") from None


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now_s: float, end: datetime
) -> x509.CertificateBuilder:
    """Begin a certificate. It is dated back, since a device whose clock is late would call it not valid yet."""
    start = _time(now_s - CLOCK_SKEW_S)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, secret)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


_RESTORE = "restore it from a copy"

"""Looking for secrets where they must not be: as bytes, in base64 of either alphabet, and in hexadecimal digits."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def forms(secret: bytes) -> dict[str, bytes]:
    """Return how a secret may be written. Of base64, what does not depend on what stands before and after it."""
    found = {"bytes": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode(),
             "repr": repr(secret)[2:-1].encode()}  # fmt: skip
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + secret).rstrip(b"=")
        inner = whole[-(-8 * shift // 6) : len(whole) - (1 if (shift + len(secret)) % 3 else 0)]
        found[f"base64, {shift}"] = inner
        found[f"base64url, {shift}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return found


def found(secrets: Mapping[str, bytes], written: Mapping[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """Yield which secret stands in which form in which of the texts."""
    for name, secret in secrets.items():
        assert len(secret) >= 12, f"{name} is too short to be told from chance"
        for form, text in forms(secret).items():
            for place, content in written.items():
                if text in content:
                    yield name, form, place


def files(folder: Path) -> dict[str, bytes]:
    """Return all that is in a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def of_key(pem: bytes) -> bytes:
    """Return the secret number of the private key in a PEM file."""
    key = serialization.load_pem_private_key(pem, password=None)
    if isinstance(key, EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(32, "big")
    return key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )  # fmt: skip

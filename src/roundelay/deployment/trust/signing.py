"""Signed requests: HTTP Message Signatures (RFC 9421) with Ed25519, in one form, over everything that a request means.

A signature covers the method, the path, the query, the digest of the body (RFC 9530), the run, the round and a sequence
number that only goes up, and names the client. A captured request is useless: its number was used, and its run, round
and body are not those of another. Freshness never rests on a clock: ``created`` may be a week off.

What is not covered means nothing: a server must not let any other header field change what a request does.

Nothing is parsed that could be written in two ways. The verifier writes down the one ``Signature-Input`` that would be
right, and compares.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from roundelay.deployment.trust.identity import CLOCK_SKEW_S, DeviceKey, checked_name
from roundelay.errors import IdentityError, RoundelayError

Headers = Iterable[tuple[str, str]]
"""Fields in the order in which they came, repeated ones repeated. A mapping would hide the second of two."""

DIGEST, INPUT, SIGNATURE = "Content-Digest", "Signature-Input", "Signature"
RUN, ROUND, SEQUENCE = "Roundelay-Run", "Roundelay-Round", "Roundelay-Sequence"
FIELDS = (DIGEST, RUN, ROUND, SEQUENCE, INPUT, SIGNATURE)
COVERED = ("@method", "@path", "@query", DIGEST.lower(), RUN.lower(), ROUND.lower(), SEQUENCE.lower())
LABEL = "sig"

MAX_SEQUENCE = 10**15 - 1
"""The largest integer of a structured field (RFC 8941, 3.3.1)."""

EMPTY_DIGEST = hashlib.sha256().digest()
"""The digest of no body."""

_METHOD = re.compile(r"[A-Z]{1,16}")
_PATH = re.compile(r"/[!-\"$->@-~]{0,4095}")  # printable ASCII but for '#', '?' and blanks: as it is sent
_QUERY = re.compile(r"[!-\"$-~]{0,4095}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
_INPUT = re.compile(
    r".{1,400};created=(?P<created>0|[1-9][0-9]{0,14});keyid=\"(?P<client>[A-Za-z0-9._-]{1,64})\";.{1,40}"
)
_SIGNED = re.compile(rf"{LABEL}=:(?P<value>[A-Za-z0-9+/]{{86}}==):")


class Reason(Enum):
    """Why a request was refused."""

    MISSING = "missing field"
    DUPLICATED = "duplicated field"
    MALFORMED = "malformed field"
    OTHER_FORM = "another form of signature"
    OTHER_CLIENT = "another client"
    OTHER_RUN = "another run"
    OTHER_ROUND = "another round"
    OTHER_BODY = "another body"
    REPLAYED = "used sequence number"
    BAD_CLOCK = "clock too far off"
    BAD_SIGNATURE = "wrong signature"


class Refused(RoundelayError):
    """A request is not from whom it says, or was already made. ``reason`` is for programs, the message for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """What a signature is about. The client fills it with what it asks, the server with what it knows and what came.

    ``path`` and ``query`` (without its question mark) are as they are sent, escapes and all. ``digest`` is SHA-256 of
    the body, 32 bytes, hashed while it is read or written. ``round`` is 0 where no round is meant.
    """

    method: str
    path: str
    run: str
    round: int = 0
    query: str = ""
    digest: bytes = EMPTY_DIGEST


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of itself, checked for its form only: nobody has proved anything yet."""

    client: str
    run: str
    round: int
    sequence: int
    created: int
    digest: bytes


def sign(request: Request, client: str, key: DeviceKey, sequence: int, now_s: float) -> list[tuple[str, str]]:
    """Return the header fields to send with ``request``. ``sequence`` must be above all that this client has used.

    Raises:
        IdentityError: a part cannot be sent in a header field or in a request line.
    """
    checked_name(client)
    checked_name(request.run, "run")
    if wrong := _unsendable(request):
        raise IdentityError(f"cannot sign this request: {wrong}")
    if not 0 < sequence <= MAX_SEQUENCE:
        raise IdentityError(f"sequence: expected a number from 1 to {MAX_SEQUENCE}, got {sequence}")
    parameters = _parameters(int(now_s), client)
    signature = base64.b64encode(key.sign(_base(request, sequence, parameters))).decode()
    return [
        (DIGEST, _digest_field(request.digest)),
        (RUN, request.run),
        (ROUND, str(request.round)),
        (SEQUENCE, str(sequence)),
        (INPUT, f"{LABEL}={parameters}"),
        (SIGNATURE, f"{LABEL}=:{signature}:"),
    ]


def claimed(headers: Headers) -> Claim:
    """Return what a request says of itself, so that the server finds the key and the round to hold it against.

    Raises:
        Refused: a field is missing, there twice, or not in its one form.
    """
    fields = _fields(headers)
    found = _INPUT.fullmatch(fields[INPUT])
    if not found:
        raise Refused(Reason.OTHER_FORM, f"{INPUT} must be in the form that this version of roundelay writes")
    for name in (ROUND, SEQUENCE):
        if not _NUMBER.fullmatch(fields[name]):
            raise Refused(Reason.MALFORMED, f"{name} must be a whole number of up to 15 digits")
    try:
        checked_name(fields[RUN], "run")
        client = checked_name(found["client"])
    except IdentityError:
        raise Refused(Reason.MALFORMED, f"{RUN} and the keyid must be names of up to 64 characters") from None
    return Claim(
        client, fields[RUN], int(fields[ROUND]), int(fields[SEQUENCE]), int(found["created"]),
        _digest_of(fields[DIGEST]),
    )  # fmt: skip


def verify(
    request: Request, headers: Headers, public_key: bytes, *, client: str, last_sequence: int, now_s: float
) -> int:
    """Return the sequence number of a request that ``client``, whose key is ``public_key``, made now and for this.

    ``request`` is what the server itself knows: method, path and query of the request line, the run that it serves, the
    round that the request is for, the digest of the body that it read. ``last_sequence`` is the highest number that it
    took from this client with this key, also before a restart; store what is returned (``Clients.advance`` of the
    journal) before acting on the request.

    To turn a stranger away before reading a long body, verify with the digest that ``claimed`` gives, then call
    ``check_body`` when the body was read.

    Raises:
        Refused: and nothing else, whatever came.
    """
    fields = list(headers)
    claim = claimed(fields)
    who = f"client {client!r}"
    if wrong := _unsendable(request):
        raise Refused(Reason.MALFORMED, f"{who}: {wrong}")
    if claim.client != client:
        raise Refused(Reason.OTHER_CLIENT, f"{who}: the request says that it is from {claim.client!r}")
    parameters = _parameters(claim.created, client)
    by_name = _fields(fields)
    if by_name[INPUT] != f"{LABEL}={parameters}":
        raise Refused(Reason.OTHER_FORM, f"{who}: {INPUT} must be {LABEL}={parameters}; which version does it run?")
    said = replace(request, run=claim.run, round=claim.round, digest=claim.digest)
    _check_signature(who, by_name[SIGNATURE], public_key, _base(said, claim.sequence, parameters))
    # Only now is it the client that speaks. What follows is said to the client, and tells a stranger nothing.
    if claim.run != request.run:
        raise Refused(Reason.OTHER_RUN, f"{who}: the request is for run {claim.run!r}, this is {request.run!r}")
    if claim.round != request.round:
        raise Refused(Reason.OTHER_ROUND, f"{who}: the request is for round {claim.round}, expected {request.round}")
    check_body(claim, request.digest)
    if claim.sequence <= last_sequence:
        raise Refused(
            Reason.REPLAYED,
            f"{who}: sequence number {claim.sequence} is not above {last_sequence}, the last one taken; sign it anew",
        )
    if not math.fabs(claim.created - now_s) <= CLOCK_SKEW_S:
        raise Refused(
            Reason.BAD_CLOCK,
            f"{who}: its clock is {abs(claim.created - now_s) / 86_400:.0f} days off, up to "
            f"{CLOCK_SKEW_S / 86_400:.0f} are accepted; set the clock of the device (or that of the server)",
        )
    return claim.sequence


def check_body(claim: Claim, digest: bytes) -> None:
    """Hold the digest of the body that was read against the one that was signed.

    Raises:
        Refused: they differ.
    """
    if claim.digest != digest:
        raise Refused(Reason.OTHER_BODY, f"client {claim.client!r}: the body is not the one that {DIGEST} names")


def signature_base(components: Sequence[tuple[str, str]], parameters: str) -> bytes:
    """Return what is signed (RFC 9421, 2.5). No value may hold a line break: the caller has seen to it."""
    lines = [f'"{name}": {value}' for name, value in (*components, ("@signature-params", parameters))]
    return "\n".join(lines).encode("ascii")


def _base(request: Request, sequence: int, parameters: str) -> bytes:
    values = (
        request.method, request.path, f"?{request.query}", _digest_field(request.digest),
        request.run, str(request.round), str(sequence),
    )  # fmt: skip
    return signature_base(list(zip(COVERED, values, strict=True)), parameters)


def _parameters(created: int, client: str) -> str:
    covered = " ".join(f'"{name}"' for name in COVERED)
    return f'({covered});created={created};keyid="{client}";alg="ed25519";tag="roundelay"'


def _fields(headers: Headers) -> dict[str, str]:
    """Return our fields, each of which must be there once. Others are left alone: proxies add them."""
    names = {name.lower(): name for name in FIELDS}
    found: dict[str, str] = {}
    for name, value in headers:
        own = names.get(name.lower())
        if own in found:
            raise Refused(Reason.DUPLICATED, f"{own} is there twice")
        if own:
            found[own] = value
    for name in FIELDS:
        if name not in found:
            raise Refused(Reason.MISSING, f"{name} is missing; requests must be signed: has this device joined?")
    return found


def _digest_field(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _digest_of(field: str) -> bytes:
    """Return the bytes of a Content-Digest in the one spelling that ``_digest_field`` gives them."""
    if re.fullmatch(r"sha-256=:[A-Za-z0-9+/]{43}=:", field):
        digest = base64.b64decode(field[len("sha-256=:") : -1])
        if _digest_field(digest) == field:
            return digest
    raise Refused(Reason.MALFORMED, f"{DIGEST} must be sha-256=:...:, of 32 bytes and with nothing beside it")


def _check_signature(who: str, field: str, public_key: bytes, base: bytes) -> None:
    found = _SIGNED.fullmatch(field)
    raw = base64.b64decode(found["value"]) if found else b""
    if not found or base64.b64encode(raw).decode() != found["value"]:
        raise Refused(Reason.MALFORMED, f"{who}: {SIGNATURE} must be {LABEL}=:...:, of 64 bytes")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(raw, base)
    except InvalidSignature:
        raise Refused(
            Reason.BAD_SIGNATURE, f"{who}: the signature does not fit the request and the key that is enrolled"
        ) from None


def _unsendable(request: Request) -> str:
    """Say what of a request cannot stand in a request line; a line break would forge a line of what is signed."""
    if not _METHOD.fullmatch(request.method):
        return "the method must be capital letters"
    if not _PATH.fullmatch(request.path):
        return "the path must begin with / and be escaped: printable ASCII without blanks, '?' and '#'"
    if not _QUERY.fullmatch(request.query):
        return "the query must be escaped, printable ASCII without blanks and '#', and have at most 4,095 characters"
    if not 0 <= request.round <= MAX_SEQUENCE:
        return f"the round must be a number from 0 to {MAX_SEQUENCE}"
    if len(request.digest) != len(EMPTY_DIGEST):
        return "the digest must be SHA-256, 32 bytes"
    return ""

"""Signed requests, held against the RFC's own example and against another implementation of it."""

import base64
import hashlib
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageVerifier,
    HTTPSignatureComponentResolver,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    algorithms,
)

from roundelay.deployment.trust.identity import DeviceKey
from roundelay.deployment.trust.signing import (
    MAX_SEQUENCE,
    Claim,
    Reason,
    Refused,
    Request,
    check_body,
    claimed,
    sign,
    signature_base,
    verify,
)
from roundelay.errors import IdentityError

NOW_S = 1_800_000_000.0
BODY = b'{"hello": "world"}'
REQUEST = Request("POST", "/v1/tasks/17/update", "run-1", 3, "part=2&of=5", hashlib.sha256(BODY).digest())
DAY_S = 86_400.0


def seeded(seed: bytes) -> DeviceKey:
    return DeviceKey(Ed25519PrivateKey.from_private_bytes(seed))


KEY = seeded(bytes(range(32)))


def test_the_example_of_rfc_9421_b_2_6() -> None:
    """Key of B.1.4, request of B.2; Ed25519 signs the same message always in the same way."""
    key = seeded(base64.urlsafe_b64decode("n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU="))
    assert base64.urlsafe_b64encode(key.public) == b"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs="
    components = [
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"), ("@method", "POST"), ("@path", "/foo"),
        ("@authority", "example.com"), ("content-type", "application/json"), ("content-length", "18"),
    ]  # fmt: skip
    names = " ".join(f'"{name}"' for name, _ in components)
    base = signature_base(components, f'({names});created=1618884473;keyid="test-key-ed25519"')
    assert base64.b64encode(key.sign(base)) == (
        b"wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    )


def test_what_is_sent_to_the_letter() -> None:
    """The form is the protocol: a change of it is another protocol."""
    fields = dict(sign(REQUEST, "north", KEY, 42, NOW_S + 0.9))
    signature = fields.pop("Signature")
    assert fields == {
        "Content-Digest": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
        "Roundelay-Run": "run-1",
        "Roundelay-Round": "3",
        "Roundelay-Sequence": "42",
        "Signature-Input": 'sig=("@method" "@path" "@query" "content-digest" "roundelay-run" "roundelay-round" '
        '"roundelay-sequence");created=1800000000;keyid="north";alg="ed25519";tag="roundelay"',
    }
    base = (
        '"@method": POST\n"@path": /v1/tasks/17/update\n"@query": ?part=2&of=5\n'
        '"content-digest": sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:\n"roundelay-run": run-1\n'
        '"roundelay-round": 3\n"roundelay-sequence": 42\n"@signature-params": '
        + fields["Signature-Input"].removeprefix("sig=")
    )
    raw = base64.b64decode(signature.removeprefix("sig=:").removesuffix(":"))
    Ed25519PublicKey.from_public_bytes(KEY.public).verify(raw, base.encode())


@pytest.mark.parametrize("request_", [REQUEST, Request("GET", "/", "r"), Request("GET", "/a/%20b", "r", query="x=%26")])
def test_another_implementation_verifies_what_is_signed(request_: Request) -> None:
    class Keys(HTTPSignatureKeyResolver):
        def resolve_public_key(self, key_id: str) -> Ed25519PublicKey:
            assert key_id == "north"
            return Ed25519PublicKey.from_public_bytes(KEY.public)

    @dataclass
    class Message:
        method: str
        url: str
        headers: dict[str, str]

    class Verifier(HTTPMessageVerifier):
        def validate_created_and_expires(self, *args: object, **kwargs: object) -> None:
            """Its clock is the machine's; the tests' is not."""

    verifier = Verifier(
        signature_algorithm=algorithms.ED25519,
        key_resolver=Keys(),
        component_resolver_class=HTTPSignatureComponentResolver,
    )
    url = f"https://fl.example.org{request_.path}" + (f"?{request_.query}" if request_.query else "")
    message = Message(request_.method, url, dict(sign(request_, "north", KEY, 42, NOW_S)))
    (result,) = verifier.verify(message, expect_tag="roundelay")
    assert set(result.covered_components) >= {'"@method"', '"@path"', '"@query"', '"roundelay-sequence"'}
    message.headers["Roundelay-Sequence"] = "43"
    with pytest.raises(InvalidSignature):
        verifier.verify(message, expect_tag="roundelay")


def test_an_honest_request_is_taken_and_its_number_returned() -> None:
    fields = sign(REQUEST, "north", KEY, 42, NOW_S)
    known = {"client": "north", "last_sequence": 41, "now_s": NOW_S}
    assert verify(REQUEST, fields, KEY.public, **known) == 42
    shouted = [(name.upper(), value) for name, value in reversed(fields)]
    proxied = [("Via", "1.1 proxy"), *shouted, ("X-Forwarded-For", "192.0.2.7"), ("Via", "again")]
    assert verify(REQUEST, iter(proxied), KEY.public, **known) == 42
    nothing = Request("GET", "/v1/task", "run-1")
    assert verify(nothing, sign(nothing, "north", KEY, MAX_SEQUENCE, NOW_S), KEY.public, **known) == MAX_SEQUENCE


def test_a_body_may_be_held_against_its_digest_when_it_was_read() -> None:
    fields = sign(REQUEST, "north", KEY, 42, NOW_S)
    claim = claimed(fields)
    assert claim == Claim("north", "run-1", 3, 42, int(NOW_S), REQUEST.digest)
    early = replace(REQUEST, digest=claim.digest)
    assert verify(early, fields, KEY.public, client="north", last_sequence=0, now_s=NOW_S) == 42
    check_body(claim, hashlib.sha256(BODY).digest())
    with pytest.raises(Refused) as caught:
        check_body(claim, hashlib.sha256(BODY + b" ").digest())
    assert caught.value.reason is Reason.OTHER_BODY


@pytest.mark.parametrize("days", [-7, -1, 1, 7])
def test_a_clock_may_be_days_off(days: int) -> None:
    fields = sign(REQUEST, "north", KEY, 42, NOW_S + days * DAY_S)
    assert verify(REQUEST, fields, KEY.public, client="north", last_sequence=0, now_s=NOW_S) == 42
    fields = sign(REQUEST, "north", KEY, 42, NOW_S + days * DAY_S * 8)
    with pytest.raises(Refused, match=f"{8 * abs(days)} days off, up to 7 are accepted; set the clock"):
        verify(REQUEST, fields, KEY.public, client="north", last_sequence=0, now_s=NOW_S)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "post"}, {"method": "GE T"}, {"method": ""}, {"path": "v1"}, {"path": "/a?b"}, {"path": "/a b"},
        {"path": "/a\nb"}, {"path": "/é"}, {"path": "/#"}, {"query": "a#"}, {"query": "a\r\n"}, {"query": "a b"},
        {"run": "a b"}, {"run": ""}, {"run": "a\n"}, {"round": -1}, {"digest": b"short"},
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_not_signed(wrong: dict[str, object]) -> None:
    with pytest.raises(IdentityError):
        sign(replace(REQUEST, **wrong), "north", KEY, 42, NOW_S)


@pytest.mark.parametrize("sequence", [0, -1, MAX_SEQUENCE + 1])
def test_numbers_that_no_field_holds_are_not_signed(sequence: int) -> None:
    with pytest.raises(IdentityError, match="sequence"):
        sign(REQUEST, "north", KEY, sequence, NOW_S)
    with pytest.raises(IdentityError, match="client"):
        sign(REQUEST, 'no"rth', KEY, 1, NOW_S)

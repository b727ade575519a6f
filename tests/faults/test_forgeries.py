"""Requests that were changed, captured or made up are refused, and a verifier with a hole is found by these checks."""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay.deployment.trust import signing as ours
from roundelay.deployment.trust.identity import Counter, DeviceKey

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0
BODY = b"an update"
KEY, OTHER_KEY = (DeviceKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2))
SEQUENCE = 42
Fields = list[tuple[str, str]]


def asked(signing: ModuleType, **changes: object) -> Any:
    request = signing.Request("POST", "/v1/update", "run-1", 3, "part=2", hashlib.sha256(BODY).digest())
    return replace(request, **changes)


def signed(signing: ModuleType, sequence: int = SEQUENCE, **changes: object) -> Fields:
    return signing.sign(asked(signing, **changes), "north", KEY, sequence, NOW_S)


def refused(signing: ModuleType, request: Any, fields: Fields, reason: str = "", **known: Any) -> None:
    """The contract: ``Refused``, nothing else, for that reason if one is given."""
    expected = {"client": "north", "last_sequence": SEQUENCE - 1, "now_s": NOW_S, **known}
    key = expected.pop("key", KEY)
    try:
        signing.verify(request, fields, key.public, **expected)
    except signing.Refused as refusal:
        found = refusal.reason.name
    else:
        raise AssertionError("it was taken")
    assert not reason or found == reason


def honest(signing: ModuleType) -> None:
    known = {"client": "north", "last_sequence": SEQUENCE - 1, "now_s": NOW_S}
    assert signing.verify(asked(signing), signed(signing), KEY.public, **known) == SEQUENCE


# ---- changed on the way ---------------------------------------------------------------------------------------------


def edits(text: str) -> Iterator[str]:
    """Every change of one byte to every other one, every loss of one, and some that are put in."""
    for at, was in enumerate(text):
        head, tail = text[:at], text[at + 1 :]
        yield from (head + chr(byte) + tail for byte in range(256) if chr(byte) != was)
        yield head + tail
        yield from (head + more + was + tail for more in '0 a=,;"\n')
    yield from (text + more for more in ("0", " ", "\n", ",", ";a", "A", "="))


def check_fields(signing: ModuleType) -> None:
    fields = signed(signing)
    for at, (name, value) in enumerate(fields):
        for changed in edits(value):
            refused(signing, asked(signing), [*fields[:at], (name, changed), *fields[at + 1 :]])


def check_request_line(signing: ModuleType) -> None:
    fields = signed(signing)
    for part in ("method", "path", "query"):
        for changed in edits(getattr(asked(signing), part)):
            refused(signing, asked(signing, **{part: changed}), fields)
    refused(signing, asked(signing, query=""), fields, "BAD_SIGNATURE")


def check_body(signing: ModuleType) -> None:
    for body in (b"", BODY + b"\0", BODY[:-1], BODY.upper()):
        refused(signing, asked(signing, digest=hashlib.sha256(body).digest()), signed(signing), "OTHER_BODY")
    swapped = [field for field in signed(signing, digest=signing.EMPTY_DIGEST) if field[0] == signing.DIGEST]
    fields = swapped + [field for field in signed(signing) if field[0] != signing.DIGEST]
    refused(signing, asked(signing, digest=signing.EMPTY_DIGEST), fields, "BAD_SIGNATURE")


def check_presence(signing: ModuleType) -> None:
    fields, later = signed(signing), signed(signing, SEQUENCE + 1)
    for at, field in enumerate(fields):
        refused(signing, asked(signing), fields[:at] + fields[at + 1 :], "MISSING")
        for second in (field, later[at], (field[0].upper(), field[1]), (field[0], "")):
            refused(signing, asked(signing), [*fields, second], "DUPLICATED")
            refused(signing, asked(signing), [second, *fields], "DUPLICATED")
    refused(signing, asked(signing), [], "MISSING")


def check_form(signing: ModuleType) -> None:
    """Other signatures that the RFC allows, signed by the right key, over less or in another way."""
    *rest, (_, value), signature = signed(signing)
    covered = re.findall(r'"[^"]+"', value.partition(")")[0])
    forms = [value.replace(f"{part} ", "").replace(f" {part}", "") for part in covered]
    forms += [value.replace('alg="ed25519"', f'alg="{name}"') for name in ("hmac-sha256", "rsa-pss-sha512", "none", "")]
    forms += [value.replace(';alg="ed25519"', ""), value.replace(';tag="roundelay"', ""), value + ";expires=1"]
    forms += [value.replace("sig=", "sig1="), f"{value}, {value.replace('sig=', 'two=')}", value.upper(), ""]
    forms += [value.replace('("@method" "@path"', '("@path" "@method"'), value.replace(";created", "; created")]
    forms += [re.sub(r"created=\d+", f"created={n}", value) for n in ("-1", "01", "1.0", "9" * 16, '"1"', "")]
    assert value not in forms
    for form in forms:
        refused(signing, asked(signing), [*rest, (signing.INPUT, form), signature])
    for components, parameters in ((covered[:2], value.partition(")")[2]), (["@method"], "")):
        names = [name.strip('"') for name in components]
        values = {"@method": "POST", "@path": "/v1/update"}
        inner = f"({' '.join(components)}){parameters}"
        raw = KEY.sign(signing.signature_base([(name, values[name]) for name in names], inner))
        own = [(signing.INPUT, f"sig={inner}"), (signing.SIGNATURE, f"sig=:{signing.base64.b64encode(raw).decode()}:")]
        refused(signing, asked(signing), [*rest, *own], "OTHER_FORM")


# ---- captured -------------------------------------------------------------------------------------------------------


def check_replays(signing: ModuleType) -> None:
    """1,000 of them: each at once, and all from the beginning after each hundredth number, as after a restart:
    what is stored is all that a verifier knows, since it has no memory of its own.
    """
    stored = 0
    captured = []
    for sequence in range(1, 401):
        fields = signed(signing, sequence)
        stored = signing.verify(
            asked(signing), fields, KEY.public, client="north", last_sequence=stored, now_s=NOW_S + sequence
        )
        captured.append(fields)
        refused(signing, asked(signing), fields, "REPLAYED", last_sequence=stored)
        if sequence % 100 == 0:
            for old in captured:
                refused(signing, asked(signing), old, "REPLAYED", last_sequence=stored)
    assert stored == 400


def check_elsewhere(signing: ModuleType) -> None:
    """The same request for another run, another round, from another client, or with another's key."""
    fields = signed(signing)
    refused(signing, asked(signing, run="run-2"), fields, "OTHER_RUN")
    refused(signing, asked(signing, round=4), fields, "OTHER_ROUND")
    refused(signing, asked(signing), fields, "OTHER_CLIENT", client="south")
    refused(signing, asked(signing), fields, "BAD_SIGNATURE", key=OTHER_KEY)
    as_south = [(name, value.replace('"north"', '"south"')) for name, value in fields]
    refused(signing, asked(signing), as_south, "BAD_SIGNATURE", client="south", key=OTHER_KEY)
    refused(signing, asked(signing), as_south, "BAD_SIGNATURE", client="south")
    for name, value in (("Roundelay-Run", "run-2"), ("Roundelay-Round", "4")):
        moved = [(own, value if own == name else was) for own, was in fields]
        part = name.removeprefix("Roundelay-").lower()
        there = asked(signing, **{part: int(value) if part == "round" else value})
        refused(signing, there, moved, "BAD_SIGNATURE")


def check_clock(signing: ModuleType) -> None:
    for days in (-8, 8, 20_000):
        refused(signing, asked(signing), signed(signing), "BAD_CLOCK", now_s=NOW_S + days * DAY_S)


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_fields, check_request_line, check_body, check_presence, check_form, check_replays, check_elsewhere,
        check_clock,
    )
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_forgery_is_refused(check: Callable[[ModuleType], None]) -> None:
    honest(ours)
    check(ours)


# ---- holes that these checks must find ------------------------------------------------------------------------------

HOLES: dict[str, tuple[str, str, str]] = {
    "the query is not signed": ('f"?{request.query}"', '"?"', "request_line"),
    "the method is not signed": ("request.method, request.path,", '"POST", request.path,', "request_line"),
    "the path is not signed": ("request.method, request.path,", 'request.method, "/",', "request_line"),
    "equal numbers are taken": ("claim.sequence <= last_sequence", "claim.sequence < last_sequence", "replays"),
    "numbers are not compared": ("claim.sequence <= last_sequence", "False", "replays"),
    "the number is not signed": ("str(request.round), str(sequence)", 'str(request.round), "1"', "fields"),
    "the run is not compared": ("claim.run != request.run", "False", "elsewhere"),
    "the round is not compared": ("claim.round != request.round", "False", "elsewhere"),
    "the client is not compared": ("claim.client != client", "False", "elsewhere"),
    "the body is not compared": ("claim.digest != digest", "False", "body"),
    "the signature is not verified": (".verify(raw, base)", "", "elsewhere"),
    "the form is not compared": ('by_name[INPUT] != f"{LABEL}={parameters}"', "False", "form"),
    "of two fields the second counts": ("if own in found:", "if False:", "presence"),
    "a missing field is an empty one": ("if name not in found:", "if found.setdefault(name, '') is None:", "presence"),
    "a signature has several spellings": ('base64.b64encode(raw).decode() != found["value"]', "False", "fields"),
    "a digest has several spellings": ("if _digest_field(digest) == field:", "if True:", "fields"),
    "a number has several spellings": ('r"0|[1-9][0-9]{0,14}"', 'r"[0-9]{1,15}"', "fields"),
    "any clock will do": ("<= CLOCK_SKEW_S:", "<= 1e99:", "clock"),
}


def with_hole(old: str, new: str, patch: pytest.MonkeyPatch) -> ModuleType:
    source = inspect.getsource(ours)
    assert source.count(old) == 1, f"{old!r} is there {source.count(old)} times: plant the hole anew"
    module = ModuleType("signing_with_a_hole")
    patch.setitem(sys.modules, module.__name__, module)  # where dataclasses look a module up
    exec(compile(source.replace(old, new), module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(("old", "new", "name"), HOLES.values(), ids=HOLES)
def test_the_checks_of_forgeries_find(old: str, new: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signing = with_hole(old, new, monkeypatch)
    honest(signing)
    with pytest.raises(AssertionError):
        CHECKS[name](signing)


# ---- made up --------------------------------------------------------------------------------------------------------

HONEST = signed(ours)
anything = st.one_of(st.text(max_size=300), st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))


@st.composite
def mutated(draw: st.DrawFn) -> Fields:
    """The honest fields after a few cuts, swaps, repeats and insertions, of which the last may undo the first."""
    fields = list(HONEST)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(fields) - 1)))
        kind = draw(st.sampled_from(("edit", "drop", "repeat", "replace", "swap"))) if fields else "add"
        if kind == "add":
            fields.append((draw(st.sampled_from(ours.FIELDS)), draw(anything)))
        elif kind == "edit":
            name, value = fields[at]
            cut, until = sorted((draw(st.integers(0, len(value))), draw(st.integers(0, len(value)))))
            fields[at] = name, value[:cut] + draw(anything) + value[until:]
        elif kind == "drop":
            del fields[at]
        elif kind == "repeat":
            fields.insert(draw(st.integers(0, len(fields))), fields[at])
        elif kind == "replace":
            fields[at] = fields[at][0], draw(anything)
        else:
            other = draw(st.integers(0, len(fields) - 1))
            (one, first), (two, second) = fields[at], fields[other]
            fields[at], fields[other] = (one, second), (two, first)
    return fields


@settings(max_examples=1_000, deadline=None)
@given(mutated())
def test_a_thousand_random_mutations_are_refused(fields: Fields) -> None:
    if sorted(fields) != sorted(HONEST):
        refused(ours, asked(ours), fields)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.sampled_from(ours.FIELDS), st.text(max_size=20)), anything), max_size=12),
    anything, anything, anything, anything, st.integers(), st.binary(max_size=40), anything,
)  # fmt: skip
def test_whatever_comes_it_is_refused_and_nothing_else_is_raised(
    fields: Fields, method: str, path: str, query: str, run: str, number: int, digest: bytes, client: str
) -> None:
    request = ours.Request(method, path, run, number, query, digest)
    refused(ours, request, fields)
    refused(ours, request, HONEST, client=client)
    refused(ours, asked(ours), HONEST, last_sequence=max(number, SEQUENCE))
    with pytest.raises(ours.Refused):
        ours.claimed(fields)


def test_refusals_do_not_quote_what_a_stranger_sent_nor_tell_him_what_was_expected() -> None:
    strange = [(name, "planted words") for name, _ in HONEST]
    for fields in (strange, signed(ours, run="run-2", round=7)):
        with pytest.raises(ours.Refused) as caught:
            ours.verify(asked(ours), fields, OTHER_KEY.public, client="north", last_sequence=41, now_s=NOW_S)
        for secret in ("planted", "run-1", "run-2", "42", "41", HONEST[-1][1]):
            assert secret not in str(caught.value)


def test_numbers_of_a_device_that_crashed_are_still_taken(tmp_path: Path) -> None:
    stored = 0
    for _ in range(5):
        counter = Counter(tmp_path / "sequence")
        for _ in range(3):
            fields = signed(ours, counter.next())
            known = {"client": "north", "last_sequence": stored, "now_s": NOW_S}
            stored = ours.verify(asked(ours), fields, KEY.public, **known)

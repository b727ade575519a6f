"""Bytes that are no frame: whatever comes, decoding answers with ``WireError``, and allocates no more than came.

The second half plants bugs in the decoder: each contract must fail on those that concern it.
"""

import hashlib
import io
import json
import math
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundelay import header, wire
from roundelay.errors import WireError
from roundelay.header import DTYPES, PREFIX, Limits
from roundelay.wire import Frame

Contract = Callable[[], None]
Planting = Callable[[pytest.MonkeyPatch], None]
SMALL = Frame("step", {"loss": 0.25, "ids": [1, 2]}, {"w": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True])})
FIRST_STEP = 16 << 20  # of a stream's body, which is there before a byte of it came
SLACK = 1 << 20  # what Python itself takes, imports and error messages included


def refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except WireError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"not a WireError but {type(error).__name__}: {error}") from error
    else:
        return False
    assert 0 < len(message) < 2000, "a message is for people"
    return True


def refused_by_both(raw: bytes, limits: Limits = wire.LIMITS) -> bool:
    by_read = refused(lambda: wire.read(io.BytesIO(raw), limits))
    return refused(lambda: wire.decode(raw, limits)) and (by_read or not raw)  # a stream may end before a frame begins


def forge(content: object, body: bytes = b"", body_bytes: int | None = None, header_bytes: int | None = None) -> bytes:
    """Return a frame that says ``content`` and has the right digest; lengths are true unless they are given."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    text += b" " * (-(PREFIX.size + len(text)) % 64)
    said = (len(text) if header_bytes is None else header_bytes, len(body) if body_bytes is None else body_bytes)
    head = PREFIX.pack(b"rdl-wire", 1, *said) + text
    return head + body + wire.digest(head, [memoryview(body)])


def tensors(*entries: object) -> dict[str, object]:
    return {"kind": "x", "fields": {}, "tensors": list(entries)}


# ---- the contracts --------------------------------------------------------------------------------------------------


def check_every_corruption() -> None:
    raw = wire.to_bytes(SMALL)
    for position in range(len(raw)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            bad = bytearray(raw)
            bad[position] ^= flip
            assert refused_by_both(bytes(bad)), f"byte {position} ^ {flip:#x} went through"


def check_every_truncation() -> None:
    raw = wire.to_bytes(SMALL)
    for length in range(len(raw)):
        assert refused_by_both(raw[:length]), f"the first {length} of {len(raw)} bytes went through"
    assert refused(lambda: wire.decode(raw + b"\0"))
    assert refused(lambda: wire.decode(raw + raw))


def deep(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    value = opening * levels + closing * levels
    return ('{"kind":"x","tensors":[],"fields":{"deep":' + value + "}}").encode()


LONG = b'"%b"' % (b"k" * 100_000)
LIES: dict[str, bytes] = {
    "a negative size": forge(tensors(["w", "float32", [-1]])),
    "two negative sizes": forge(tensors(["w", "uint8", [-2, -2]]), b"1234"),
    "a size that is true": forge(tensors(["w", "uint8", [True]]), b"1"),
    "a size with a point": forge(tensors(["w", "uint8", [1.0]]), b"1"),
    "a size in words": forge(tensors(["w", "uint8", ["1"]]), b"1"),
    "a size of 2**63": forge(tensors(["w", "uint8", [2**63]])),
    "a size of 2**64": forge(tensors(["w", "uint8", [2**64]])),
    "a size of 4000 digits": forge(b'{"kind":"x","fields":{},"tensors":[["w","uint8",[' + b"9" * 4000 + b"]]]}"),
    "a product beyond 64 bits": forge(tensors(["w", "uint8", [2**32, 2**32]])),
    "a product that comes round to 0": forge(tensors(["w", "float64", [2**61]])),
    "nothing, times too much": forge(tensors(["w", "uint8", [0, 2**62, 2**62]])),
    "65 dimensions": forge(tensors(["w", "uint8", [1] * 65]), b"1"),
    "a body that is too long": forge(tensors(["w", "uint8", [1]]), b"12"),
    "a body that is too short": forge(tensors(["w", "uint8", [2]]), b"1"),
    "a body of nobody": forge(tensors(), b"1"),
    "a body filled up to the boundary": forge(tensors(["w", "uint8", [1]]), b"1".ljust(64, b"\0")),
    "a gap that is not zero": forge(tensors(["a", "uint8", [1]], ["b", "uint8", [1]]), b"1".ljust(64, b"!") + b"1"),
    "tensors side by side": forge(tensors(["a", "uint8", [1]], ["b", "uint8", [1]]), b"12"),
    "an offset": forge(tensors(["a", "uint8", [1], 0], ["b", "uint8", [1], 0]), b"1"),
    "a bool of 2": forge(tensors(["a", "bool", [2]]), b"\x01\x02"),
    "an unknown dtype": forge(tensors(["w", "float8", [1]]), b"1"),
    "a dtype of torch's": forge(tensors(["w", "torch.float32", [1]]), b"1234"),
    "a complex dtype": forge(tensors(["w", "complex64", [1]]), b"12345678"),
    "a dtype that is a list": forge(tensors(["w", [], [1]]), b"1"),
    "a tensor that comes twice": forge(tensors(["w", "uint8", [0]], ["w", "uint8", [0]])),
    "a tensor without a name": forge(tensors(["", "uint8", [0]])),
    "a tensor named 3": forge(tensors([3, "uint8", [0]])),
    "a tensor with a long name": forge(tensors(["n" * 513, "uint8", [0]])),
    "a tensor with half a name": forge(tensors(["\ud800", "uint8", [0]])),
    "a tensor that is an object": forge(tensors({"name": "w", "dtype": "uint8", "shape": [0]})),
    "a tensor of two parts": forge(tensors(["w", "uint8"])),
    "a tensor of nested lists": forge(b'{"kind":"x","fields":{},"tensors":[' + b"[" * 900 + b"]" * 900 + b"]}"),
    "tensors that are an object": forge({"kind": "x", "fields": {}, "tensors": {}}),
    "fields that are a list": forge({"kind": "x", "fields": [], "tensors": []}),
    "a kind in capitals": forge({"kind": "X", "fields": {}, "tensors": []}),
    "a kind of nested lists": forge(b'{"fields":{},"tensors":[],"kind":' + b"[" * 900 + b"]" * 900 + b"}"),
    "no kind": forge({"fields": {}, "tensors": []}),
    "one key more": forge({"kind": "x", "fields": {}, "tensors": [], "code": "print(1)"}),
    "a key that comes twice": forge(b'{"kind":"x","kind":"y","fields":{},"tensors":[]}'),
    "a key that comes twice deep down": forge(b'{"kind":"x","fields":{"a":[{"b":1,"b":1}]},"tensors":[]}'),
    "long keys that come twice": forge(b'{"kind":"x","fields":{%b,%b},"tensors":[]}' % (LONG + b":1", LONG + b":2")),
    "a long key too many": forge({"kind": "x", "fields": {}, "tensors": [], "k" * 100_000: 1}),
    "long keys around a number": forge(b'{"kind":"x","fields":{%b:{%b:%d}},"tensors":[]}' % (LONG, LONG, 2**64)),
    "a list": forge([]),
    "a number": forge(b"1"),
    "nothing": forge(b""),
    "two objects": forge(b'{"kind":"x","fields":{},"tensors":[]}{}'),
    "half an object": forge(b'{"kind":"x","fields":{},"tens'),
    "a comment": forge(b'{"kind":"x","fields":{},"tensors":[]}//'),
    "a float beyond 64 bits": forge(b'{"kind":"x","fields":{"a":1e999},"tensors":[]}'),
    "a whole number beyond 64 bits": forge({"kind": "x", "fields": {"a": 2**64}, "tensors": []}),
    "a whole number of 4000 digits": forge(b'{"kind":"x","fields":{"a":' + b"9" * 4000 + b'},"tensors":[]}'),
    "an unknown constant": forge(b'{"kind":"x","fields":{"a":nan},"tensors":[]}'),
    "half a surrogate pair": forge(b'{"kind":"x","fields":{"a":"\\ud800"},"tensors":[]}'),
    "Latin-1": forge('{"kind":"x","fields":{"a":"ä"},"tensors":[]}'.encode("latin-1")),
    "UTF-16": forge('{"kind":"x","fields":{},"tensors":[]}'.encode("utf-16")),
    "a byte-order mark": forge(b'\xef\xbb\xbf{"kind":"x","fields":{},"tensors":[]}'),
    "33 levels": forge(deep(32)),
    "900 levels": forge(deep(900)),
    "100,000 levels": forge(deep(100_000)),
    "100,000 levels of objects": forge(deep(100_000, '{"a":', "}")),
    "100,000 levels that never end": forge(b'{"kind":"x","fields":' + b"[" * 100_000),
    "100,000 tensors": forge(tensors(*[["w", "uint8", [0]]] * 100_000)),
    "a header of 1 GiB": forge(tensors(), header_bytes=2**30 - 24),
    "a header on no boundary": forge(tensors(), header_bytes=39),
    "a body of 2**64": forge(tensors(), body_bytes=2**64 - 1),
    "a body of 4 GiB that is not there": forge(tensors(["w", "uint8", [4 << 30]]), body_bytes=4 << 30),
}  # fmt: skip
ALLOWED = Limits(header_bytes=4 << 20, num_tensors=99_999)


def check_lies() -> None:
    for lie, raw in LIES.items():
        assert refused_by_both(raw, ALLOWED), f"{lie} went through"
    for truth in (
        forge(deep(31)),
        forge(tensors(["w", "uint8", [2, 0, 2**40]])),
        forge(tensors(["w", "bool", []]), b"\1"),
    ):
        assert not refused_by_both(truth, ALLOWED), "the helper forges what is refused for another reason"


def check_memory() -> None:
    """A lie about a length costs no memory, and a stream that breaks off a small multiple of what came."""
    lies = [raw for lie, raw in LIES.items() if "GiB" in lie or "2**" in lie]
    whole = wire.to_bytes(Frame("x", {}, {"w": torch.zeros(12 << 20, dtype=torch.uint8)}), Limits())
    head = forge(tensors(["w", "uint8", [1 << 32]]), body_bytes=1 << 32)[:-32]
    broken_off = head + whole[: 12 << 20]
    for raw, bound in [*((lie, SLACK) for lie in lies), (broken_off, 5 * (12 << 20))]:
        stream = io.BytesIO(raw)
        tracemalloc.start()
        try:
            refused(lambda: wire.decode(raw))  # noqa: B023 - called at once
            assert tracemalloc.get_traced_memory()[1] < SLACK + len(raw)
            tracemalloc.reset_peak()
            assert refused(lambda: wire.read(stream))  # noqa: B023
            assert tracemalloc.get_traced_memory()[1] < bound + FIRST_STEP
        finally:
            tracemalloc.stop()


def check_noise() -> None:
    """Headers that are nearly right, with the right digest: random changes to the text of one, bytes and tokens."""
    rng = random.Random(7)
    text = b'{"kind":"step","fields":{"a":[1,2.5,null]},"tensors":[["w","int8",[2,3]],["v","bool",[]]]}'
    tokens = [*b'{}[],:"0-', b"[", b"]", b"{", b"}", b"null", b"NaN", b"-1", b"1e9", b"true", b'"w"', b"99999999999"]
    for _ in range(3000):
        bad = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            at, token = rng.randrange(len(bad)), rng.choice(tokens)
            bad[at : at + rng.choice((0, 1, 1, 4))] = bytes([token]) if isinstance(token, int) else token
        raw = forge(bytes(bad), b"\1" * 6 + bytes(58) + b"\1")
        try:
            agrees = json.loads(bad).keys() == {"kind", "fields", "tensors"}
        except ValueError:
            agrees = False
        assert refused_by_both(raw) or agrees, bytes(bad)


CONTRACTS: dict[str, Contract] = {
    "corruption": check_every_corruption, "truncation": check_every_truncation, "lies": check_lies,
    "memory": check_memory, "noise": check_noise,
}  # fmt: skip


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_what_is_no_frame_is_refused(contract: Contract) -> None:
    contract()


# ---- random frames and random bytes ---------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@st.composite
def random_tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        raw = bytes(value & 1 for value in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.view(shape)


@settings(max_examples=150, deadline=None)
@given(st.from_regex(header.WORD, fullmatch=True), st.dictionaries(NAMES, VALUES, max_size=4),
       st.dictionaries(NAMES, random_tensors(), max_size=4))  # fmt: skip
def test_any_frame_comes_back(kind: str, fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    raw = wire.to_bytes(Frame(kind, fields, tensors))
    came = wire.decode(raw)
    assert (came.kind, repr(came.fields)) == (kind, repr(fields))
    assert {n: (t.dtype, t.shape) for n, t in came.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in tensors.items()
    }
    assert wire.to_bytes(came) == raw
    again = wire.read(io.BytesIO(raw))
    assert again is not None
    assert wire.to_bytes(again) == raw


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 4))
def test_random_bytes_are_refused(noise: bytes, how_much: int) -> None:
    """Alone, behind a true beginning, or with true lengths and a true digest."""
    raw = wire.to_bytes(SMALL)
    began = raw[: (0, 8, 12, PREFIX.size, 100)[how_much]]
    assert refused_by_both(began + noise) or began + noise == raw
    assert refused_by_both(forge(noise, noise))


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def replace_in(module: Any, name: str, value: object) -> Planting:
    return lambda patch: patch.setattr(module, name, value)


def digest_not_compared(patch: pytest.MonkeyPatch) -> None:
    finish = wire.finish
    patch.setattr(wire, "finish", lambda head, body, computed, came: finish(head, body, computed, computed))


def digest_of_the_body_alone(patch: pytest.MonkeyPatch) -> None:
    digest = wire.digest
    patch.setattr(wire, "digest", lambda head, body: digest(b"", body))


def digest_of_whole_pieces_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wire, "digest", lambda head, body: hashlib.sha256(head).digest())


def keys_may_come_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "DECODER", json.JSONDecoder(parse_int=header._whole, parse_float=header._float))


def plain_json(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "DECODER", json.JSONDecoder(object_pairs_hook=header._object))


def lengths_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "_check_lengths", lambda *_: None)


def fields_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "_check_value", lambda *_: None)


def places_believed(patch: pytest.MonkeyPatch) -> None:
    def place(entry: list[Any], start: int) -> header.Place:
        name, dtype, shape = entry
        return header.Place(name, DTYPES[dtype], tuple(shape), start, start + math.prod(shape) * DTYPES[dtype].itemsize)

    patch.setattr(header, "_place", place)


def body_taken_as_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wire, "finish", lambda head, body, computed, came: Frame(head.kind, head.fields, head.views(body)))


PLANTED: dict[str, tuple[Planting, tuple[Contract, ...]]] = {
    "a digest that nobody compares": (digest_not_compared, (check_every_corruption,)),
    "a digest of the body alone": (digest_of_the_body_alone, (check_every_corruption,)),
    "a digest of whole pieces only": (digest_of_whole_pieces_only, (check_every_corruption,)),
    "keys that may come twice": (keys_may_come_twice, (check_lies,)),
    "numbers of any length": (plain_json, (check_lies,)),
    "lengths that are believed": (lengths_believed, (check_memory,)),
    "fields that are believed": (fields_believed, (check_lies,)),
    "places that are believed": (places_believed, (check_lies, check_noise)),
    "a body that is taken as it is": (body_taken_as_it_is, (check_every_corruption, check_lies)),
    "a body allocated as claimed": (replace_in(wire, "FIRST_BYTES", 1 << 62), (check_memory,)),
}  # fmt: skip


@pytest.mark.parametrize(("plant", "contracts"), PLANTED.values(), ids=PLANTED)
def test_the_contracts_catch(plant: Planting, contracts: tuple[Contract, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for contract in contracts:
        with pytest.raises(AssertionError):
            contract()

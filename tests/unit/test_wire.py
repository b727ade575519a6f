"""Frames: what goes in comes out, a decoder written from the page alone reads it, what is not allowed is refused."""

import hashlib
import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from roundelay import wire
from roundelay.errors import WireError
from roundelay.header import DTYPES, Limits
from roundelay.wire import Frame

FIELDS = {
    "nothing": None, "yes": True, "no": False, "zero": 0, "least": -(2**63), "most": 2**64 - 1, "tiny": 5e-324,
    "minus zero": -0.0, "third": 1 / 3, "infinity": math.inf, "minus infinity": -math.inf, "text": "Réné \U0001f600 \n",
    "list": [1, [2.0, []], {}], "object": {"": {"a": [None]}},
}  # fmt: skip


def one_of_each() -> dict[str, Tensor]:
    """Every dtype; no value, one without a dimension, and sizes that need filling up to the next boundary."""
    tensors = {name: torch.arange(5).to(dtype).reshape(5, 1) for name, dtype in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "exact": torch.arange(16.0)}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def assert_same(came: Frame | None, sent: Frame) -> None:
    assert came is not None
    assert came.kind == sent.kind
    assert repr(came.fields) == repr(sent.fields)  # repr tells 1 from 1.0 and True, and knows NaN and -0.0
    assert list(came.tensors) == list(sent.tensors)
    for name, tensor in came.tensors.items():
        assert tensor.dtype == sent.tensors[name].dtype
        assert tensor.shape == sent.tensors[name].shape
        assert bits(tensor).equal(bits(sent.tensors[name]))
        assert tensor.data_ptr() % 64 == 0


class ByteByByte(io.BytesIO):
    def readinto(self, buffer: Any, /) -> int:
        return super().readinto(memoryview(buffer)[:1])


# ---- what goes in comes out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [
    Frame("a"), Frame("update.v-2_x", FIELDS), Frame("all", {}, one_of_each()), Frame("both", FIELDS, one_of_each()),
    Frame("nan", {"loss": math.nan}, {"x": torch.tensor([math.nan, math.inf, -0.0])}),
    Frame("layouts", {}, {"turned": torch.arange(6.0).view(2, 3).t(), "every other": torch.arange(9)[::2],
                          "spread": torch.tensor([1.0]).expand(4, 3), "learnt": torch.ones(3, requires_grad=True),
                          "negated": torch.tensor([1 + 2j]).conj().imag, "bits": torch.tensor([[True, False]])}),
], ids=lambda frame: frame.kind)  # fmt: skip
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    raw = wire.to_bytes(frame)
    assert_same(wire.decode(raw), frame)
    assert_same(wire.decode(bytearray(raw)), frame)
    assert_same(wire.read(io.BytesIO(raw)), frame)
    assert_same(wire.read(ByteByByte(raw)), frame)
    assert wire.to_bytes(wire.decode(raw)) == raw


def test_a_large_body_comes_in_steps_and_is_hashed_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_BYTES", 1000)
    frame = Frame("large", {}, {"x": torch.randn(1_500_000), "y": torch.randn(1_500_000), "z": torch.tensor(True)})
    with_threads = wire.to_bytes(frame)
    assert_same(wire.read(io.BytesIO(with_threads)), frame)
    monkeypatch.setattr(wire, "HASH_THREADS", 1)
    assert wire.to_bytes(frame) == with_threads


def test_a_file_holds_frames_one_after_another(tmp_path: Path) -> None:
    frames = [Frame("first", {"n": 1}, one_of_each()), Frame("second"), Frame("third", {}, {"x": torch.ones(9)})]
    with (tmp_path / "frames").open("wb") as file:
        for frame in frames:
            file.writelines(wire.encode(frame))
    with (tmp_path / "frames").open("rb") as file:
        for frame in frames:
            assert_same(wire.read(file), frame)
        assert wire.read(file) is None


def test_encoding_copies_no_contiguous_tensor_and_decoding_none_of_an_aligned_buffer() -> None:
    tensor = torch.arange(1000.0)
    buffers = wire.encode(Frame("x", {}, {"x": tensor}))
    assert torch.frombuffer(buffers[1], dtype=torch.float32).data_ptr() == tensor.data_ptr()
    raw = b"".join(buffers)
    memory = wire.aligned(len(raw))
    wire.bytes_of(memory)[:] = raw
    came = wire.decode(wire.bytes_of(memory)).tensors["x"]
    assert memory.data_ptr() <= came.data_ptr() < memory.data_ptr() + len(memory)


# ---- a stranger's reading of the page -------------------------------------------------------------------------------


def stranger(raw: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Decode with nothing but the module's docstring at hand."""
    sizes = {"float16": 2, "float32": 4, "float64": 8, "bfloat16": 2, "bool": 1, "int8": 1, "int16": 2, "int32": 4,
             "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}  # fmt: skip
    magic, version = raw[:8], int.from_bytes(raw[8:12], "little")
    header, body = int.from_bytes(raw[12:16], "little"), int.from_bytes(raw[16:24], "little")
    assert (magic, version, (24 + header) % 64, len(raw)) == (b"rdl-wire", 1, 0, 24 + header + body + 32)
    content, rest = json.loads(raw[24 : 24 + header]), raw[24 + header :]
    tensors, at = {}, 0
    for name, dtype, shape in content["tensors"]:
        while at % 64:
            assert rest[at] == 0
            at += 1
        tensors[name] = rest[at : at + math.prod(shape) * sizes[dtype]]
        at += len(tensors[name])
    assert at == body
    pieces = [hashlib.sha256(rest[i : min(i + 2**22, body)]).digest() for i in range(0, body, 2**22)]
    assert hashlib.sha256(raw[: 24 + header] + b"".join(pieces)).digest() == rest[body:]
    return content, tensors


def test_a_decoder_written_from_the_page_reads_a_frame() -> None:
    tensors = one_of_each() | {"large": torch.randn(2_300_000)}
    content, raws = stranger(wire.to_bytes(Frame("page", FIELDS, tensors)))
    assert content["kind"] == "page"
    assert repr(content["fields"]) == repr(FIELDS)
    for name, tensor in tensors.items():
        assert raws[name] == bytes(tensor.view(-1).view(torch.uint8).tolist()) or name == "large"
    assert raws["large"] == struct.pack("<2300000f", *tensors["large"].tolist())


def test_the_format_is_the_one_that_was_published() -> None:
    frame = Frame("step", {"n": 1}, {"a": torch.tensor([1, 2], dtype=torch.int16), "b": torch.tensor(0.5)})
    header = b'{"kind":"step","fields":{"n":1},"tensors":[["a","int16",[2]],["b","float32",[]]]}'
    head = b"rdl-wire" + struct.pack("<IIQ", 1, 104, 68) + header.ljust(104)
    body = struct.pack("<hh60xf", 1, 2, 0.5)
    assert wire.to_bytes(frame) == head + body + hashlib.sha256(head + hashlib.sha256(body).digest()).digest()


# ---- what a frame cannot hold ---------------------------------------------------------------------------------------


def endless() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(("value", "expected"), [
    ((1, 2), "got tuple"), ({1, 2}, "got set"), (b"raw", "got bytes"), (torch.ones(1), "got Tensor"),
    (torch.ones(1).numpy()[0], "got float32"), (Text("a"), "got Text"), ({1: 2}, "keys are strings"),
    (2**64, "whole numbers lie"), (-(2**63) - 1, "whole numbers lie"), ("\ud800", "surrogate"),
    ({"\udfff": 1}, "surrogate"), (endless(), "nested more than 32"),
])  # fmt: skip
def test_fields_that_json_cannot_hold_are_refused_by_name(value: object, expected: str) -> None:
    with pytest.raises(WireError, match=expected) as caught:
        wire.encode(Frame("x", {"some": {"where": value}}))
    assert "some" in str(caught.value)


@pytest.mark.parametrize(("tensor", "expected"), [
    (torch.ones(2).to_sparse(), "dense tensor on the CPU, got torch.sparse_coo"),
    (torch.empty(2, device="meta"), "got torch.strided on meta"), ([1.0], "got list"),
    (torch.tensor([1j]), "complex64"), (torch.ones(2).to(torch.float8_e5m2), "float8_e5m2"),
    (torch.ones([1] * 65), "up to 64 numbers"),
])  # fmt: skip
def test_tensors_that_no_frame_holds_are_refused_by_name(tensor: Any, expected: str) -> None:
    with pytest.raises(WireError, match=expected) as caught:
        wire.encode(Frame("x", {}, {"weight": tensor}))
    assert "weight" in str(caught.value)


@pytest.mark.parametrize("kind", ["", "Big", "1st", "a b", "a\n", "ä", "x" * 65, None, 3])
def test_a_kind_is_a_short_word(kind: Any) -> None:
    with pytest.raises(WireError, match="kind: expected a word"):
        wire.encode(Frame(kind))


@pytest.mark.parametrize("name", ["", "n" * 513, 7, "\ud800"])
def test_a_tensors_name_is_a_short_string(name: Any) -> None:
    with pytest.raises(WireError, match="name"):
        wire.encode(Frame("x", {}, {name: torch.ones(1)}))


@pytest.mark.parametrize(("limits", "expected"), [
    (Limits(header_bytes=39), "a header of 40 bytes; at most 39"), (Limits(body_bytes=63), "a body of 68 bytes"),
    (Limits(num_tensors=1), "2 tensors; at most 1"),
])  # fmt: skip
def test_both_sides_keep_the_limits(limits: Limits, expected: str) -> None:
    frame = Frame("x", {}, {"a": torch.ones(1), "b": torch.ones(1)})
    if "header" in expected:
        frame = Frame("x")
    raw = wire.to_bytes(frame)
    for attempt in (
        lambda: wire.encode(frame, limits),
        lambda: wire.decode(raw, limits),
        lambda: wire.read(io.BytesIO(raw), limits),
    ):
        with pytest.raises(WireError, match=expected):
            attempt()


def test_limits_fit_into_the_prefix() -> None:
    with pytest.raises(WireError, match="limits must be positive"):
        Limits(header_bytes=1 << 32)


def test_a_big_endian_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    for attempt in (lambda: wire.encode(Frame("x")), lambda: wire.decode(b"rdl-wire")):
        with pytest.raises(WireError, match="big-endian"):
            attempt()


def test_bytes_that_were_verified_are_not_hashed_again_and_checked_for_all_else() -> None:
    frame = Frame("x", {"loss": 0.5}, {"a": torch.arange(3.0), "b": torch.tensor([True])})
    raw = bytearray(wire.to_bytes(frame))
    assert torch.equal(wire.decode(bytes(raw), verified=True).tensors["a"], torch.arange(3.0))
    raw[-1] ^= 1
    with pytest.raises(WireError, match="damaged"):
        wire.decode(bytes(raw))
    assert wire.decode(bytes(raw), verified=True).fields == {"loss": 0.5}
    raw[-33] = 2  # the bool
    with pytest.raises(WireError, match="a bool is a byte"):
        wire.decode(bytes(raw), verified=True)
    with pytest.raises(WireError, match="in all"):
        wire.decode(bytes(raw[:-1]), verified=True)

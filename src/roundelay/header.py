"""What stands before a frame's body, and the rules for it, which both sides keep. The format is told in `wire`."""

import json
import math
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundelay.errors import WireError

MAGIC, VERSION = b"rdl-wire", 1
PREFIX = struct.Struct("<8sIIQ")
ALIGNMENT = 64
MAX_DEPTH, MAX_DIMENSIONS, MAX_NAME = 32, 64, 512
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORD = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.ASCII)
Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """What a frame may cost. Lengths are checked before anything of that length is allocated; a parsed header takes up
    to some thirty times the bytes of its text.
    """

    header_bytes: int = 1 << 20
    body_bytes: int = 4 << 30
    num_tensors: int = 1 << 16

    def __post_init__(self) -> None:
        if not (0 < self.header_bytes < 1 << 32 and 0 <= self.body_bytes < 1 << 63 and self.num_tensors >= 0):
            raise WireError(f"limits must be positive and fit into the prefix's fields, got {self}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a body, in bytes from the body's start."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Head:
    """Prefix and header: their bytes, and what these say."""

    raw: bytes
    kind: str
    fields: Mapping[str, Any]
    places: tuple[Place, ...]
    body_bytes: int

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Return start and end of each range of the body that belongs to no tensor."""
        at = 0
        for place in self.places:
            if place.start > at:
                yield at, place.start
            at = place.stop

    def views(self, body: Tensor) -> dict[str, Tensor]:
        """Return the tensors that lie in ``body``, uint8 of at least ``body_bytes``, without a copy."""
        return {p.name: body[p.start : p.stop].view(p.dtype).view(p.shape) for p in self.places}


def build(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], limits: Limits) -> Head:
    """Return the head of a frame that holds these, checked by the same rules as one that came from elsewhere."""
    refuse_big_endian()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            came = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise WireError(f"tensor {name!r}: expected a dense tensor on the CPU, got {came}")
    entries = [[n, DTYPE_NAMES.get(t.dtype, str(t.dtype)), list(t.shape)] for n, t in tensors.items()]
    content = {"kind": kind, "fields": fields, "tensors": entries}
    places = _checked(content, limits)
    text = ENCODER.encode(content).encode("ascii")
    text += b" " * (-(PREFIX.size + len(text)) % ALIGNMENT)
    body_bytes = places[-1].stop if places else 0
    _check_lengths(len(text), body_bytes, limits)
    return Head(PREFIX.pack(MAGIC, VERSION, len(text), body_bytes) + text, kind, fields, places, body_bytes)


def lengths_in(raw: Bytes, limits: Limits) -> tuple[int, int]:
    """Return the lengths of header and body that a prefix speaks of, found to be within the limits."""
    refuse_big_endian()
    if len(raw) < PREFIX.size:
        raise WireError(f"a frame begins with {PREFIX.size} bytes, but only {len(raw)} came")
    magic, version, header_bytes, body_bytes = PREFIX.unpack(raw)
    if magic != MAGIC:
        raise WireError(f"a frame begins with {MAGIC!r}, but {magic!r} came: the sender speaks something else")
    if version != VERSION:
        raise WireError(f"frames of version {VERSION} are understood, but one of version {version} came")
    if (PREFIX.size + header_bytes) % ALIGNMENT:
        raise WireError(f"prefix and header must fill multiples of {ALIGNMENT} bytes; a header of {header_bytes} came")
    _check_lengths(header_bytes, body_bytes, limits)
    return header_bytes, body_bytes


def _check_lengths(header_bytes: int, body_bytes: int, limits: Limits) -> None:
    for part, length, most in (("header", header_bytes, limits.header_bytes), ("body", body_bytes, limits.body_bytes)):
        if length > most:
            raise WireError(f"a {part} of {length} bytes; at most {most} are allowed (Limits.{part}_bytes)")


def parse(raw: bytes, limits: Limits) -> Head:
    """Return the head that these bytes, prefix and header, are; its tensors fill the body that the prefix speaks of."""
    *_, body_bytes = PREFIX.unpack_from(raw)
    try:
        content = DECODER.decode(raw[PREFIX.size :].decode("utf-8"))
        places = _checked(content, limits)
    except WireError:
        raise
    except (ValueError, RecursionError) as problem:  # not UTF-8, not JSON, or nested too deep for the parser
        raise WireError(f"the header is not JSON: {type(problem).__name__}: {str(problem)[:200]}") from None
    filled = places[-1].stop if places else 0
    if filled != body_bytes:
        raise WireError(f"the header's tensors fill {filled} bytes, the prefix speaks of a body of {body_bytes}")
    return Head(raw, content["kind"], content["fields"], places, body_bytes)


def _checked(content: Any, limits: Limits) -> tuple[Place, ...]:  # Any: anything that JSON can hold
    if type(content) is not dict or content.keys() != {"kind", "fields", "tensors"}:
        came = str(sorted(content))[:200] if type(content) is dict else type(content).__name__
        raise WireError(f"a header holds 'kind', 'fields' and 'tensors', but {came} came")
    kind, fields, entries = content["kind"], content["fields"], content["tensors"]
    if type(kind) is not str or not WORD.fullmatch(kind):
        raise WireError(f"kind: expected a word of up to 64 characters a-z 0-9 _ . -, got {str(kind)[:80]!r}")
    if type(fields) is not dict or type(entries) is not list:
        raise WireError(f"expected fields {{}} and tensors [], got {type(fields).__name__}, {type(entries).__name__}")
    _check_value(fields, "fields", 0)
    if len(entries) > limits.num_tensors:
        raise WireError(f"{len(entries)} tensors; at most {limits.num_tensors} are allowed (Limits.num_tensors)")
    places, at = dict[str, Place](), 0
    for entry in entries:
        place = _place(entry, at + -at % ALIGNMENT)
        if place.name in places:
            raise WireError(f"tensor {place.name!r} comes twice")
        places[place.name], at = place, place.stop
    return tuple(places.values())


def _place(entry: object, start: int) -> Place:
    if type(entry) is not list or len(entry) != 3:
        raise WireError(f"a tensor is [name, dtype, shape], but {str(entry)[:80]} came")
    name, dtype, shape = entry
    if type(name) is not str or not 0 < len(name) <= MAX_NAME:
        raise WireError(f"a tensor's name is a string of 1 to {MAX_NAME} characters, but {str(name)[:80]!r} came")
    _check_value(name, "tensor's name", 0)
    if type(dtype) is not str or dtype not in DTYPES:
        raise WireError(f"tensor {name!r}: dtype {str(dtype)[:80]!r}; expected one of {', '.join(DTYPES)}")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"tensor {name!r}: a shape is a list of up to {MAX_DIMENSIONS} numbers, got {str(shape)[:80]}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WireError(f"tensor {name!r}: sizes are whole numbers from 0 on, got {str(shape)[:80]}")
    itemsize = DTYPES[dtype].itemsize
    # zeros left out: torch multiplies the others, in 64 bits, even where a tensor is empty
    if math.prod(size or 1 for size in shape) * itemsize >= 1 << 63:
        raise WireError(f"tensor {name!r}: shape {str(shape)[:80]} is beyond 64-bit arithmetic")
    return Place(name, DTYPES[dtype], tuple(shape), start, start + math.prod(shape) * itemsize)


def _check_value(value: object, where: str, depth: int) -> None:
    if value is None or type(value) in (bool, float):
        return
    where = where[-200:]
    if type(value) is int:
        if not -(1 << 63) <= value < 1 << 64:
            raise WireError(f"{where}: whole numbers lie from -2**63 to 2**64 - 1")
    elif type(value) is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise WireError(f"{where}: a string holds half a surrogate pair: {value[:80]!r}") from None
    elif type(value) not in (list, dict):
        raise WireError(f"{where}: expected None, bool, int, float, str, list or dict, got {type(value).__name__}")
    elif depth == MAX_DEPTH:
        raise WireError(f"...{where}: nested more than {MAX_DEPTH} deep")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_value(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise WireError(f"{where}: keys are strings, got {str(key)[:80]} ({type(key).__name__})")
            _check_value(key, f"a key of {where}", depth + 1)
            _check_value(item, f"{where}[{key[:40]!r}]", depth + 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise WireError(f"the header has an object in which a key comes twice, among {str(sorted(content))[:200]}")
    return content


def _whole(text: str) -> int:
    if len(text) > 20:  # -2**63 and 2**64 have 20 characters; longer ones cost time in the square of their length
        raise WireError(f"whole numbers lie from -2**63 to 2**64 - 1, but one of {len(text)} digits came")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise WireError(f"{text[:40]} is beyond the range of a float64; infinity is written Infinity")
    return value


def refuse_big_endian() -> None:
    if sys.byteorder != "little":
        raise WireError("frames hold little-endian tensors, and this machine is big-endian: it is not supported")


ENCODER = json.JSONEncoder(separators=(",", ":"))
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_float)

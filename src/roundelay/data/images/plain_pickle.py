"""Pickles that hold a table of arrays and lists, read without running anything that they name.

A pickle is a program. This reader gives it five names to call, each of which makes a value of ours and nothing else;
numpy itself never sees what the file says. Whatever else a file names is refused before it is looked up.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from roundelay.data.images.files import REPLACE
from roundelay.errors import DataError

Value = np.ndarray | list[int | str | bytes] | int | str | bytes


def read(file: Path) -> dict[str, Value]:
    """Return the table that a pickle holds: uint8 arrays, lists of numbers or text, numbers and text, by name. Text of
    Python 2 comes as bytes.

    Raises:
        DataError: it is no pickle, is damaged, or holds or names anything else; the message names the file.
    """
    try:
        content = file.read_bytes()
        _require_dense(content)
        table = _Reader(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(table, dict):
            raise _RefusedError(f"expected a table (dict), it holds a {type(table).__name__}")
        return {_name(key): _value(value) for key, value in table.items()}
    except _RefusedError as error:
        raise DataError(f"{file}: {error}. Nothing of it was run; a file from an untrusted source may do harm where it "
                        "is loaded by other means: replace it with a fresh copy") from error  # fmt: skip
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, OverflowError,
            MemoryError, RecursionError) as error:  # fmt: skip
        raise DataError(f"{file}: expected a pickled table, cannot read it ({error}); {REPLACE}") from error


class _RefusedError(Exception):
    """A pickle holds or names something that is not admitted."""


class _Array:
    """What a pickle says of an array."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Dtype:
    """What it says of a type of numbers. The state, its byte order, means nothing where a number is one byte."""

    __slots__ = ("name",)

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class _Callable:
    """What a name stands for. An instance that refuses a state, so that no pickle leaves anything behind in ours."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *args: object) -> object:
        return self._make(*args)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("it changes what a name stands for")


def _encoded(text: object, encoding: object) -> bytes:
    """Return bytes, as Python 3 writes them for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError(f"it encodes a {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
}

_REMEMBERING = ("PUT", "BINPUT", "LONG_BINPUT")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> object:
        if (module, name) not in ADMITTED:
            raise _RefusedError(f"expected arrays, lists, numbers and text, it names {module}.{name}")
        return _Callable(ADMITTED[module, name])


def _require_dense(content: bytes) -> None:
    """Refuse a value that is to be remembered under a number which does not follow from those before: Python makes room
    for all numbers up to it, gigabytes for a file of ten bytes.
    """
    known = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _REMEMBERING:
            if not isinstance(argument, int) or argument > known + 1:
                raise ValueError(f"it numbers its {known + 1}. value {argument}")
            known += 1


def _name(key: object) -> str:
    if not isinstance(key, str | bytes):
        raise _RefusedError(f"expected names, it has a {type(key).__name__} for one")
    return key if isinstance(key, str) else key.decode("latin1")


def _value(value: object) -> Value:
    # One level deep: lists of lists that a small file repeats would grow without end.
    if isinstance(value, _Array):
        return _array(value)
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, int | str | bytes):
            raise _RefusedError(f"expected arrays, lists, numbers and text, it holds a {type(item).__name__}")
    return value  # type: ignore[return-value]


def _array(array: _Array) -> np.ndarray:
    """Return the array that (version, shape, dtype, whether it is in Fortran's order, bytes) tells of."""
    match array.state:
        case (_, tuple() as shape, _Dtype() as dtype, fortran, bytes() as values):
            if dtype.name not in ("u1", b"u1") or fortran:
                raise _RefusedError(f"expected arrays of unsigned bytes in C order, it holds one of {dtype.name!r}")
            if not all(isinstance(size, int) and size >= 0 for size in shape) or math.prod(shape) != len(values):
                raise ValueError(f"an array of shape {shape} has {len(values)} bytes")
            return np.frombuffer(values, dtype=np.uint8).reshape(shape)
    raise ValueError("an array without values")

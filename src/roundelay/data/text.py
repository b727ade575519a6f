"""Shakespeare's plays for predicting the next character, a client for each role of a play, in the field's two variants.

``fed_shakespeare`` is TensorFlow Federated's, which FedML took over: tokens and preprocessing as in
``tensorflow_federated/python/simulation/baselines/shakespeare/char_prediction_preprocessing.py`` and FedML's
``python/fedml/data/fed_shakespeare/utils.py``. A speech becomes bos, its bytes, eos, and padding up to a multiple of
81; a window is 81 tokens, of which 80 are seen and each one's successor is predicted, padding excepted.

``leaf`` is LEAF's (Caldas et al. 2018, arXiv:1812.01097): ``data/shakespeare/preprocess/shake_utils.py`` and
``models/utils/language_utils.py``. A client's speeches are one text in which newlines are spaces and spaces never come
twice; a window of 80 characters begins at each of its characters, and only the next character is predicted. (LEAF's
first version slid over each line by itself.)
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from roundelay.components import unknown_message
from roundelay.data.federated import FederatedData
from roundelay.data.speeches import HDF5_FILES, Pieces, from_hdf5, from_leaf, from_plays
from roundelay.data.text_windows import Text, TextWindows, num_windows
from roundelay.errors import ConfigError, DataError

__all__ = ["shakespeare"]

LENGTH = 80
"""How many characters the model sees: of both variants, and of McMahan et al. 2017."""

TFF_CHARACTERS = b"dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
"""The 86 characters of TensorFlow Federated's text tutorial; the first of them is token 1."""

PAD, OOV, BOS, EOS = 0, 87, 88, 89
"""As TensorFlow Federated numbers them; FedML has bos, eos and oov at 87, 88 and 89. Numbers change no result."""

LEAF_CHARACTERS = b"\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's 80; the first of them is 0. What is not among them is taken for the last one, as index -1 is in LEAF."""


def _table(characters: bytes, first: int, unknown: int) -> bytes:
    numbers = {character: first + place for place, character in enumerate(characters)}
    return bytes(numbers.get(byte, unknown) for byte in range(256))


_TFF, _LEAF = _table(TFF_CHARACTERS, 1, OOV), _table(LEAF_CHARACTERS, 0, len(LEAF_CHARACTERS) - 1)


def shakespeare(
    folder: str | os.PathLike[str],
    variant: str = "fed_shakespeare",
    min_characters: int = 0,
    test_fraction: float = 0.2,
    pooled: bool = False,
) -> FederatedData:
    """Read the plays as ``variant`` "fed_shakespeare" (90 tokens, every position is predicted) or "leaf" (80
    characters, the last position only). The server holds out what all clients are tested on. ``pooled`` gives all of it
    to one client, "all".

    The folder holds the variant's own files, ``shakespeare_train.h5`` and ``shakespeare_test.h5`` or LEAF's ``train/``
    and ``test/`` with JSON, which are split already; or plays in Markdown, of which each role's last ``test_fraction``
    of speeches is for testing. Roles of plays that speak fewer than ``min_characters`` are left out, and whoever has no
    window in either part.

    In memory the text takes a byte a character, whatever the number of clients or windows.

    Raises:
        ConfigError: there is no such variant, or ``test_fraction`` is not in (0, 1).
        DataError: a file is absent, malformed or empty; the message names it.
        MissingExtra: the folder holds HDF5 files and h5py is not installed.
    """
    if variant not in VARIANTS:
        raise ConfigError(unknown_message(f"variant {variant!r}", str(variant), sorted(VARIANTS)))
    if not 0.0 < test_fraction < 1.0:
        raise ConfigError(f"test_fraction: expected a number between 0 and 1, got {test_fraction!r}")
    path, form = Path(folder), VARIANTS[variant]
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; make it and put {form.wanted} into it")
    if any((path / name).exists() for name in form.files):
        data = _laid_out(path, form, form.read(path), form.of_files)
    elif any(path.glob("*.md")):
        data = _laid_out(path, form, from_plays(path, min_characters, test_fraction), form.of_plays)
    else:
        raise DataError(f"{path}: no plays are there; put {form.wanted} into that folder")
    return data.pooled() if pooled else data


Runs = Callable[[Sequence[str]], list[bytes]]
"""Makes runs of numbers from one client's pieces of text."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs: the files that it has of its own, and what becomes of what is in them or in plays."""

    files: Sequence[str]
    wanted: str
    read: Callable[[Path], Mapping[str, Pieces]]
    of_files: Runs
    of_plays: Runs
    stride: int
    every_position: bool
    pad: int | None


def _laid_out(path: Path, form: Variant, spoken: Mapping[str, Pieces], runs: Runs) -> FederatedData:
    """Return the windows of all clients on one text; who has none to train on, or none to be tested on, is left out."""
    everything: list[bytes] = []
    sizes: dict[str, tuple[int, int]] = {}
    for client in sorted(spoken):
        parts = [runs(pieces) for pieces in spoken[client]]
        num_train, num_test = (sum(num_windows(len(run), form.stride, LENGTH) for run in part) for part in parts)
        if num_train and num_test:
            sizes[client] = num_train, num_test
            everything += [run for part in parts for run in part]
    if not sizes:
        raise DataError(f"{path}: nobody has {LENGTH + 1} characters to train on and as many to be tested on, a window "
                        "each; give more text")  # fmt: skip
    text = Text.of(everything, form.stride, LENGTH, form.every_position, form.pad)
    return FederatedData.from_sizes(TextWindows(text), sizes)


def _sentences(speeches: Sequence[str]) -> list[bytes]:
    """Return one run, of whole windows: bos, bytes, eos and padding for each speech."""
    size = LENGTH + 1
    marked = (bytes([BOS]) + speech.encode().translate(_TFF) + bytes([EOS]) for speech in speeches)
    return [b"".join(tokens + bytes([PAD]) * (-len(tokens) % size) for tokens in marked)]


def _running(speeches: Sequence[str]) -> list[bytes]:
    """Return one run: all speeches, spaces for newlines, no space twice."""
    return [_letters(re.sub(r"   *", " ", " ".join(speeches).replace("\n", " ")))]


def _chained(samples: Sequence[str]) -> list[bytes]:
    """Return the runs that these windows are from: a window one character on from the last one adds that character."""
    runs: list[list[str]] = []
    before = ""
    for sample in samples:
        if sample[:-1] == before[1:]:
            runs[-1].append(sample[-1])
        else:
            runs.append([sample])
        before = sample
    return [_letters("".join(run)) for run in runs]


def _letters(text: str) -> bytes:
    # One number a character: what is not ASCII would be several bytes.
    return re.sub(r"[^\x00-\x7f]", "\0", text).encode().translate(_LEAF)


VARIANTS = {
    "fed_shakespeare": Variant(
        files=HDF5_FILES,
        wanted="shakespeare_train.h5 and shakespeare_test.h5 of TensorFlow Federated, or plays in Markdown (*.md)",
        read=from_hdf5,
        of_files=_sentences,
        of_plays=_sentences,
        stride=LENGTH + 1,
        every_position=True,
        pad=PAD,
    ),
    "leaf": Variant(
        files=("train", "test"),
        wanted="LEAF's folders train and test with JSON files, or plays in Markdown (*.md)",
        read=partial(from_leaf, length=LENGTH),
        of_files=_chained,
        of_plays=_running,
        stride=1,
        every_position=False,
        pad=None,
    ),
}

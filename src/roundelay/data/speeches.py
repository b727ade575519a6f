"""What somebody says in a play, from files: plays in Markdown, TensorFlow Federated's HDF5, LEAF's JSON.

Each gives by client what is for training and what for testing, as pieces of text in the order of the file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from roundelay.errors import DataError, optional

HDF5_FILES = ("shakespeare_train.h5", "shakespeare_test.h5")
"""What TensorFlow Federated's and FedML's archive unpacks to."""

LEAF_KEYS = ("users", "num_samples", "user_data")

HEADER = re.compile(r"^\*\*(.+?)\*\*[ \t]*$|^#.*$", re.MULTILINE)
DIRECTION = re.compile(r"_*\\?\[[^\]]*(?:\]_*|$)|_+[^_]*(?:_+|$)|\*+[^*]*\*+")


class Pieces(NamedTuple):
    """One client's pieces of text: speeches, or of LEAF's JSON a window and the character after it."""

    train: list[str]
    test: list[str]


def from_plays(folder: Path, min_characters: int, test_fraction: float) -> dict[str, Pieces]:
    """Return the speeches of each (play, role) in a folder of Markdown plays, lines separated by newlines.

    A speech begins with ``**ROLE**`` on a line of its own and ends with the next one, or with a heading; stage
    directions, ``_..._``, ``*...*`` or ``[...]``, are taken out. Of a role's n speeches the last ``test_fraction * n``,
    rounded down and at least one, are for testing; who has a single speech, or fewer than ``min_characters``, is left
    out. As in the data of McMahan et al. 2017, letter case does not tell roles apart.

    Raises:
        DataError: a play holds no speech, or is not text; the message names the file.
    """
    roles: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.md")):
        for role, speech in _speeches(file):
            roles.setdefault(re.sub(r"\W+", "_", f"{file.stem} {role}").strip("_").upper(), []).append(speech)
    spoken: dict[str, Pieces] = {}
    for client, speeches in roles.items():
        num_test = max(1, int(test_fraction * len(speeches)))
        if len(speeches) > num_test and sum(map(len, speeches)) >= min_characters:
            spoken[client] = Pieces(speeches[:-num_test], speeches[-num_test:])
    if not spoken:
        raise DataError(f"{folder}: nobody there speaks twice, and at least {min_characters} characters; "
                        "lower min_characters")  # fmt: skip
    return spoken


def _speeches(file: Path) -> list[tuple[str, str]]:
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected a play as UTF-8 text, cannot read it ({error}); convert the file") from error
    found: list[tuple[str, str]] = []
    headers = [*HEADER.finditer(content)]
    ends = [*(header.start() for header in headers), len(content)][1:]
    for header, end in zip(headers, ends, strict=True):
        speech = _spoken(content[header.end() : end])
        if header[1] and speech:
            found.append((header[1], speech))
    if not found:
        raise DataError(f"{file}: no speech is in it; expected lines **ROLE**, each followed by what the role says. "
                        "Is it a play? If not, take it out of the folder")  # fmt: skip
    return found


def _spoken(text: str) -> str:
    # Paragraph by paragraph: a direction that is never closed swallows no more than its own.
    paragraphs = (DIRECTION.sub("", paragraph) for paragraph in re.split(r"\n\s*\n", text))
    lines = (re.sub(r"\\(\W)", r"\1", line).strip() for paragraph in paragraphs for line in paragraph.split("\n"))
    return "\n".join(line for line in lines if line)


def from_hdf5(folder: Path) -> dict[str, Pieces]:
    """Return the snippets in TensorFlow Federated's two files: examples/<client>/snippets, a string each.

    Raises:
        DataError: a file is absent or damaged or has no such group, or a client is in one file only.
        MissingExtra: h5py is not installed.
    """
    train, test = (_snippets(folder / name) for name in HDF5_FILES)
    if train.keys() != test.keys():
        client = min(train.keys() ^ test.keys())
        raise DataError(f"{folder}: client {client!r} is in one of {' and '.join(HDF5_FILES)} only; are they of one "
                        "archive?")  # fmt: skip
    return {client: Pieces(train[client], test[client]) for client in train}


def _snippets(file: Path) -> dict[str, list[str]]:
    with optional("h5py", "text"):
        import h5py
    if not file.is_file():
        raise DataError(f"{file}: no such file; put both files of TensorFlow Federated's shakespeare.tar.bz2 there")
    try:
        with h5py.File(file, "r") as content:
            if "examples" not in content:
                raise DataError(f"{file}: it has no group 'examples', but {sorted(content)}; expected "
                                "examples/<client>/snippets, as in TensorFlow Federated's files")  # fmt: skip
            found: dict[str, list[str]] = {}
            for client, group in content["examples"].items():
                if not isinstance(group, h5py.Group) or not isinstance(group.get("snippets"), h5py.Dataset):
                    raise DataError(f"{file}: client {client!r} has no data set 'snippets'; expected "
                                    "examples/<client>/snippets, as in TensorFlow Federated's files")  # fmt: skip
                snippets = group["snippets"]
                if group.file != content or snippets.file != content or snippets.external or snippets.is_virtual:
                    raise DataError(f"{file}: client {client!r} has its snippets in another file, which is not opened")
                if snippets.ndim != 1 or snippets.size > file.stat().st_size:
                    raise DataError(f"{file}: client {client!r} is said to have {snippets.size} snippets, expected one "
                                    "row of them, no more than the file has bytes; unpack it once more")  # fmt: skip
                found[client] = [snippet.decode("utf-8", "replace") for snippet in snippets[()]]
    except DataError:
        raise
    except Exception as error:  # h5py raises many kinds: a wrong file is nobody's bug, whatever its kind
        raise DataError(f"{file}: not an HDF5 file, or a damaged one ({error}); unpack it once more") from error
    return found


def from_leaf(folder: Path, length: int) -> dict[str, Pieces]:
    """Return LEAF's samples, each as its window of ``length`` characters and the next one in one string, from all JSON
    files in the folders ``train`` and ``test``; of users that are in both.

    Raises:
        DataError: a file is absent, no JSON, or not of LEAF's form; the message names it, and the client.
    """
    train, test = (_samples(folder / part, length) for part in ("train", "test"))
    return {client: Pieces(samples, test[client]) for client, samples in train.items() if client in test}


def _samples(folder: Path, length: int) -> dict[str, list[str]]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise DataError(f"{folder}: no JSON file is there; put what LEAF's preprocess.sh -t sample wrote into it")
    found: dict[str, list[str]] = {}
    for file in files:
        document = _document(file)
        for client, number in zip(document["users"], document["num_samples"], strict=True):
            pair = document["user_data"].get(client)
            windows, following = (pair.get("x"), pair.get("y")) if isinstance(pair, Mapping) else (None, None)
            if not (isinstance(windows, list) and isinstance(following, list)
                    and len(windows) == len(following) == number):  # fmt: skip
                raise DataError(f"{file}: user {client!r}: expected lists x and y of {number} strings each in "
                                f"user_data; {_REDO}")  # fmt: skip
            for x, y in zip(windows, following, strict=True):
                if not (isinstance(x, str) and isinstance(y, str) and (len(x), len(y)) == (length, 1)):
                    raise DataError(f"{file}: user {client!r}: expected {length} characters and the next one, got "
                                    f"{x!r} and {y!r}; {_REDO}")  # fmt: skip
            found.setdefault(client, []).extend(x + y for x, y in zip(windows, following, strict=True))
    return found


_REDO = "is it LEAF's Shakespeare? Make it again with preprocess.sh"


def _document(file: Path) -> Mapping[str, Any]:  # Any: checked where it is used
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # json's own, and of text that is not UTF-8
        raise DataError(f"{file}: not valid JSON ({error}); {_REDO}") from error
    if not isinstance(document, Mapping) or not document.keys() >= set(LEAF_KEYS):
        raise DataError(f"{file}: expected an object with {', '.join(LEAF_KEYS)}, as LEAF writes; {_REDO}")
    users, numbers, data = (document[key] for key in LEAF_KEYS)
    if not (isinstance(users, list) and isinstance(numbers, list) and isinstance(data, Mapping)):
        raise DataError(f"{file}: expected lists of users and num_samples, and an object of user_data; {_REDO}")
    if not all(isinstance(user, str) for user in users):
        raise DataError(f"{file}: expected each of users to be a string; {_REDO}")
    if len(document["users"]) != len(document["num_samples"]):
        raise DataError(f"{file}: {len(document['users'])} users, but {len(document['num_samples'])} num_samples; "
                        f"{_REDO}")  # fmt: skip
    return document

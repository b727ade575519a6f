"""Readers of files: of data sets, of weights, of runs; with files that each of them takes."""

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch._subclasses.schema_check_mode  # torch itself imports these two at the first odd tensor
import torch.nested._internal.ops
from watched import Decoder
from wfdb_records import write_record

from roundelay.data.client_tables import Table, write_client_table
from roundelay.data.detection.coco import _categories, _document, _photographs
from roundelay.data.detection.voc import _photograph
from roundelay.data.ecg import heartbeats
from roundelay.data.images import cifar, idx, plain_pickle
from roundelay.data.images.femnist import femnist
from roundelay.data.split import Split
from roundelay.data.text import shakespeare
from roundelay.epochs import Epoch
from roundelay.errors import ConfigError, DataError, LayoutError
from roundelay.federation import Flight, Version
from roundelay.layout import Layout
from roundelay.messages import Payload, Task
from roundelay.report.clients import last_evaluations
from roundelay.report.runs import json_of
from roundelay.simulation.memory import Disk, _place
from roundelay.tracking.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint, save_weights
from roundelay.tracking.run_folder import read_rows


def in_file(
    path: Path,
    name: str,
    seeds: tuple[bytes, ...],
    read: Callable[[Path], object],
    errors: tuple[type[Exception], ...],
    tokens: tuple[bytes, ...] = (),
    extra_bytes: int = 0,
) -> Decoder:
    """What reads a file, which has the input in it."""

    def put(raw: bytes) -> None:
        path.write_bytes(raw)
        path.chmod(0o600)

    return Decoder(name, seeds, lambda raw: read(path), errors, put, tokens, extra_bytes)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def of_files(folder: Path) -> Iterable[Decoder]:
    yield from _of_data(folder)
    yield from _of_runs(folder)
    for slow in (_of_saved, _of_tables, _of_sets, _of_records):
        yield from (replace(one, share=0.2) for one in slow(folder))


def _of_data(folder: Path) -> Iterable[Decoder]:
    split = folder / "split.json"
    Split.from_parts({"a": [0, 2], "b": [1]}, 3).save(split)
    yield in_file(split, "split", (split.read_bytes(),), Split.load, (DataError,), tokens=(b"9223372036854775807",))
    table = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 2], "filenames": ["a", "b"], "n": 3}
    pickles = tuple(pickle.dumps(table, protocol) for protocol in (2, 3, 4))
    words = (
        b"r\xff\xff\xff\x7f",
        b"r\xff\xff\xff\x0f",
        b"j\xff\xff\xff\x7f",
        b"\x8e" + b"\xff" * 5 + b"\0" * 3,
        b"p99999999\n",
        b"\x81",
        b"\x93",
        b"R",
        b"b",
        b"o",
        b"2",
        b"cbuiltins\neval\n",
        b"(ios\nsystem\n",
        b"I" + b"9" * 4000 + b"\n",
    )
    yield in_file(folder / "train", "pickle", pickles, plain_pickle.read, (DataError,), tokens=words)
    labels = replace(cifar.FINE)
    yield in_file(
        folder / "train.bin", "CIFAR", (bytes(3074) * 2,), lambda path: cifar._binary(path, labels), (DataError,)
    )
    images = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28)) + bytes(2 * 784)
    yield in_file(folder / "images", "IDX", (images,), lambda path: idx._idx(path, 3), (DataError,))
    yield in_file(
        folder / "images.gz", "IDX, gzipped", (gzip.compress(images),), lambda path: idx._idx(path, 3), (DataError,)
    )
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    place = made(folder / "coco")
    (place / "a.jpg").write_bytes(b"\xff")

    def photographs(path: Path) -> None:
        found = _document(path)
        categories = _categories(found, path)
        _photographs(found, categories, tuple(categories.values()), path, path.parent)

    yield in_file(place / "instances_train.json", "COCO", (json.dumps(document).encode(),), photographs, (DataError,))
    xml = (
        b"<annotation><size><width>4</width><height>3</height></size><object><name>cat</name><bndbox><xmin>1</xmin>"
        b"<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    (made(place / "Annotations"), made(place / "JPEGImages"))
    (place / "JPEGImages" / "x.jpg").write_bytes(b"\xff")
    yield in_file(
        place / "Annotations" / "x.xml",
        "VOC",
        (xml,),
        lambda path: _photograph(place, "x", ("cat",), path),
        (DataError,),
        tokens=(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<a>" * 1000),
    )


# ---- what torch.save wrote ------------------------------------------------------------------------------------------


def _of_saved(folder: Path) -> Iterable[Decoder]:
    """As they are, where a changed byte is found by a checksum, and with true checksums of whatever was pickled."""
    weights = folder / "weights.pt"
    state = {"w": torch.arange(4.0), "b": torch.ones(1)}
    save_weights(weights, state)
    before_1_6 = BytesIO()
    torch.save(state, before_1_6, _use_new_zipfile_serialization=False)
    seeds = weights.read_bytes(), before_1_6.getvalue()
    yield in_file(weights, "weights", seeds, load_weights, (ConfigError,))
    yield _pickled(folder / "pickled.pt", "weights, sealed", seeds[0], load_weights, (ConfigError,))
    layout = Layout.of(torch.nn.BatchNorm1d(2))
    kept = folder / "checkpoint.pt"
    save_checkpoint(kept, _checkpoint(layout), layout)
    raw, errors = kept.read_bytes(), (ConfigError, LayoutError)

    def checkpoint(path: Path) -> None:
        load_checkpoint(path, layout)

    yield in_file(kept, "checkpoint", (raw,), checkpoint, errors)
    yield _pickled(folder / "pickled-checkpoint.pt", "checkpoint, sealed", raw, checkpoint, errors)
    for name in ("client's memory", "client's memory, sealed"):
        disk = Disk(folder / name)
        disk.write("a", {"own": torch.ones(3), "steps": torch.tensor([2])})
        path = folder / name / "since-1" / _place("a")
        raw = path.read_bytes()
        made_of = in_file if name.endswith("memory") else _pickled
        seeds_of = (raw,) if made_of is in_file else raw
        yield made_of(path, name, seeds_of, lambda _, disk=disk: disk.read("a"), (ConfigError,))  # type: ignore[operator]


def _checkpoint(layout: Layout) -> Checkpoint:
    vectors = layout.flatten(torch.nn.BatchNorm1d(2).state_dict())
    state = {"params": vectors.params, "momentum": torch.zeros(4)}
    version = Version(
        3, state, vectors.buffers, vectors.integers, torch.ones(4), 0.5, Epoch("skip", 2, frozenset({"b"})),
        {"a": {"params": torch.ones(4)}}, {"params": torch.ones(4)}, (0.5, 0.25),
    )  # fmt: skip
    sent = Payload({"params": vectors.params}, vectors.buffers, vectors.integers)
    flight = Flight(Task(7, "a", 3, config={"lr": 0.1}), sent, 3, 64)
    return Checkpoint(version, {"a": {"own": torch.ones(2)}}, 10**9, 0.5, [(flight, 2 * 10**9)], {"trace_hash": "0"})


def _pickled(
    path: Path, name: str, archive: bytes, read: Callable[[Path], object], errors: tuple[type[Exception], ...]
) -> Decoder:
    """What reads an archive in which the input is the pickle."""
    with zipfile.ZipFile(BytesIO(archive)) as given:
        entries = {entry: given.read(entry) for entry in given.namelist()}
    (place,) = (entry for entry in entries if entry.endswith("/data.pkl"))

    def put(raw: bytes) -> None:
        with zipfile.ZipFile(path, "w") as changed:
            for entry, content in (entries | {place: raw}).items():
                changed.writestr(entry, content)

    tokens = (
        b"cbuiltins\nbytearray\n",
        b"ctorch\nTensor\n",
        b"ctorch\nFloatStorage\n",
        b"\x8a\x04\xff\xff\xff\x7f",
        b"J\xff\xff\xff\x7f",
        b"\x85R",
        b"N",
        b"(",
        b"t",
        b"}",
        b"r\xff\xff\xff\x0f",
    )
    return Decoder(name, (entries[place],), lambda raw: read(path), errors, put, tokens, extra_bytes=len(archive))


# ---- a run's folder -------------------------------------------------------------------------------------------------


def _of_runs(folder: Path) -> Iterable[Decoder]:
    place = made(folder / "run")
    rows = [{"round": n, "attempt": 0, "client": "a", "status": "evaluated", "loss": 0.5 / n} for n in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    yield in_file(place / "metrics.jsonl", "rows", (text,), read_rows, (ConfigError,))
    yield in_file(place / "clients.jsonl", "evaluations", (text,), lambda path: last_evaluations(path.parent), ())
    record = json.dumps({"state": "finished", "rounds_done": 3}).encode()
    yield in_file(place / "state.json", "record of a run", (record,), json_of, (ConfigError,))


# ---- tables of clients ----------------------------------------------------------------------------------------------


def _of_tables(folder: Path) -> Iterable[Decoder]:
    clients = [(name, (torch.arange(6.0).view(2, 3), torch.tensor([0, 1]))) for name in ("a", "bb", "c\u00e9")]

    def everything(path: Path) -> None:
        table = Table(path.parent)
        for number in range(min(4, table.num_clients)):
            table.part(table.id(number))

    for name in ("table.json", "ids", "offsets", "inputs", "targets"):
        place = folder / f"table with another {name}"
        write_client_table(place, clients)
        words = (
            b'"object"',
            b'"S8"',
            b'{"f":"f8"}',
            b"[]",
            b"-1",
            b"281474976710656",
            b'"complex64"',
            b"[-3]",
            b"[3.0]",
        )
        yield in_file(
            place / name, f"client table, {name}", ((place / name).read_bytes(),), everything, (DataError,), words
        )


# ---- data sets ------------------------------------------------------------------------------------------------------


def _of_sets(folder: Path) -> Iterable[Decoder]:
    writer = {"x": [[1] * 780 + [0, 0.5019608, 0.0, 1.0]] * 2, "y": [3, 61]}
    digits = json.dumps(
        {"users": ["w"], "num_samples": [2], "user_data": {"w": writer}}, separators=(",", ":")
    ).encode()
    for part in ("train", "test"):
        (made(folder / "femnist" / part) / "all.json").write_bytes(digits)
    words = (b'"num_samples":[1e9]', b'"num_samples":[true]', b"NaN", b"1e39", b"[[]]", b'"y":[[1],2]')
    yield in_file(folder / "femnist" / "train" / "all.json", "FEMNIST", (digits,),
                  lambda path: femnist(path.parents[1]), (DataError,), words, 2**16)  # fmt: skip
    window = {"x": ["a" * 80, "a" * 79 + "b"], "y": ["b", "c"]}
    text = json.dumps({"users": ["K"], "num_samples": [2], "user_data": {"K": window}}, separators=(",", ":")).encode()
    for part in ("train", "test"):
        (made(folder / "leaf" / part) / "all.json").write_bytes(text)
    yield in_file(folder / "leaf" / "train" / "all.json", "Shakespeare, LEAF's", (text,),
                  lambda path: shakespeare(path.parents[1], "leaf"), (DataError,))  # fmt: skip
    play = b"# A play\n\n**HAMLET**\n_aside_ " + b"To be [or] not\n" * 6 + b"\n**OPHELIA**\nMy lord!\n\n"
    yield in_file(made(folder / "plays") / "play.md", "Shakespeare, a play", (play * 3,),
                  lambda path: shakespeare(path.parent, test_fraction=0.5), (DataError,),
                  (b"**", b"_", b"[", b"\\[", b"*" * 500, b"_" * 500, b"[" * 500))  # fmt: skip


def _of_records(folder: Path) -> Iterable[Decoder]:
    words = (b"../../etc/passwd", b"/etc/passwd", b"file://x", b"100/3", b" 516 ", b" 212 ", b"x99999999", b":99999999",
             b"+99999999", b"1e300", b"nan", b"99999999999999")  # fmt: skip
    for end in ("hea", "dat", "atr"):
        place = write_record(folder / f"records with another {end}", "100", list("NNVNNNNNVN"))
        path, num_bytes = place / f"100.{end}", (place / "100.dat").stat().st_size
        yield in_file(path, f"ECG, .{end}", (path.read_bytes(),), lambda path: heartbeats(path.parent), (DataError,),
                      words, 8 * num_bytes)  # fmt: skip

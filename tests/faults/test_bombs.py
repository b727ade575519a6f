"""Small inputs that say they are large: each is refused within 50 ms of CPU time and 16 MiB, whatever it claims."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from decoders import decoders, sealed
from figures import Figures
from watched import Decoder, Report, run, watched

from roundelay import header, wire
from roundelay.data.images import idx
from roundelay.header import PREFIX
from roundelay.site import offered

MOST_BYTES = 16 * 2**20 + 64 * 2**10  # a stream has 16 MiB in hand for a body, and a header beside it
DEEP = 100_000
MANY = 1_000_000


def frame(text: bytes = b'{"kind":"x","fields":{},"tensors":[]}', header_bytes: int = 0, body_bytes: int = 0) -> bytes:
    raw = bytearray(sealed(text, b""))
    PREFIX.pack_into(raw, 0, b"rdl-wire", 1, header_bytes or len(raw) - 56, body_bytes)
    return bytes(raw)


def fields(value: bytes) -> bytes:
    return b'{"kind":"x","tensors":[],"fields":{"a":' + value + b"}}"


def shape(*sizes: int) -> bytes:
    return json.dumps({"kind": "x", "fields": {}, "tensors": [["w", "float64", list(sizes)]]}).encode()


NEST = b"[" * DEEP + b"]" * DEEP
OBJECTS = b'{"a":' * DEEP + b"1" + b"}" * DEEP
FRAMES: dict[str, bytes] = {
    "a header of 4 GiB": frame(header_bytes=2**32 - 24),
    "a body of 64 GiB": frame(body_bytes=64 << 30),
    "a body of 2**64": frame(body_bytes=2**64 - 1),
    "a header of 100 MB": frame(fields(b'"' + b"a" * 100_000_000 + b'"')),
    "100,000 lists": frame(fields(NEST)),
    "100,000 objects": frame(fields(OBJECTS)),
    "100,000 lists without an end": frame(fields(b"[" * DEEP)),
    "a number of a million digits": frame(fields(b"9" * MANY)),
    "a float of a million digits": frame(fields(b"1e" + b"9" * MANY)),
    "a tensor of 2**62 values": frame(shape(2**62)),
    "a product of 2**96": frame(shape(2**32, 2**32, 2**32)),
    "a product that comes round to 0": frame(shape(2**32, 2**32)),
    "no value, times 2**124": frame(shape(0, 2**62, 2**62)),
    "100,000 dimensions": frame(shape(*[1] * DEEP)),
    "100,000 tensors": frame(json.dumps({"kind": "x", "fields": {}, "tensors": [["w", "uint8", [0]]] * DEEP}).encode()),
    "a million keys": frame(fields(b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}")),
    "a million times one key": frame(fields(b"{" + b",".join([b'"k":1'] * MANY) + b"}")),
    "a tensor of 4 GiB that is not there": frame(shape(2**29), body_bytes=4 << 30),
}  # fmt: skip
MESSAGES: dict[str, bytes] = {
    "100,000 lists": NEST,
    "100,000 objects": OBJECTS,
    "lists as tasks": b'{"doing":' + NEST + b"}",
    "a number of 900,000 digits": b'{"doing":[' + b"9" * 900_000 + b"]}",
    "100,000 tasks": b'{"doing":[' + b",".join([b"1"] * 100_000) + b"]}",
    "10,000 keys": b"{" + b",".join(b'"%d":1' % n for n in range(10_000)) + b"}",
    "escapes": b'{"reason":"' + b"\\u0000" * 170_000 + b'"}',
}


def compressed() -> bytes:
    """An archive as of torch, in which 64 MiB are 64 kB."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
        archive.writestr("archive/version", b"3\n")
    return written.getvalue()


def header_of(samples: str = "800", frame: str = "16", frequency: str = "100") -> bytes:
    """What is said of a record of one lead."""
    return f"100 1 {frequency} {samples}\n100.dat {frame} 200 16 0 0 0 0 lead\n".encode()


ROOM = b"\x80\x02c%s\nbytearray\nJ\xff\xff\xff\x7f\x85R."
TWO_IMAGES = bytes.fromhex("00000803000000020000001c0000001c")

HUGE = [2**48, 2**48]


def table(**what: object) -> bytes:
    """What is said of a client table of three clients with two rows each."""
    column = {"dtype": "float32", "shape": [3]}
    told = {"format": "roundelay client table 1", "num_clients": 3, "id_bytes": 3, "inputs": column, "targets": column}
    return json.dumps(told | what).encode()


FILES: dict[str, tuple[str, bytes]] = {
    "a pickle that numbers its first value 2**26": ("pickle", b"\x80\x02]r\xff\xff\xff\x03."),
    "the same in words": ("pickle", b"\x80\x02]p90000000\n."),
    "a pickle of 2**40 bytes": ("pickle", b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"."),
    "a pickle of a number of 2**31 bytes": ("pickle", b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "a pickle of 10,000 tuples": ("pickle", b"\x80\x02)" + b"\x85" * 10_000 + b"."),
    "a gzip of 1028:1": ("IDX, gzipped", gzip.compress(TWO_IMAGES + bytes(64 << 20))),
    "a gzip of 1028:1 without a header": ("IDX, gzipped", gzip.compress(bytes(64 << 20))),
    "a gzip that says 2**96 images": ("IDX, gzipped", gzip.compress(bytes.fromhex("00000803" + "ff" * 12))),
    "images of 2**96 bytes": ("IDX", bytes.fromhex("00000803" + "ff" * 12)),
    "a split of 100,000 lists": ("split", NEST),
    "a split of 2**62 examples": ("split", b'{"format":"x","num_examples":4611686018427387904,"clients":{"a":[1]}}'),
    "annotations of 100,000 lists": ("COCO", NEST),
    "annotations with entities": ("VOC", b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>'),
    "annotations of 10,000 elements": ("VOC", b"<a>" * 10_000),
    "a roster of 100,000 lists": ("roster", NEST),
    "a roster of 100,000 objects": ("roster", OBJECTS),
    "settings of 100,000 lists": ("briefing's settings", b"x = " + NEST),
    "settings of 5,000 points": ("briefing's settings", b"model" + b".a" * 5_000 + b" = 1"),
    "a kit's settings of 100,000 lists": ("kit's settings", b"names = " + NEST),
    "weights of 2**31 bytes, said in 5": ("weights", b"X\xff\xff\xff\x7f"),
    "weights of 2**40 bytes, said in 9": ("weights", b"\x80\x04\x8e" + (2**40).to_bytes(8, "little")),
    "weights of 64 MiB in 64 kB": ("weights", compressed()),
    "a checkpoint of 64 MiB in 64 kB": ("checkpoint", compressed()),
    "weights with room for 2**31 bytes": ("weights, sealed", ROOM % b"builtins"),
    "the same as of Python 2": ("weights, sealed", ROOM % b"__builtin__"),
    "a memory with room for 2**31 bytes": ("client's memory, sealed", ROOM % b"__builtin__"),
    "a checkpoint that numbers its first value 2**26": ("checkpoint, sealed", b"\x80\x02]r\xff\xff\xff\x03."),
    "a checkpoint of 10,000 lists": ("checkpoint, sealed", b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."),
    "rows of 100,000 lists": ("rows", NEST + b"\n{}\n"),
    "a record of 100,000 objects": ("record of a run", OBJECTS),
    "a table of 100,000 lists": ("client table, table.json", NEST),
    "a table of 2**62 clients": ("client table, table.json", table(num_clients=2**62)),
    "a table with ids of 2**40 bytes": ("client table, table.json", table(id_bytes=2**40)),
    "a table with rows of 2**96 values": ("client table, table.json", table(inputs={"dtype": "bool", "shape": HUGE})),
    "a table with rows of objects": ("client table, table.json", table(inputs={"dtype": "object", "shape": [3]})),
    "a table with 2**62 rows": ("client table, offsets", b"".join(n.to_bytes(8, "little") for n in (0, 2, 4, 2**62))),
    "digits of 100,000 lists": ("FEMNIST", NEST),
    "digits with a number of a million digits": ("FEMNIST", b'{"users":' + b"9" * MANY + b"}"),
    "a play of 100,000 stars": ("Shakespeare, a play", b"**A**\n" + b"*" * 100_000),
    "a play of 100,000 directions": ("Shakespeare, a play", b"**A**\n" + b"[" * 100_000),
    "samples of 100,000 lists": ("Shakespeare, LEAF's", NEST),
    "a signal of 2**40 samples": ("ECG, .hea", header_of(str(2**40))),
    "a signal of 2**40 samples a frame": ("ECG, .hea", header_of(frame=f"16x{2**40}")),
    "a signal with a skew of 2**40": ("ECG, .hea", header_of(frame=f"16:{2**40}")),
    "a signal in an archive of 2**40 samples": ("ECG, .hea", header_of(str(2**40), "516")),
    "10**300 samples a second": ("ECG, .hea", header_of(frequency="1" + "0" * 300)),
    "a record of 100,000 signals": ("ECG, .hea", b"100 100000 100 800\n" + b"100.dat 16 200\n" * 100_000),
    "beats 2**31 apart": ("ECG, .atr", b"\0\xec\xff\x7f\xff\xff\0\4" * 1_000 + b"\0\0"),
    "a certificate of 1 MB": ("authority of a kit", b"-----BEGIN CERTIFICATE-----\n" + b"A" * 2**20),
    "a token of 1 MB": ("token, key or pin", b"A" * 2**20),
    "a name of 1 MB": ("name", b"a" * 2**20),
    "an address of 1 MB": ("address", b"https://" + b"a" * 2**20 + b"/x"),
    "a signature of 1 MB": ("signature", b"Signature-Input: " + b"sig=(" * 200_000),
}  # fmt: skip


def bombs(folder: Path) -> Iterator[tuple[Decoder, list[bytes]]]:
    known = {one.name: replace(one, bound_bytes=MOST_BYTES) for one in decoders(folder)}
    for what, raw in FRAMES.items():
        decode = known["frame"]
        yield replace(decode, name=what), [raw]
        yield replace(decode, name=f"{what}, streamed", decode=lambda raw: wire.read(io.BytesIO(raw))), [raw]
    for what, raw in MESSAGES.items():
        for name in ("request work", "request failure", "answer Offer", "answer Hello", "first word Greeting"):
            yield replace(known[name], name=f"{name}: {what}"), [raw]
    for what, (name, raw) in FILES.items():
        yield replace(known[name], name=what), [raw]
    for name in ("codec TopK(fraction=0.9, k=None)", "codec QSGD(bits=None, levels=20, bucket=512, coding='elias')"):
        yield replace(known[name], name=f"{name}: zeros"), [bytes(2**20)]


def exploded(folder: Path, only: Callable[[str], bool] = lambda name: True) -> Report:
    return watched(lambda: run([one for one in bombs(folder) if only(one[0].name)], folder))


def test_bombs_are_refused(tmp_path: Path, figures: Figures) -> None:
    report = exploded(tmp_path)
    figures("bombs", report.num_inputs)
    figures("refused", report.num_refused)
    figures("slowest", report.slowest_s * 1_000, "ms of CPU time")
    figures("most memory", report.most_bytes / 2**20, "MiB")
    report.check()
    assert report.num_inputs >= 90
    assert report.num_refused >= report.num_inputs - 5, "kept answers and scripts' names apart, all are refused"


def lengths_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(header, "_check_lengths", lambda *_: None)


def all_of_it_unpacked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(idx, "content", lambda file, most: bytearray(gzip.decompress(file.read_bytes())))


def keys_of_any_number_of_parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(offered, "_MOST_PARTS", 10**6)


@pytest.mark.parametrize(
    ("plant", "name"),
    [(lengths_believed, "a header of 4 GiB, streamed"), (all_of_it_unpacked, "a gzip of 1028:1"),
     (keys_of_any_number_of_parts, "settings of 5,000 points")],
)  # fmt: skip
def test_the_bombs_catch(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"took|MemoryError|bytes"):
        exploded(tmp_path, lambda one: one == name).check()

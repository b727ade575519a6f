"""Everything in roundelay that reads bytes of other machines, or files of other people, with inputs that it takes."""

import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from decoders_of_files import in_file, made, of_files
from pydantic import ValidationError
from watched import Decoder

from roundelay import sealed as sealed_memory
from roundelay import wire
from roundelay.channel import Channel
from roundelay.channel.connection import ENVELOPE, FREE, INLINE, MEMORY
from roundelay.client.exchange import Answered, Scalar, Site, model_frame, read_model
from roundelay.deployment import protocol as p
from roundelay.deployment.device.device import Device, Membership
from roundelay.deployment.device.replies import parsed, refused
from roundelay.deployment.device.shelves import _kept
from roundelay.deployment.device.trouble import Unreachable
from roundelay.deployment.front.problems import STATUS, answer_to
from roundelay.deployment.front.routes import ROUTES
from roundelay.deployment.greeting import Greeting, Reply, Worker
from roundelay.deployment.journal.records import Verdict
from roundelay.deployment.trust.address import Address
from roundelay.deployment.trust.certificates import Authority
from roundelay.deployment.trust.identity import DeviceKey, checked_name, decode, encode
from roundelay.deployment.trust.members import read_members
from roundelay.deployment.trust.pinning import _parsed, client_context
from roundelay.deployment.trust.place import settled
from roundelay.deployment.trust.roster import Roster
from roundelay.deployment.trust.signing import Refused, Request, sign, verify
from roundelay.errors import ChannelClosed, ConfigError, IdentityError, WireError
from roundelay.header import PREFIX
from roundelay.layout import Layout
from roundelay.messages import Payload
from roundelay.site.making import _told
from roundelay.site.offered import offered_job, offered_partition, read_settings
from roundelay.stages.codecs import BF16, DRIVE, EDEN, FP8, FP16, FP32, QSGD, STC, Int8, RandK, Sign, TernGrad, TopK
from roundelay.wire import Frame

HERE = Address("127.0.0.1", 8443)
D = 300
"""How many values a codec's vector has."""

CODECS = (
    BF16(),
    FP16(),
    FP32(),
    FP8(),
    Int8(),
    Int8(block=64),
    QSGD(),
    QSGD(bits=2, bucket=64),
    QSGD(levels=20, coding="elias"),
    TernGrad(block=50),
    Sign(),
    DRIVE(),
    EDEN(bits=2),
    RandK(fraction=0.25),
    TopK(fraction=0.1),
    TopK(fraction=0.9),
    STC(fraction=0.05),
)
SETTINGS = """
name = "job"
num_rounds = 3
seed = 1
has_init = false
[model]
use = "mlp"
num_features = 4
hidden = [3]
num_classes = 2
[learner]
use = "localsgd"
lr = 0.1
[algorithm]
use = "fedavg"
[evaluation]
loss = "torch.nn.functional:cross_entropy"
[partition]
use = "dirichlet"
num_clients = 3
alpha = 0.5
[uplink]
codec = { use = "qsgd", bits = 4 }
"""


def sealed(text: bytes, body: bytes) -> bytes:
    """Return a frame that says ``text``, whatever that is, with true lengths and a true digest."""
    text += b" " * (-(PREFIX.size + len(text)) % 64)
    head = PREFIX.pack(b"rdl-wire", 1, len(text), len(body)) + text
    return head + body + wire.digest(head, [memoryview(body)])


def _frames() -> list[Frame]:
    payload = Payload({"params": torch.arange(6.0)}, torch.ones(2), torch.tensor([3]))
    answered = Answered(7, 12.0, True, {"loss": 0.5}, payload, {"own": torch.ones(3)}, rows={"auc": torch.ones(2, 2)})
    return [
        answered.frame(),
        model_frame(payload),
        Scalar("loss", 0.5, 3).frame(),
        Frame(
            "step",
            {"ids": [1, {"a": None}], "loss": 2.5},
            {"w": torch.arange(6.0).view(2, 3), "mask": torch.tensor([True, False])},
        ),
    ]


def _parts(raw: bytes) -> tuple[bytes, bytes]:
    """Return header and body of a frame."""
    *_, header, body = PREFIX.unpack_from(raw)
    return raw[24 : 24 + header].rstrip(), raw[24 + header : 24 + header + body]


def _of_frames() -> Iterable[Decoder]:
    frames = _frames()
    raws = tuple(map(wire.to_bytes, frames))
    words = (
        b"float64",
        b'"bool"',
        b"[2,3]",
        b"4611686018427387904",
        b'["w","float32",[0]]',
        b'{"kind":"x","fields":{},"tensors":[]}',
    )
    yield Decoder("frame", raws, wire.decode, (WireError,), tokens=words)
    # of a stream the first 16 MiB are there before the body is
    yield Decoder(
        "stream", raws, lambda raw: wire.read(io.BytesIO(raw)), (WireError,), tokens=words, extra_bytes=4 << 20
    )
    readers: tuple[tuple[str, Callable[[Frame], object]], ...] = (
        ("answer", Answered.read),
        ("model", read_model),
        ("scalar", Scalar.read),
    )
    for (name, read), frame, raw in zip(readers, frames, raws, strict=False):
        text, body = _parts(raw)

        def opened(text: bytes, body: bytes = body, read: Callable[[Frame], object] = read) -> object:
            return read(wire.decode(sealed(text, body)))

        yield Decoder(f"{name}, sealed", (text,), opened, (WireError,), tokens=words)
        assert frame.kind in name


def _of_channels() -> Iterable[Decoder]:
    """What comes over a channel's socket, with the memory in which a body lies, and without."""
    frame = _frames()[0]
    head = wire.head_of(frame)
    body = b"".join(wire.body_of(head, frame.tensors))
    inline = ENVELOPE.pack(INLINE, 0, 0) + wire.to_bytes(frame)
    by_memory = ENVELOPE.pack(MEMORY, 0, 1) + head.raw + wire.digest(head.raw, [memoryview(body)])
    errors = (WireError, ChannelClosed)
    words = (ENVELOPE.pack(MEMORY, 0, 0), ENVELOPE.pack(MEMORY, 1, 1), ENVELOPE.pack(FREE, 0, 0), inline, by_memory)
    for name, raw, with_memory in (("channel", inline, False), ("channel, by memory", by_memory, True)):
        line = Line(body if with_memory else b"")
        yield Decoder(name, (raw,), line.received, errors, line.put, words, extra_bytes=4 << 20)


class Line:
    """A channel at whose other end somebody has said something, with a ``body`` in a memory or none, and hung up."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def put(self, raw: bytes) -> None:
        ours, theirs = socket.socketpair()
        descriptors = [self._memory()] if self._body else []
        with ours:
            if raw:
                socket.send_fds(ours, [raw[:1]], descriptors)
                ours.sendall(raw[1:])
        for descriptor in descriptors:
            os.close(descriptor)
        self._channel = Channel(theirs)

    def _memory(self) -> int:
        memory, descriptor = sealed_memory.create(len(self._body))
        memory[: len(self._body)] = torch.frombuffer(bytearray(self._body), dtype=torch.uint8)
        return descriptor

    def received(self, raw: bytes) -> None:
        with closing(self._channel):
            self._channel.receive(timeout_s=0.0)
            with suppress(ChannelClosed):
                self._channel.receive(timeout_s=0.0)


def _of_codecs() -> Iterable[Decoder]:
    vector = torch.randn(D, generator=torch.Generator().manual_seed(1))
    for codec in CODECS:
        data = codec.encode(vector, torch.Generator().manual_seed(2))

        def decoded(raw: bytes, codec: Any = codec) -> None:  # Any: each is its own type
            came = codec.decode(
                torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8), D
            )
            assert came.shape == (D,)
            assert bool(came.isfinite().all())

        yield Decoder(f"codec {codec}", (data.numpy().tobytes(),), decoded, (WireError,), extra_bytes=4 * D)


def _requests() -> dict[str, p.Message]:
    return {
        "join": p.Join(token="t" * 43, public_key="k" * 43, client="a"),
        "work": p.Poll(doing=[1, 2], wait_s=1.5, having=["0" * 64]),
        "beat": p.Beat(doing=[1]),
        "announce": p.Announce(digest="a" * 64, size=10),
        "failure": p.Failure(reason="no data", traceback="Traceback"),
        "data": p.Holding(num_examples=3, label_counts=[1, 2]),
        "scalars": p.Scalars(round=1, scalars=[p.LoggedScalar(name="x", value=1.0, step=1)]),
    }


def _answers() -> tuple[p.Message, ...]:
    settled = p.Settled(verdict=Verdict.ACCEPTED, number=1, duplicate=False)
    return (
        p.Hello(protocol=2, version="1", run="one", joining=True),
        p.Joined(client="a", run="one"),
        _briefing(),
        _offer(),
        p.Receipt(received=3, settled=settled),
        p.Beaten(over=[1]),
        p.Noted(),
        p.Problem(error="busy", message="later"),
    )


def _offer() -> p.Offer:
    return p.Offer(id=1, round=1, attempt=0, kind="train", config={"lr": 0.1}, sent="b" * 64, size=9, memory=None)


def _briefing() -> p.Briefing:
    layout = Layout.of(torch.nn.Linear(3, 2))
    site = Site("a", "job", 1, 3, {"use": "fedavg"}, layout, {"partition": {"number": 0}})
    return p.Briefing(run="one", client="a", heartbeat_s=1.0, site=dict(site.frame().fields), settings=SETTINGS)


def _of_messages() -> Iterable[Decoder]:
    for route in ROUTES:
        if route.takes is not None:
            seed = _requests()[route.name].model_dump_json().encode()

            def asked(raw: bytes, kind: type[p.Message] = route.takes) -> None:
                try:
                    kind.model_validate_json(raw)
                except ValidationError as error:
                    if answer_to(error, None).status == STATUS["message"]:  # type: ignore[arg-type]
                        raise
                    raise RuntimeError("the front answers something else to it") from error

            yield Decoder(f"request {route.name}", (seed,), asked, (ValidationError,))
    for message in _answers():
        kind = type(message)

        def told(raw: bytes, kind: type[p.Message] = kind) -> None:
            parsed(kind, raw, HERE)

        yield Decoder(f"answer {kind.__name__}", (message.model_dump_json().encode(),), told, (Unreachable,))
    problem = p.Problem(error="busy", message="later").model_dump_json().encode()

    def turned_away(raw: bytes) -> None:
        after = raw[:20].decode("latin-1")
        for status in (400, 503):
            refused(SimpleNamespace(status=status, headers={"Retry-After": after}), raw, HERE)  # type: ignore[arg-type]

    yield Decoder("refusal", (problem, b"17"), turned_away, ())
    greeting = Greeting(roundelay=1, client="a", run="one", authority="PEM")
    for line in (greeting, Reply(ok=True)):
        yield Decoder(
            f"first word {type(line).__name__}",
            (line.model_dump_json().encode(),),
            type(line).model_validate_json,
            (ValidationError,),
        )
    yield Decoder("briefing's site", (json.dumps(_briefing().site).encode(),), _site, (WireError, ValueError))
    yield Decoder(
        "briefing's settings",
        (SETTINGS.encode(),),
        _settings,
        (ConfigError, UnicodeDecodeError),
        tokens=(b'"os:system"', b'use = "fromfile"', b"path = ", b"[model]", b'"torch:save"'),
        extra_bytes=1 << 18,
    )


def _site(raw: bytes) -> None:
    found = json.loads(raw.decode())  # of which pydantic makes the briefing
    if isinstance(found, dict):
        _told(_briefing().model_copy(update={"site": found}))


def _settings(raw: bytes) -> None:
    offered = read_settings(raw.decode())
    offered_job(offered, (), None)
    offered_partition(offered, ())


def _of_identities(folder: Path) -> Iterable[Decoder]:
    key = DeviceKey.new()
    fields = sign(Request("POST", "/v1/work", "one"), "a", key, 5, time.time())
    lines = "\n".join(f"{name}: {value}" for name, value in fields).encode()

    def entered(raw: bytes) -> None:
        came = [tuple(line.split(": ", 1)) for line in raw.decode("latin-1").split("\n") if ": " in line]
        verify(Request("POST", "/v1/work", "one"), came, key.public, client="a", last_sequence=4, now_s=time.time())  # type: ignore[arg-type]

    yield Decoder("signature", (lines,), entered, (Refused,), tokens=(b"; ", b'keyid="b"', b"created=0"))
    text = encode(bytes(range(32))).encode()
    yield Decoder("token, key or pin", (text,), lambda raw: decode(raw.decode("latin-1"), 32, "it"), (IdentityError,))
    yield Decoder("name", (b"site-1",), lambda raw: checked_name(raw.decode("latin-1")), (IdentityError,))
    yield Decoder(
        "address",
        (b"https://fl.example.org:8443", b"https://[::1]:1"),
        lambda raw: Address.of(raw.decode("latin-1")),
        (IdentityError,),
    )
    yield Decoder("worker", (b"a@[::1]:900",), lambda raw: Worker.of(raw.decode("latin-1")), (IdentityError,))
    pem = Authority.open(made(folder / "authority"), time.time()).pem
    yield Decoder("authority, offered", (pem,), lambda raw: _parsed(raw, HERE), (IdentityError,))
    device = Device(folder / "device")

    def trusted(raw: bytes) -> None:
        (device.folder / "authority.crt").unlink(missing_ok=True)
        device.trust(raw)

    yield Decoder("authority of a kit", (pem,), trusted, (IdentityError,))
    yield Decoder("authority, trusted", (pem,), client_context, (IdentityError,))
    path = folder / "device.key"
    key.save(path)
    yield in_file(path, "kit's key", (path.read_bytes(),), DeviceKey.load, (IdentityError,))
    roster = Roster(folder / "roster.json")
    roster.admit("a", key.public)
    roster.invite("b", 100.0, 0.0)
    roster.open_door(["c", "d"], 2, 100.0, 0.0)
    yield in_file(
        folder / "roster.json", "roster", ((folder / "roster.json").read_bytes(),), read_members, (IdentityError,)
    )
    yield in_file(
        folder / "server.toml",
        "kit's settings",
        (b"names = ['a.org']\nport = 8443\n",),
        lambda path: settled(path.parent),
        (IdentityError,),
    )


def _of_devices(folder: Path) -> Iterable[Decoder]:
    member = Membership(client="a", server="https://a:1").model_dump_json().encode()
    yield Decoder("membership", (member,), Membership.model_validate_json, (ValidationError,))
    line = json.dumps({"offer": _offer().model_dump(), "digest": "c" * 64, "size": 5}).encode()
    yield in_file(folder / "1.answer", "kept answer", (line + b"\nhello",), _kept, ())


def decoders(folder: Path) -> list[Decoder]:
    """Return all of them; those that read files do so in ``folder``."""
    return [
        *_of_frames(),
        *_of_channels(),
        *_of_codecs(),
        *_of_messages(),
        *_of_identities(folder),
        *_of_devices(folder),
        *of_files(folder),
    ]

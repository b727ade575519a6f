"""What becomes of a broadcast before it goes on the air: each of its vectors through one codec."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roundelay import seeds
from roundelay.errors import ConfigError, DataError, WireError
from roundelay.messages import Payload
from roundelay.stages.codecs import FP32
from roundelay.stages.codecs.protocol import Codec

Told = Mapping[str, Tensor]
"""What clients have decoded of a broadcast, by vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downlink:
    """How the vectors of a broadcast travel. Clients train from what they decode, and the server knows it. Vectors of
    one value, float buffers and integers travel as they are; so does a model that clients are to evaluate.

    With ``difference`` the codec sees what changed since what clients decoded of the last model that counted, and the
    first broadcast travels as it is. That takes clients that hear every broadcast, asked or not, as those of one
    simulated cell do; bytes are counted for those who are asked.
    """

    codec: Codec = field(default_factory=FP32)
    difference: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.codec, type) or not hasattr(self.codec, "encode"):
            raise ConfigError(f"downlink codec must be one such as QSGD(...), got {self.codec!r}")

    def broadcast(self, seed: int, number: int, payload: Payload, told: Told | None = None) -> "Broadcast":
        """Encode what the clients of round ``number`` are sent. It is one broadcast in however many attempts. ``told``
        is what they decoded last.
        """
        if self.difference and told is None:
            return Broadcast.plain(payload)
        base = told if self.difference and told is not None else {}
        vectors = {name: vector - base[name] if name in base else vector for name, vector in payload.vectors.items()}
        for name, vector in vectors.items():
            if vector.numel() == 1:
                vectors[name] = payload.vectors[name]
                continue
            try:
                vectors[name] = self.codec.encode(vector, seeds.generator(seed, number, 0, "", f"broadcast {name}"))
            except DataError as error:
                raise DataError(f"round {number}: the server's {name!r} cannot be sent: {error}") from error
        travels = Payload(vectors, payload.buffers, payload.integers)
        lengths = {name: vector.numel() for name, vector in payload.vectors.items()}
        dtype = next(iter(payload.vectors.values())).dtype
        opened = self.opened(travels, lengths, dtype)
        moved = {n: base[n] + x if n in base and x.numel() > 1 else x for n, x in opened.vectors.items()}
        return Broadcast(Payload(moved, payload.buffers, payload.integers), travels)

    def opened(self, travels: Payload, lengths: Mapping[str, int], dtype: torch.dtype) -> Payload:
        """Return a broadcast as its clients know it.

        Raises:
            WireError: it is no encoding of vectors that long.
        """
        if travels.vectors.keys() != lengths.keys():
            raise WireError(f"a broadcast of {sorted(travels.vectors)}; expected {sorted(lengths)}")
        vectors = dict(travels.vectors)
        for name, data in vectors.items():
            if lengths[name] != 1:
                vectors[name] = self.codec.decode(data, lengths[name]).to(dtype)
        return Payload(vectors, travels.buffers, travels.integers)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What clients receive, and what travels so that they do. Without a downlink the two are one."""

    received: Payload
    travels: Payload

    @staticmethod
    def plain(payload: Payload) -> "Broadcast":
        return Broadcast(payload, payload)

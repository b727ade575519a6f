"""What becomes of a broadcast before it goes on the air: each of its vectors through one codec."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from roundelay import seeds
from roundelay.errors import ConfigError, DataError, WireError
from roundelay.messages import Payload
from roundelay.stages.codecs import FP32
from roundelay.stages.codecs.protocol import Codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Downlink:
    """How the vectors of a broadcast travel. Clients train from what they decode, and the server knows it. Vectors of
    one value, float buffers and integers travel as they are; so does a model that clients are to evaluate.
    """

    codec: Codec = field(default_factory=FP32)

    def __post_init__(self) -> None:
        if isinstance(self.codec, type) or not hasattr(self.codec, "encode"):
            raise ConfigError(f"downlink codec must be one such as QSGD(...), got {self.codec!r}")

    def broadcast(self, seed: int, number: int, payload: Payload) -> "Broadcast":
        """Encode what the clients of round ``number`` are sent. It is one broadcast in however many attempts."""
        vectors = dict(payload.vectors)
        for name, vector in vectors.items():
            if vector.numel() == 1:
                continue
            try:
                vectors[name] = self.codec.encode(vector, seeds.generator(seed, number, 0, "", f"broadcast {name}"))
            except DataError as error:
                raise DataError(f"round {number}: the server's {name!r} cannot be sent: {error}") from error
        travels = Payload(vectors, payload.buffers, payload.integers)
        lengths = {name: vector.numel() for name, vector in payload.vectors.items()}
        dtype = next(iter(payload.vectors.values())).dtype
        return Broadcast(self.opened(travels, lengths, dtype), travels)

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

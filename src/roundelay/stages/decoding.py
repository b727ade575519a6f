"""What becomes of an update when it has come: bytes to vectors, and increments to points; on the server's side."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from roundelay.errors import WireError
from roundelay.guard import all_finite
from roundelay.messages import Payload, Update
from roundelay.stages.uplink import POINT, Uplink

Heard = Mapping[str, Mapping[str, Tensor]]
"""What the server last reconstructed of each client: its increments, by vector. Never changed in place."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An update as guard and fold know it. ``heard`` is what the server holds of its client once it counts, None where
    that stays as it was; who is ``excluded`` has answered, and is not folded.
    """

    update: Update
    heard: Mapping[str, Tensor] | None = None
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Decoder:
    """``lengths`` are those of the uplink's vectors, ``sent`` is what its clients began from, as they decoded it."""

    uplink: Uplink
    lengths: Mapping[str, int]
    dtype: torch.dtype
    sent: Payload
    heard: Heard = field(default_factory=dict)

    def num_bytes(self, update: Update) -> int:
        """Return how many bytes an update had on its way."""
        return update.payload.num_bytes + (self.uplink.skip_bytes if update.silent else 0)

    def decode(self, update: Update) -> Decoded:
        """Return an update decoded, in memory of its own. What is wrong beside its encoding is left to the guard.

        Raises:
            WireError: a vector is no encoding, or the update says that it is none where none may be missing.
        """
        if update.silent:
            return self._silence(update)
        before, heard = self._before(update), dict[str, Tensor]()
        vectors = dict(update.payload.vectors)
        for name, data in vectors.items():
            length = self.lengths.get(name, 1)
            if length == 1 or _is_broken(data):
                continue
            x = self._opened(name, data, length)
            if name in before:
                x = before[name] + x
            heard[name] = x
            vectors[name] = self._point(name, x)
        opened = replace(update, payload=replace(update.payload, vectors=vectors))
        return Decoded(opened, heard if self.uplink.is_heard else None)

    def _before(self, update: Update) -> Mapping[str, Tensor]:
        """Return what both ends go on from."""
        if self.uplink.feedback != "ef21" or update.fresh:
            return {}
        before = self.heard.get(update.task.client, {})
        if not before:
            raise WireError("it goes on from vectors that it has sent before, and none of them was counted here")
        return before

    def _opened(self, name: str, data: Tensor, length: int) -> Tensor:
        codec = self.uplink.codec
        if data.dtype != torch.uint8:
            raise WireError(f"vector {name!r} came as {data.dtype} of shape {tuple(data.shape)}, expected the bytes of "
                            f"{codec}: are its values larger than that codec's numbers?")  # fmt: skip
        try:
            return codec.decode(data, length).to(self.dtype)
        except WireError as error:
            raise WireError(f"vector {name!r}: {error}") from error

    def _point(self, name: str, x: Tensor) -> Tensor:
        return self.sent.vectors[POINT] + x if name == POINT and self.uplink.difference else x

    def _silence(self, update: Update) -> Decoded:
        """Return what the rule makes of a client that sent nothing: as if it had not moved, or had moved as before."""
        payload, uplink, sent = update.payload, self.uplink, self.sent
        if not uplink.triggered:
            raise WireError("it says that it has nothing to send, and this job has no trigger that would let it")
        if payload.vectors or payload.buffers.numel() or payload.integers.numel():
            raise WireError("it says that it has nothing to send, and sent vectors")
        params = sent.vectors[POINT]
        before = self.heard.get(update.task.client, {})
        if uplink.on_silence == "reuse" and POINT in before:
            params = self._point(POINT, before[POINT])
        unmoved = replace(update, payload=Payload({POINT: params}, sent.buffers, sent.integers))
        return Decoded(unmoved, excluded=uplink.on_silence == "exclude")


def _is_broken(data: Tensor) -> bool:
    """Whether these are values that no codec has bytes for, which the guard is to hear of as they are."""
    return data.is_floating_point() and not all_finite(data)

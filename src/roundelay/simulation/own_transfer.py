"""A user's own function carries updates up."""

from dataclasses import replace

import torch

from roundelay import seeds
from roundelay.errors import ConfigError
from roundelay.simulation.delivery import Sent
from roundelay.simulation.network.transfer import Link, Transfer, transferred
from roundelay.trainer import Answer


def carried(transfer: Transfer, answer: Answer, link: Link, seed: int) -> tuple[Answer, Sent]:
    """Send an update's vectors, end to end, by a user's function; its buffers go along untouched.

    Raises:
        ConfigError: they are encoded, or the function returns something else than it must.
    """
    task, payload = answer.update.task, answer.update.payload
    if any(not vector.is_floating_point() for vector in payload.vectors.values()):
        raise ConfigError("Network: transfer takes an update's numbers, and a codec has made bytes of them: leave one "
                          "of them out")  # fmt: skip
    whole = torch.cat(list(payload.vectors.values()))
    generator = seeds.generator(seed, task.round, task.attempt, task.client, "transfer")
    came = transferred(transfer, whole, link, generator)
    parts = torch.split(came.vector, [vector.numel() for vector in payload.vectors.values()])
    vectors = {name: part.to(payload.vectors[name].dtype) for name, part in zip(payload.vectors, parts, strict=True)}
    update = replace(answer.update, payload=replace(payload, vectors=vectors))
    return replace(answer, update=update), Sent(came.bits, came.duration_ns)

"""State dicts in files, and the checkpoint from which a run goes on to the same bits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roundelay.epochs import Epoch
from roundelay.errors import ConfigError, LayoutError
from roundelay.federation import Flight, Version
from roundelay.files import save_atomically
from roundelay.layout import Layout
from roundelay.layout.specs import Kind, Vectors
from roundelay.messages import Memory, Payload, Task
from roundelay.saved import load_saved


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run stands after a round.

    ``best`` is the watched metric's best value so far, NaN before the first. ``flights`` are the tasks under way, each
    with the virtual nanosecond of its arrival. ``memory`` holds each client's, or the number that tells its files on
    disk from later ones.
    ``network`` is what a modelled network goes on from.
    """

    version: Version
    memory: Mapping[str, Memory] | int
    virtual_ns: int
    best: float
    flights: Sequence[tuple[Flight, int]] = ()
    network: Mapping[str, Any] | None = None  # Any: numbers, text, and lists of them


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a state dict that ``torch.load(path, weights_only=True)`` reads."""
    save_atomically(path, lambda file: torch.save(dict(state_dict), file))


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict.

    Raises:
        ConfigError: the file is absent or holds something else.
    """
    state = load_saved(Path(path), "weights")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(
            f"{path} holds no state dict; expected a mapping from names to tensors, as model.state_dict() gives"
        )
    return dict(state)


def save_checkpoint(path: Path, checkpoint: Checkpoint, layout: Layout) -> None:
    version = checkpoint.version
    content = {
        "round": version.number,
        "state": dict(version.state),
        "buffers": version.buffers,
        "integers": version.integers,
        "last": version.last,
        "clip_norm": version.clip_norm,
        "heard": _plain(version.heard),
        "told": None if version.told is None else dict(version.told),
        "steps": list(version.steps),
        "epoch": None if version.epoch is None else _epoch_fields(version.epoch),
        "memory": checkpoint.memory if isinstance(checkpoint.memory, int) else _plain(checkpoint.memory),
        "virtual_ns": checkpoint.virtual_ns,
        "best": checkpoint.best,
        "flights": [
            (_fields(flight.task), flight.version, due_ns, flight.num_bytes) for flight, due_ns in checkpoint.flights
        ],
        "sent": {flight.version: _fields(flight.sent) for flight, _ in checkpoint.flights},
        "network": None if checkpoint.network is None else json.dumps(checkpoint.network),
        "layout": _described(layout),
    }
    save_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, layout: Layout) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        LayoutError: it was written for another model; names the tensor.
        ConfigError: the file is damaged, or is no checkpoint.
    """
    content: dict[str, Any] = load_saved(path, "a checkpoint")  # Any: the mixed dict above
    try:
        checkpoint = _checkpoint(path, content, layout)
        _require_lengths(checkpoint.version.vectors, layout)
        return checkpoint
    except LayoutError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no checkpoint, or a damaged one ({type(error).__name__}: {error}); bring it back from a copy "
            "of the run's folder, or begin the run anew"
        ) from error


def _require_lengths(vectors: Vectors, layout: Layout) -> None:
    for name, vector, kind in (
        ("params", vectors.params, Kind.PARAMETER),
        ("buffers", vectors.buffers, Kind.FLOAT_BUFFER),
        ("integers", vectors.integers, Kind.INTEGER_BUFFER),
    ):
        if not isinstance(vector, Tensor) or vector.shape != (layout.length(kind),):
            raise ValueError(f"its {name} are not the {layout.length(kind)} values of this job's model")


def _checkpoint(path: Path, content: dict[str, Any], layout: Layout) -> Checkpoint:  # Any: the mixed dict above
    for mine, theirs in zip(_described(layout), content["layout"], strict=False):
        if mine != theirs:
            raise LayoutError(f"{path} was written for another model: it has {theirs}, this job's model has {mine}")
    if len(content["layout"]) != len(layout.specs):
        raise LayoutError(f"{path} holds {len(content['layout'])} tensors, this job's model has {len(layout.specs)}")
    version = Version(
        content["round"],
        content["state"],
        content["buffers"],
        content["integers"],
        content["last"],
        content["clip_norm"],
        _epoch(content.get("epoch")),
        content.get("heard", {}),
        content.get("told"),
        tuple(content.get("steps", ())),
    )
    sent = {number: Payload(**fields) for number, fields in content["sent"].items()}
    flights = [
        (Flight(Task(**task), sent[number], number, num_bytes), due_ns)
        for task, number, due_ns, num_bytes in content["flights"]
    ]
    network = None if content.get("network") is None else json.loads(content["network"])
    return Checkpoint(version, content["memory"], content["virtual_ns"], content["best"], flights, network)


def _plain(by_client: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {client: dict(vectors) for client, vectors in by_client.items()}


def _fields(value: Task | Payload) -> dict[str, Any]:  # Any: plain values and tensors
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _epoch_fields(epoch: Epoch) -> dict[str, Any]:  # Any: a text, a number, a list
    return {"when_exhausted": epoch.when_exhausted, "number": epoch.number, "exhausted": sorted(epoch.exhausted)}


def _epoch(kept: Mapping[str, Any] | None) -> Epoch | None:
    return None if kept is None else Epoch(**{**kept, "exhausted": frozenset(kept["exhausted"])})


def _described(layout: Layout) -> list[str]:
    frozen = {spec.name: f" frozen {spec.digest}" for spec in layout.frozen}
    return [f"{s.kind.value} {s.name} {s.shape} {s.dtype}{frozen.get(s.name, '')}" for s in layout.specs]

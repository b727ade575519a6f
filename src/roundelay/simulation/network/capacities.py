"""Devices that were measured: how fast each computes and sends, from a file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roundelay import seeds
from roundelay.errors import DataError
from roundelay.simulation.network.tables import rows_of


@dataclass(frozen=True, slots=True)
class Capacity:
    """One device: how long training takes for a sample, and how fast its link is, where the trace knows."""

    seconds_per_sample: float
    link_bps: float | None = None


FEDSCALE_FACTOR = 3.0
"""FedScale's ``computation`` is a forward pass; it takes three for training."""


def chosen(seed: int, client: str, names: Mapping[str, object], purpose: str) -> str:
    """Return the one of ``names`` that a client of another name stands in for."""
    known = sorted(names)
    return known[int(seeds.uniform(seed, 0, 0, client, purpose) * len(known))]


def read_capacities(path: str | os.PathLike[str]) -> dict[str, Capacity]:
    """Read devices by client: CSV ``client,seconds_per_sample``, or FedScale's fields ``computation`` (milliseconds a
    sample, a forward pass) and ``communication`` (kbit/s) as CSV columns or as JSON, ``{client: {field: number}}``.

    FedScale's own file is a pickle, which could run code and is not read: write it as JSON where it may be trusted.

    Raises:
        DataError: the file is absent or malformed, names no device, or names one twice.
    """
    if Path(path).suffix == ".json":
        entries = _fedscale_json(path)
    elif _has_heading(path, "seconds_per_sample"):
        entries = [(client, (pace, None)) for client, (pace,) in rows_of(path, ("seconds_per_sample",))]
    else:
        found = rows_of(path, ("computation", "communication"))
        entries = [(client, _fedscale(*numbers)) for client, numbers in found]
    devices: dict[str, Capacity] = {}
    for client, (pace, link_bps) in entries:
        if client in devices:
            raise DataError(f"{path}: client {client!r} has two devices")
        if not pace >= 0 or (link_bps is not None and not link_bps > 0):
            raise DataError(f"{path}: client {client!r}: expected a time of at least 0 and a link above 0")
        devices[client] = Capacity(pace, link_bps)
    if not devices:
        raise DataError(f"{path}: it holds no devices")
    return devices


def _has_heading(path: str | os.PathLike[str], name: str) -> bool:
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            return name in lines.readline().strip().split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read it ({error})") from error


def _fedscale_json(path: str | os.PathLike[str]) -> list[tuple[str, tuple[float, float | None]]]:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return [
            (client, _fedscale(float(d["computation"]), float(d["communication"]))) for client, d in document.items()
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        expected = '{"1": {"computation": 31.0, "communication": 5000.0}, ...}'
        raise DataError(f"{path}: expected {expected}, got something else ({error})") from error


def _fedscale(computation_ms: float, communication_kbps: float) -> tuple[float, float | None]:
    return FEDSCALE_FACTOR * computation_ms / 1000, communication_kbps * 1000

"""Where the UEs are. The base station stands at the origin."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from roundelay.errors import ConfigError, DataError
from roundelay.simulation.network.checks import check_number, check_numbers
from roundelay.simulation.network.draws import Floats, client_keys, uniforms
from roundelay.simulation.network.tables import rows_of

MAX_DRAWS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Coordinates of shape (n, 2) on the ground, heights of shape (n,)."""

    xy_m: Floats
    height_m: Floats

    @property
    def distance_m(self) -> Floats:
        distances: Floats = np.hypot(self.xy_m[:, 0], self.xy_m[:, 1])
        return distances


class Placement(Protocol):
    def positions(self, seed: int, clients: Sequence[str]) -> Positions: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Disc:
    """Uniform over a disc, outside of ``min_distance_m``; a large one makes a ring of it."""

    radius_m: float
    min_distance_m: float = 10.0
    ue_height_m: float = 1.5

    def __post_init__(self) -> None:
        check_numbers(self, "min_distance_m", "ue_height_m", least=0)
        check_number(self, "radius_m", above=self.min_distance_m)

    def positions(self, seed: int, clients: Sequence[str]) -> Positions:
        keys = client_keys(seed, clients, "position")
        inner, outer = self.min_distance_m**2, self.radius_m**2
        return _around(np.sqrt(inner + (outer - inner) * uniforms(keys)), uniforms(keys, lane=1), self.ue_height_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    """All at one distance, in directions of their own."""

    radius_m: float
    ue_height_m: float = 1.5

    def __post_init__(self) -> None:
        check_number(self, "radius_m", above=0)
        check_number(self, "ue_height_m", least=0)

    def positions(self, seed: int, clients: Sequence[str]) -> Positions:
        keys = client_keys(seed, clients, "position")
        return _around(np.full(len(keys), float(self.radius_m)), uniforms(keys, lane=1), self.ue_height_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """Uniform over a square with the base station in its middle, outside of ``min_distance_m``."""

    side_m: float
    min_distance_m: float = 10.0
    ue_height_m: float = 1.5

    def __post_init__(self) -> None:
        check_numbers(self, "min_distance_m", "ue_height_m", least=0)
        check_number(self, "side_m", above=2 * self.min_distance_m)

    def positions(self, seed: int, clients: Sequence[str]) -> Positions:
        keys = client_keys(seed, clients, "position")
        xy = np.zeros((len(keys), 2))
        open_rows = np.arange(len(keys))
        for draw in range(MAX_DRAWS):  # at least one in five falls outside of the largest allowed circle
            drawn = np.stack([uniforms(keys[open_rows], draw, lane) for lane in (0, 1)], axis=1)
            xy[open_rows] = self.side_m * (drawn - 0.5)
            open_rows = open_rows[np.hypot(xy[open_rows, 0], xy[open_rows, 1]) < self.min_distance_m]
            if not len(open_rows):
                break
        return Positions(xy, np.full(len(keys), float(self.ue_height_m)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Positioned:
    """Positions from a CSV file: ``client,x_m,y_m`` and, where it differs, ``height_m``.

    Raises:
        DataError: at ``positions``: the file is absent or malformed, or names a client twice.
        ConfigError: at ``positions``: the file lacks a client of the job.
    """

    path: str | os.PathLike[str]
    ue_height_m: float = 1.5

    def __post_init__(self) -> None:
        check_number(self, "ue_height_m", least=0)

    def positions(self, seed: int, clients: Sequence[str]) -> Positions:
        places: dict[str, tuple[float, float, float]] = {}
        for client, (x_m, y_m, *height) in rows_of(self.path, ("x_m", "y_m"), ("height_m",)):
            if client in places:
                raise DataError(f"{self.path}: client {client!r} is placed twice")
            places[client] = x_m, y_m, height[0] if height else self.ue_height_m
        if missing := [client for client in clients if client not in places]:
            raise ConfigError(f"{self.path}: no position for client {missing[0]!r} ({len(missing)} lack one)")
        table = np.array([places[client] for client in clients], dtype=np.float64).reshape(len(clients), 3)
        return Positions(table[:, :2], table[:, 2])


def _around(distance_m: Floats, turn: Floats, height_m: float) -> Positions:
    angle = 2 * np.pi * turn
    xy = distance_m[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Positions(xy, np.full(len(distance_m), float(height_m)))

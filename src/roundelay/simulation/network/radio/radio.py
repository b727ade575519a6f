"""``Radio``, a cell's radio as a job's settings have it, and ``Channel``, what it is to each UE: SNRs and rates.

    SNR = transmit power + gains - path loss - shadowing - walls + fading - noise - margin        in decibels
    noise = -174 dBm/Hz + 10 log10(band) + noise figure of whoever receives

A UE puts its power into the band that it has, so that a narrower one is denser. The base station's power is spread over
its whole band, and a UE's share of the band has its share of the power. The two are therefore two formulas.

A channel is what a cell asks for rates (``bps``, ``band_hz``, ``block_ns``). It knows its clients as rows 0, 1, ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from roundelay.errors import ConfigError
from roundelay.simulation.network.checks import check_choice, check_number, check_numbers, refuse
from roundelay.simulation.network.draws import Floats, Keys, Numbers, client_keys, uniforms
from roundelay.simulation.network.radio.band import bisected_band_hz
from roundelay.simulation.network.radio.fading import Fading, Rayleigh
from roundelay.simulation.network.radio.pathloss import Flags, PathLoss, UrbanMacro
from roundelay.simulation.network.radio.placement import Disc, Placement, Positions
from roundelay.simulation.network.radio.power import FullPower, PowerControl
from roundelay.simulation.network.radio.rates import CqiTable, Narrowing, RateMap
from roundelay.simulation.network.radio.shadowing import shadows

Rows = NDArray[np.int64]
"""Which of a channel's clients: their places in ``Channel.clients``."""

Direction = Literal["up", "down"]

THERMAL_DBM_HZ = -174.0
WALL_DB, INSIDE_DB_M, INSIDE_M = 20.0, 0.5, 25.0
"""TR 38.901, Table 7.4.3-3, for carriers below 6 GHz: a wall, and up to 25 m of rooms behind it."""
INDOOR_SIGMA_DB, INDOOR_CORRELATION_M = 7.0, 7.0


def noise_dbm(band_hz: Floats | float, noise_figure_db: float) -> Floats:
    """Return the noise power in a band, one-sided.

    >>> round(float(noise_dbm(1e6, 5.0)), 3)
    -109.0
    """
    powers: Floats = THERMAL_DBM_HZ + 10 * np.log10(band_hz) + noise_figure_db
    return powers


@dataclass(frozen=True, slots=True, kw_only=True)
class Radio:
    """One cell. ``bandwidth_hz`` is that of each direction; ``overhead`` is the share of it that carries reference
    signals and control, and no bits of ours.

    ``indoor_share`` of the UEs are behind a wall and up to 25 m deep (below 6 GHz); ``margin_db`` is what the
    neighbouring cells' interference raises the noise by. With ``duplex`` "tdd" both directions see one fading, with
    "fdd" each its own. ``downlink_rate`` is for rate maps that differ by direction. With ``whole_band``, a UE spreads
    its power over all of the band that it is given even where it were faster in a part of it: a wide band may then
    carry less than a narrow one, and nothing from the cell's edge.
    """

    path_loss: PathLoss = UrbanMacro()
    placement: Placement = Disc(radius_m=250.0)
    fading: Fading = Rayleigh()
    rate: RateMap = CqiTable()
    downlink_rate: RateMap | None = None
    power_control: PowerControl = FullPower()
    shadowing: bool = True
    carrier_ghz: float = 3.5
    bandwidth_hz: float = 20e6
    overhead: float = 0.0
    ue_power_dbm: float = 23.0
    bs_power_dbm: float = 46.0
    ue_noise_figure_db: float = 9.0
    bs_noise_figure_db: float = 5.0
    ue_gain_dbi: float = 0.0
    bs_gain_dbi: float = 0.0
    margin_db: float = 0.0
    indoor_share: float = 0.0
    duplex: str = "fdd"
    whole_band: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "ue_power_dbm", "bs_power_dbm", "ue_gain_dbi", "bs_gain_dbi")
        check_numbers(self, "ue_noise_figure_db", "bs_noise_figure_db", "margin_db", least=0)
        check_numbers(self, "bandwidth_hz", above=0)
        check_number(self, "carrier_ghz", least=0.5, most=100)
        check_number(self, "overhead", least=0, most=0.99)
        check_number(self, "indoor_share", least=0, most=1)
        check_choice(self, "duplex", "fdd", "tdd")
        for name in ("shadowing", "whole_band"):
            if not isinstance(getattr(self, name), bool):
                refuse(self, name, "true or false")
        if self.indoor_share and self.carrier_ghz > 6:
            raise ConfigError(f"Radio: indoor_share is modelled below 6 GHz, and carrier_ghz = {self.carrier_ghz:g}")

    def channel(self, seed: int, clients: Sequence[str]) -> "Channel":
        """Place the clients and draw what stays with them: line of sight, shadowing, walls.

        Raises:
            ConfigError: a UE stands farther or higher than the path loss is meant for.
        """
        places = self.placement.positions(seed, clients)
        self._check_places(clients, places)
        distance_m = np.maximum(places.distance_m, self.path_loss.min_distance_m)
        drawn = uniforms(client_keys(seed, clients, "line of sight"))
        seen = drawn < self.path_loss.sight(distance_m)
        walls_db = self._walls(seed, clients)
        return Channel(
            radio=self,
            names=tuple(clients),
            distance_m=distance_m,
            line_of_sight=seen,
            path_loss_db=self.path_loss.loss_db(distance_m, places.height_m, self.carrier_ghz, seen),
            wall_loss_db=walls_db,
            shadowing_db=self._shadowing(seed, places.xy_m, seen, walls_db > 0),
            fading_keys=client_keys(seed, clients, "fading"),
        )

    def _check_places(self, clients: Sequence[str], places: Positions) -> None:
        model = self.path_loss
        (lowest, highest), furthest = model.ue_heights_m, model.max_distance_m
        far = places.distance_m > furthest
        wrong = far | (places.height_m < lowest) | (places.height_m > highest)
        if wrong.any():
            n = int(wrong.argmax())
            raise ConfigError(
                f"client {clients[n]!r} is {places.distance_m[n]:g} m away and {places.height_m[n]:g} m high; "
                f"{type(model).__name__} holds up to {furthest:g} m, at heights of {lowest:g} to {highest:g} m"
            )

    def _walls(self, seed: int, clients: Sequence[str]) -> Floats:
        keys = client_keys(seed, clients, "indoors")
        inside = WALL_DB + INSIDE_DB_M * INSIDE_M * uniforms(keys, lane=1)
        return np.where(uniforms(keys) < self.indoor_share, inside, 0.0)

    def _shadowing(self, seed: int, xy_m: Floats, seen: Flags, indoors: Flags) -> Floats:
        values = np.zeros(len(xy_m))
        if not self.shadowing:
            return values
        indoor = INDOOR_SIGMA_DB, INDOOR_CORRELATION_M
        outside = [(s.sigma_db, s.correlation_m) for s in map(self.path_loss.scatter, (True, False))]
        kinds = (("seen", seen & ~indoors, outside[0]), ("hidden", ~seen & ~indoors, outside[1]),
                 ("indoors", indoors, indoor))  # fmt: skip
        for name, which, (sigma_db, correlation_m) in kinds:
            values[which] = sigma_db * shadows(seed, name, xy_m[which], correlation_m)
        return values


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Channel:
    """What the radio is to each of its clients. Arrays have one value a client, in the order of ``names``.

    In the methods, ``clients`` chooses some of them, and ``band_hz`` and ``block`` are one for all or one for each.
    """

    radio: Radio
    names: tuple[str, ...]
    distance_m: Floats
    line_of_sight: Flags
    path_loss_db: Floats
    wall_loss_db: Floats
    shadowing_db: Floats
    fading_keys: Keys
    coupling_loss_db: Floats = field(init=False)  # all that stands between the two amplifiers but fast fading
    _up_hz: Floats = field(init=False, repr=False)  # received power over noise density, without fast fading
    _up_ceiling: Floats = field(init=False, repr=False)  # the SNR that power control allows, without it
    _down: Floats = field(init=False, repr=False)  # the SNR, without it
    _drawn: dict[int, tuple[int, Floats]] = field(init=False, repr=False, default_factory=dict)  # the last block's

    def __post_init__(self) -> None:
        radio = self.radio
        loss_db = self.path_loss_db + self.wall_loss_db + self.shadowing_db - radio.ue_gain_dbi - radio.bs_gain_dbi
        up_db = -loss_db - radio.margin_db - noise_dbm(1.0, radio.bs_noise_figure_db)
        down_db = -loss_db - radio.margin_db - noise_dbm(radio.bandwidth_hz, radio.ue_noise_figure_db)
        density_dbm_hz = radio.power_control.density_dbm_hz(loss_db)
        object.__setattr__(self, "coupling_loss_db", loss_db)
        object.__setattr__(self, "_up_hz", _linear(radio.ue_power_dbm + up_db))
        object.__setattr__(self, "_up_ceiling", _linear(density_dbm_hz + up_db))
        object.__setattr__(self, "_down", _linear(radio.bs_power_dbm + down_db))

    @property
    def block_ns(self) -> int | None:
        """How long a fading block is; None where the channel stands still. Block n begins at n * block_ns."""
        return self.radio.fading.block_ns

    def uplink_snr(self, clients: Rows, band_hz: Floats | float, block: Numbers) -> Floats:
        """Return the linear SNR at the base station of a UE that has ``band_hz`` to itself."""
        snr = np.minimum(self._up_hz[clients] / band_hz, self._up_ceiling[clients])
        return snr * self.gains(clients, block, "up")

    def downlink_snr(self, clients: Rows, block: Numbers) -> Floats:
        """Return the linear SNR at a UE, the same in whatever part of the band."""
        return self._down[clients] * self.gains(clients, block, "down")

    def ue_power_w(self, clients: Rows, band_hz: Floats | float) -> Floats:
        """Return what a UE sends with, in watts, at the antenna's connector."""
        density = self.radio.power_control.density_dbm_hz(self.coupling_loss_db[clients])
        return _linear(np.minimum(self.radio.ue_power_dbm, density + 10 * np.log10(band_hz)) - 30)

    def gains(self, clients: Rows, block: Numbers, direction: Direction) -> Floats:
        """Return fast fading's power gain, of mean one."""
        lane = 1 if direction == "down" and self.radio.duplex == "fdd" else 0
        fading = self.radio.fading
        if not isinstance(block, int):
            return fading.gains(self.fading_keys[clients], block, lane)
        kept = self._drawn.get(lane)  # a cell asks many times a block: what was drawn for all of them is kept
        if kept is not None and kept[0] == block:
            return kept[1][clients]
        if 4 * len(clients) < len(self.names):
            return fading.gains(self.fading_keys[clients], block, lane)
        self._drawn[lane] = block, fading.gains(self.fading_keys, block, lane)
        return self._drawn[lane][1][clients]

    def bps(self, clients: Rows, band_hz: Floats | float, block: int, direction: Direction) -> Floats:
        """Return the bit rate of each client in a band; 0 where the signal is too weak, or the band empty."""
        rate, band = self._rate(direction), np.maximum(band_hz, 0.0)
        used = np.where(band > 0, band, 1.0)
        if direction == "down":
            bits = rate.efficiency(self.downlink_snr(clients, block))
        elif _narrows(rate) and not self.radio.whole_band:
            gains = self.gains(clients, block, "up")
            bits = rate.narrowed(self._up_hz[clients] * gains / used, self._up_ceiling[clients] * gains)
        else:
            bits = rate.efficiency(self.uplink_snr(clients, used, block))
        rates: Floats = band * (1 - self.radio.overhead) * bits
        return rates

    def band_hz(self, clients: Rows, bps: Floats, block: int, direction: Direction) -> Floats:
        """Return the least band in which each client has its rate; infinity where none is wide enough."""
        rate, needed = self._rate(direction), np.asarray(bps, dtype=np.float64) / (1 - self.radio.overhead)
        if direction == "down":
            bits = rate.efficiency(self.downlink_snr(clients, block))
            return np.where(needed <= 0, 0.0, np.divide(needed, bits, out=np.full_like(needed, np.inf), where=bits > 0))
        gains = self.gains(clients, block, "up")
        if isinstance(rate, Narrowing):
            return rate.band_hz(needed, self._up_hz[clients] * gains, self._up_ceiling[clients] * gains)
        return bisected_band_hz(lambda bands: self.bps(clients, bands, block, "up"), bps, self.radio.bandwidth_hz)

    def _rate(self, direction: Direction) -> RateMap:
        if direction not in ("up", "down"):
            raise ConfigError(f"direction must be 'up' or 'down', got {direction!r}")
        return (direction == "down" and self.radio.downlink_rate) or self.radio.rate


def _narrows(rate: RateMap) -> TypeGuard[Narrowing]:
    return _has_methods(type(rate))


@lru_cache
def _has_methods(kind: type) -> bool:
    return issubclass(kind, Narrowing)  # asked at every event: Python looks at each method anew


def _linear(decibels: Floats) -> Floats:
    values: Floats = 10 ** (decibels / 10)
    return values

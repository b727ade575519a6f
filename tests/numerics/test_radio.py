"""What reaches the other side: path loss, noise, power, shadowing and places, against standards and closed forms."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from radios import radio_of
from scipy import stats

from roundelay.components import build, describe, namespace
from roundelay.errors import ConfigError, DataError
from roundelay.simulation.network import availability, devices
from roundelay.simulation.network import radio as room
from roundelay.simulation.network.draws import Floats
from roundelay.simulation.network.radio import (
    Circle,
    CqiTable,
    Disc,
    FullPower,
    LogDistance,
    NoFading,
    OpenLoop,
    Positioned,
    Radio,
    Rayleigh,
    Rician,
    Shannon,
    Square,
    UrbanMacro,
    UrbanMicro,
    macro_36814,
    noise_dbm,
    pathloss,
    pico_36814,
)
from roundelay.simulation.network.radio import radio as radio_file
from roundelay.simulation.network.radio.pathloss import PathLoss
from roundelay.simulation.network.radio.shadowing import shadows

Planting = Callable[[pytest.MonkeyPatch], None]
ONE, BOTH = np.arange(1), np.arange(2)

# ---- path loss ------------------------------------------------------------------------------------------------------

NS3_DISTANCES_M = np.array([10.0, 100.0, 1000.0, 5000.0])
NS3_VECTORS: list[tuple[PathLoss, bool, list[float]]] = [
    (UrbanMacro(), True, [72.9380, 86.2362, 109.7252, 137.6794]),
    (UrbanMacro(), False, [82.5131, 106.1356, 144.7641, 172.0753]),
    (UrbanMicro(), True, [69.8591, 88.4122, 119.3114, 147.2696]),
    (UrbanMicro(), False, [76.7563, 107.9432, 143.1886, 167.8617]),
]
"""ns-3, test suite of three-gpp-propagation-loss-model: 5 GHz, UEs at 1.5 m."""


def losses(model: PathLoss, distance_m: Floats, seen: bool, carrier_ghz: float = 5.0, height_m: float = 1.5) -> Floats:
    n = len(distance_m)
    return model.loss_db(distance_m, np.full(n, height_m), carrier_ghz, np.full(n, seen))


def check_path_loss() -> None:
    """The contract: ns-3's 16 values to 1e-3 dB, and no step at the break point."""
    for model, seen, expected in NS3_VECTORS:
        np.testing.assert_allclose(losses(model, NS3_DISTANCES_M, seen), expected, atol=1e-3)
    for model, bs_m in ((UrbanMacro(), 25), (UrbanMicro(), 10)):
        break_m = 4 * (bs_m - 1) * (1.5 - 1) * 5e9 / 3e8
        around = losses(model, break_m * np.array([1 - 1e-9, 1 + 1e-9]), True)
        assert abs(around[1] - around[0]) < 1e-6
        below, above = (losses(model, break_m * np.array(at), True) for at in ([0.97, 0.99], [1.01, 1.03]))
        assert np.diff(above) / math.log10(1.03 / 1.01) > 39 > 23 > np.diff(below) / math.log10(0.99 / 0.97)
    low = UrbanMicro(bs_height_m=22.5)  # where the formula for hidden links alone would give the smaller loss
    assert losses(low, np.array([10.0]), False, 0.5, 22.5) >= losses(low, np.array([10.0]), True, 0.5, 22.5)


def test_path_loss_is_that_of_ns3() -> None:
    check_path_loss()


def the_exact_speed_of_light(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pathloss, "SPEED_OF_LIGHT_M_S", 299_792_458.0)


def seen_with(change: Callable[..., tuple[object, ...]]) -> Planting:
    seen = pathloss._seen
    return lambda patch: patch.setattr(pathloss, "_seen", lambda *args: seen(*change(*args)))


PATH_LOSSES: dict[str, Planting] = {
    "the exact speed of light": the_exact_speed_of_light,
    "horizontal distance for the slant one": seen_with(lambda d2, d3, *rest: (d2, d2, *rest)),
    "the break point of RMa, with 2 pi for 4": seen_with(lambda d2, d3, *rest: (d2 * 2 / math.pi, d3, *rest)),
    "the carrier in MHz": seen_with(lambda d2, d3, bs, ue, ghz, n: (d2, d3, bs, ue, ghz * 1000, n)),
    "antenna heights above the ground": seen_with(lambda d2, d3, bs, ue, ghz, n: (d2, d3, bs + 1, ue + 1, ghz, n)),
    "distance in km": seen_with(lambda d2, d3, *rest: (d2, d3 / 1000, *rest)),
    "line of sight may be worse than none": lambda patch: patch.setattr(np, "maximum", lambda a, b: b),
}


@pytest.mark.parametrize("plant", PATH_LOSSES.values(), ids=PATH_LOSSES)
def test_the_check_of_path_loss_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_path_loss()


def test_the_optional_formulae_and_those_of_tr_36814() -> None:
    d3 = math.hypot(100, 23.5)
    got = losses(UrbanMacro(optional=True), np.array([100.0]), False, 2.0)
    np.testing.assert_allclose(got, 32.4 + 20 * math.log10(2) + 30 * math.log10(d3))
    got = losses(UrbanMicro(optional=True), np.array([100.0]), False, 2.0)
    np.testing.assert_allclose(got, 32.4 + 20 * math.log10(2) + 31.9 * math.log10(math.hypot(100, 8.5)))
    np.testing.assert_allclose(losses(macro_36814(), np.array([1000.0, 100.0]), False), [128.1, 90.5])
    np.testing.assert_allclose(losses(pico_36814(), np.array([1000.0, 100.0]), False), [140.7, 104.0])
    assert [m.scatter(False).sigma_db for m in (UrbanMacro(), UrbanMicro(), macro_36814(), pico_36814())] == [
        6.0, 7.82, 8.0, 10.0,
    ]  # fmt: skip


def test_the_probability_of_line_of_sight() -> None:
    d = np.array([10.0, 18.0, 36.0, 100.0])
    expected = [1.0, 1.0] + [18 / x + math.exp(-x / 63) * (1 - 18 / x) for x in (36, 100)]
    np.testing.assert_allclose(UrbanMacro().sight(d), expected)
    expected = [1.0, 1.0] + [18 / x + math.exp(-x / 36) * (1 - 18 / x) for x in (36, 100)]
    np.testing.assert_allclose(UrbanMicro().sight(d), expected)
    assert UrbanMicro(line_of_sight="never").sight(d).max() == 0
    assert UrbanMicro(line_of_sight="always").sight(d).min() == 1
    clients = [f"c{n}" for n in range(4000)]
    channel = Radio(placement=Circle(radius_m=100)).channel(1, clients)
    share = float(UrbanMacro().sight(np.array([100.0]))[0])
    assert abs(channel.line_of_sight.mean() - share) < 4.5 * math.sqrt(share * (1 - share) / 4000)


# ---- noise and the link budget --------------------------------------------------------------------------------------


def check_noise() -> None:
    assert abs(noise(1e6, 5.0) + 109.0) < 1e-9
    assert abs(noise(180e3, 5.0) + 116.447) < 1e-3


def noise(band_hz: float, figure_db: float) -> float:
    return float(radio_file.noise_dbm(band_hz, figure_db))


NOISES: dict[str, Planting] = {
    "two-sided density": lambda patch: patch.setattr(radio_file, "THERMAL_DBM_HZ", -174 - 10 * math.log10(2)),
    "a megahertz of 2^20": lambda patch: patch.setattr(
        radio_file, "noise_dbm", lambda b, f: noise_dbm(b * 2**20 / 1e6, f)
    ),
    "the noise figure as a factor": lambda patch: patch.setattr(
        radio_file, "noise_dbm", lambda b, f: noise_dbm(b, 10 * math.log10(f))
    ),
    "the noise figure subtracted": lambda patch: patch.setattr(radio_file, "noise_dbm", lambda b, f: noise_dbm(b, -f)),
}


def test_noise() -> None:
    check_noise()


@pytest.mark.parametrize("plant", NOISES.values(), ids=NOISES)
def test_the_check_of_noise_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_noise()


SANITY = {100: (103.0, 29.0, 16.0), 200: (114.5, 17.5, 4.5), 300: (121.3, 10.7, -2.3), 500: (129.9, 2.1, -10.9)}
SANITY_MBPS = {100: (5.55, 66.0), 200: (3.90, 23.5), 300: (2.41, 7.5), 500: (0.60, 0.0)}


def check_sanity() -> None:
    """The contract: UMa without line of sight at 3.5 GHz, 23 dBm, NF 5 dB, in a share of 1 MHz and in 20 MHz."""
    for distance_m, (loss_db, narrow_db, wide_db) in SANITY.items():
        radio = Radio(
            path_loss=UrbanMacro(line_of_sight="never"), placement=Circle(radius_m=distance_m), shadowing=False,
            fading=NoFading(), rate=CqiTable(), whole_band=True,
        )  # fmt: skip
        channel = radio.channel(0, ["a"])
        np.testing.assert_allclose(channel.path_loss_db, loss_db, atol=0.06)
        for band_hz, snr_db, mbps in zip((1e6, 20e6), (narrow_db, wide_db), SANITY_MBPS[distance_m], strict=True):
            snr = channel.uplink_snr(ONE, band_hz, 0)
            np.testing.assert_allclose(10 * np.log10(snr), snr_db, atol=0.06)
            np.testing.assert_allclose(channel.bps(ONE, band_hz, 0, "up") / 1e6, mbps, rtol=0.011)


def test_the_link_budget_of_known_links() -> None:
    check_sanity()


def power_split_with_the_band(patch: pytest.MonkeyPatch) -> None:
    """The downlink's formula in the uplink: a narrower band is no denser."""
    everywhere = 23 - 10 * math.log10(20e6)
    patch.setattr(FullPower, "density_dbm_hz", lambda self, loss_db: np.full_like(loss_db, everywhere))


def bytes_a_second(patch: pytest.MonkeyPatch) -> None:
    efficiency = CqiTable.efficiency
    patch.setattr(CqiTable, "efficiency", lambda self, snr: efficiency(self, snr) / 8)


def decibels_in_the_table(patch: pytest.MonkeyPatch) -> None:
    efficiency = CqiTable.efficiency
    patch.setattr(CqiTable, "efficiency", lambda self, snr: efficiency(self, 10 * np.log10(snr)))


SANITIES: dict[str, Planting] = {
    "the uplink's power split with the band": power_split_with_the_band,
    "bytes for bits": bytes_a_second,
    "decibels for linear": decibels_in_the_table,
    "the UE's noise figure at the base station": lambda patch: patch.setattr(
        radio_file, "noise_dbm", lambda b, f: noise_dbm(b, 9.0)
    ),
    "amplitude decibels": lambda patch: patch.setattr(radio_file, "_linear", lambda decibels: 10 ** (decibels / 20)),
}


@pytest.mark.parametrize("plant", SANITIES.values(), ids=SANITIES)
def test_the_check_of_the_link_budget_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_sanity()


def check_directions() -> None:
    """The contract: half the band makes the uplink twice as dense, and leaves the downlink as it is."""
    channel = radio_of(10.0, bandwidth_hz=20e6).channel(0, ["a", "b"])
    np.testing.assert_allclose(channel.uplink_snr(BOTH, 20e6, 0), 10.0)
    np.testing.assert_allclose(channel.uplink_snr(BOTH, 10e6, 0), 20.0)
    np.testing.assert_allclose(channel.bps(BOTH, 20e6, 0, "up"), 20e6 * math.log2(11))
    np.testing.assert_allclose(channel.bps(BOTH, 10e6, 0, "up"), 10e6 * math.log2(21))
    np.testing.assert_allclose(channel.bps(BOTH, 20e6, 0, "down"), 20e6 * math.log2(11))
    np.testing.assert_allclose(channel.bps(BOTH, 10e6, 0, "down"), 10e6 * math.log2(11))
    each = channel.bps(BOTH, np.array([0.0, 5e6]), 0, "up")
    np.testing.assert_allclose(each, [0.0, 5e6 * math.log2(41)])


def test_the_uplink_is_limited_by_power_and_the_downlink_shares_it() -> None:
    check_directions()


def downlink_like_uplink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(radio_file.Channel, "downlink_snr", lambda self, rows, block: self.uplink_snr(rows, 10e6, block))


@pytest.mark.parametrize("plant", [power_split_with_the_band, downlink_like_uplink])
def test_the_check_of_directions_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_directions()


def test_gains_margins_walls_and_overhead_count_once_each() -> None:
    radio = radio_of(10.0)
    changed = [
        ({"bs_gain_dbi": 14.0}, 14.0), ({"ue_gain_dbi": -3.0}, -3.0), ({"margin_db": 3.0}, -3.0),
        ({"bs_noise_figure_db": 5.0}, -5.0),
    ]  # fmt: skip
    for change, expected_db in changed:
        channel = Radio(**{**settings(radio), **change}).channel(0, ["a"])
        np.testing.assert_allclose(10 * np.log10(channel.uplink_snr(ONE, 1e6, 0)), 10 + expected_db)
    half = Radio(**{**settings(radio), "overhead": 0.5}).channel(0, ["a"]).bps(ONE, 1e6, 0, "up")
    np.testing.assert_allclose(half, 0.5e6 * math.log2(11))
    clients = [f"c{n}" for n in range(2000)]
    inside = Radio(**{**settings(radio), "indoor_share": 0.8}).channel(0, clients)
    walls_db = inside.wall_loss_db[inside.wall_loss_db > 0]
    assert abs(len(walls_db) / 2000 - 0.8) < 0.04
    assert stats.kstest(walls_db, "uniform", args=(20.0, 12.5)).pvalue > 1e-3
    np.testing.assert_allclose(inside.coupling_loss_db, inside.path_loss_db + inside.wall_loss_db)


def settings(radio: Radio) -> dict[str, object]:
    return {name: getattr(radio, name) for name in Radio.__dataclass_fields__}


def test_open_loop_power_control() -> None:
    densities = OpenLoop(target_dbm=-90.0, alpha=0.8).density_dbm_hz(np.array([100.0, 140.0]))
    np.testing.assert_allclose(densities + 10 * math.log10(180e3), [-10.0, 22.0])
    full = OpenLoop(target_dbm=-90.0, alpha=1.0)
    radio = Radio(**{**settings(radio_of(10.0)), "power_control": full, "ue_power_dbm": 23.0})
    channel = radio.channel(0, ["a"])  # 110 dB of loss: what is aimed at arrives, whatever the band
    for band_hz in (180e3, 1e5):
        received_dbm = 10 * np.log10(channel.ue_power_w(ONE, band_hz)) + 30 - 110
        np.testing.assert_allclose(received_dbm, -90 + 10 * math.log10(band_hz / 180e3))
        snr_db = -90 - (-174 + 10 * math.log10(180e3))
        np.testing.assert_allclose(10 * np.log10(channel.uplink_snr(ONE, band_hz, 0)), snr_db)
    np.testing.assert_allclose(channel.ue_power_w(ONE, 18e6), 10**-0.7)  # no more than it has


# ---- shadowing ------------------------------------------------------------------------------------------------------

POINTS_M = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 37.0], [-60.0, 80.0]])


def check_shadowing(field: Callable[..., Floats] = shadows) -> None:
    """The contract: over many seeds, the covariance of a Gaussian field of correlation exp(-distance / 37 m)."""
    seeds = 1500
    drawn = np.stack([field(seed, "seen", POINTS_M, 37.0) for seed in range(seeds)])
    apart = np.hypot(*(POINTS_M[:, None] - POINTS_M).transpose(2, 0, 1))
    expected = np.exp(-apart / 37.0)
    deviation = np.sqrt((1 + expected**2) / seeds)  # of a sample covariance of Gaussians
    assert np.all(np.abs(drawn.T @ drawn / seeds - expected) < 4.5 * deviation)
    white = np.linalg.solve(np.linalg.cholesky(expected), drawn.T)  # what a Cholesky factor would have been fed
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(drawn.sum(axis=1) / math.sqrt(expected.sum()), "norm").pvalue > 1e-3


def test_shadowing_is_correlated_over_the_ground() -> None:
    check_shadowing()


SHADOWS: dict[str, Callable[..., Floats]] = {
    "each UE for itself": lambda seed, name, xy, d: np.random.default_rng(seed).standard_normal(len(xy)),
    "one shadow for all": lambda seed, name, xy, d: np.full(len(xy), np.random.default_rng(seed).standard_normal()),
    "another distance": lambda seed, name, xy, d: shadows(seed, name, xy, d / 2),
    "another variance": lambda seed, name, xy, d: 1.1 * shadows(seed, name, xy, d),
    "one direction only": lambda seed, name, xy, d: shadows(seed, name, xy * [1, 0], d),
}


@pytest.mark.parametrize("field", SHADOWS.values(), ids=SHADOWS)
def test_the_check_of_shadowing_catches(field: Callable[..., Floats]) -> None:
    with pytest.raises(AssertionError):
        check_shadowing(field)


def test_shadowing_has_the_deviation_of_its_kind_of_link() -> None:
    clients = [f"c{n}" for n in range(4000)]
    channel = Radio(placement=Disc(radius_m=4900.0), indoor_share=0.3).channel(5, clients)
    inside = channel.wall_loss_db > 0
    hidden = ~channel.line_of_sight & ~inside
    for which, sigma_db in ((inside, 7.0), (hidden, 6.0)):
        assert abs(channel.shadowing_db[which].std() / sigma_db - 1) < 0.1  # neighbours are alike, so few are free
        assert abs(channel.shadowing_db[which].mean()) < 0.1 * sigma_db


# ---- places, and who else is there ----------------------------------------------------------------------------------


def test_places_are_uniform() -> None:
    clients = [f"c{n}" for n in range(3000)]
    places = Disc(radius_m=500, min_distance_m=100).positions(2, clients)
    area = (places.distance_m**2 - 100**2) / (500**2 - 100**2)
    assert stats.kstest(area, "uniform").pvalue > 1e-3
    assert stats.kstest(np.arctan2(*places.xy_m.T), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 1e-3
    np.testing.assert_allclose(Circle(radius_m=70).positions(2, clients).distance_m, 70)
    places = Square(side_m=100, min_distance_m=49).positions(2, clients)
    assert places.distance_m.min() >= 49
    assert np.abs(places.xy_m).max() <= 50
    corners = np.abs(places.xy_m).min(axis=1) > 40
    left = (100**2 - math.pi * 49**2) / 4  # of each quarter
    assert abs(corners.mean() - 100 / left) < 0.03


def test_places_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text("client,x_m,y_m,height_m\nb,3,4,2\na,-30,40,1.5\n")
    places = Positioned(path=str(path)).positions(0, ["a", "b"])
    np.testing.assert_array_equal(places.xy_m, [[-30, 40], [3, 4]])
    np.testing.assert_array_equal(places.height_m, [1.5, 2.0])
    with pytest.raises(ConfigError, match=r"no position for client 'c'"):
        Positioned(path=str(path)).positions(0, ["a", "c"])
    for text, message in (
        ("client,x_m\na,1\n", "the heading lacks y_m"),
        ("client,x_m,y_m\na,1,\n", "line 2: y_m: expected a number, got ''"),
        ("client,x_m,y_m\na,nan,1\n", "x_m: expected a number"),
        ("client,x_m,y_m\na,1,1\na,1,1\n", "client 'a' is placed twice"),
        ("client,x_m,y_m\n,1,1\n", "line 2: no client is named"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Positioned(path=str(path)).positions(0, ["a"])
    with pytest.raises(DataError, match="cannot read it"):
        Positioned(path=str(tmp_path / "none.csv")).positions(0, ["a"])


RADIOS = [
    Radio(placement=Square(side_m=900.0), indoor_share=0.5, fading=Rician(), rate=Shannon()),
    Radio(path_loss=UrbanMicro(), fading=Rayleigh(), power_control=OpenLoop()),
]


def check_company(radio: Radio) -> None:
    """The contract: a UE's channel is the same to the bit whoever else is in the cell, and another for another seed."""
    clients = [f"c{n}" for n in range(700)]
    everybody = radio.channel(4, clients)
    for some in (clients[123:124], ["newcomer", *reversed(clients[::3])]):
        alone = radio.channel(4, some)
        rows = np.array([clients.index(c) for c in some if c in clients])
        own = np.arange(len(some) - len(rows), len(some))
        for name in ("distance_m", "line_of_sight", "path_loss_db", "wall_loss_db", "shadowing_db", "coupling_loss_db"):
            np.testing.assert_array_equal(getattr(alone, name)[own], getattr(everybody, name)[rows], err_msg=name)
        for direction in ("up", "down"):
            np.testing.assert_array_equal(
                alone.bps(own, 1e5, 17, direction), everybody.bps(np.arange(700), 1e5, 17, direction)[rows]
            )
    assert np.all(radio.channel(5, clients).distance_m != everybody.distance_m)


@pytest.mark.parametrize("radio", RADIOS, ids=["macro", "micro"])
def test_a_ues_channel_does_not_hang_on_who_else_is_there(radio: Radio) -> None:
    check_company(radio)


def shadows_by_cholesky(patch: pytest.MonkeyPatch) -> None:
    def field(seed: int, name: str, xy_m: Floats, correlation_m: float) -> Floats:
        apart = np.hypot(*(xy_m[:, None] - xy_m).transpose(2, 0, 1))
        factor = np.linalg.cholesky(np.exp(-apart / correlation_m) + 1e-9 * np.eye(len(xy_m)))
        return factor @ np.random.default_rng(seed).standard_normal(len(xy_m))

    patch.setattr(radio_file, "shadows", field)


def fading_from_one_stream(patch: pytest.MonkeyPatch) -> None:
    for kind in (Rayleigh, Rician):
        patch.setattr(kind, "gains", lambda self, keys, block, lane: np.random.default_rng(block).random(len(keys)))


@pytest.mark.parametrize("plant", [shadows_by_cholesky, fading_from_one_stream])
@pytest.mark.parametrize("radio", RADIOS, ids=["macro", "micro"])
def test_the_check_of_company_catches(plant: Planting, radio: Radio, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_company(radio)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_every_part_can_be_written_down_and_made_again() -> None:
    known = namespace(room)
    for radio in (*RADIOS, Radio(path_loss=macro_36814()), radio_of(3.0)):
        assert build(describe(radio), known, "radio") == radio
    table = {"use": "radio", "path_loss": {"use": "macro_36814"}, "placement": {"use": "disc", "radius_m": 500}}
    assert build(table, known, "radio").path_loss == macro_36814()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Radio(bandwidth_hz=0), "Radio: bandwidth_hz must be above 0, got 0"),
        (lambda: Radio(carrier_ghz=3500), "Radio: carrier_ghz must be at least 0.5 and at most 100, got 3500"),
        (lambda: Radio(bs_power_dbm=math.nan), "Radio: bs_power_dbm must be a number, got nan"),
        (lambda: Radio(shadowing="yes"), "Radio: shadowing must be true or false, got 'yes'"),
        (lambda: Radio(duplex="half"), "Radio: duplex must be one of 'fdd', 'tdd', got 'half'"),
        (lambda: Radio(indoor_share=0.5, carrier_ghz=28), "indoor_share is modelled below 6 GHz"),
        (lambda: UrbanMacro(line_of_sight="no"), "UrbanMacro: line_of_sight must be one of 'drawn', 'always', 'never'"),
        (lambda: Disc(radius_m=5), "Disc: radius_m must be above 10, got 5"),
        (lambda: Square(side_m=20), "Square: side_m must be above 20, got 20"),
        (lambda: Rayleigh(coherence_time_s=0), "Rayleigh: coherence_time_s must be at least 1e-09, got 0"),
        (lambda: LogDistance(loss_1km_db=1, slope_db=True), "LogDistance: slope_db must be a number, got True"),
        (lambda: OpenLoop(alpha=1.1), "OpenLoop: alpha must be at least 0 and at most 1, got 1.1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_ues_out_of_a_models_reach_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"client 'a' is 6000 m away .* UrbanMacro holds up to 5000 m"):
        Radio(placement=Circle(radius_m=6000.0)).channel(0, ["a"])
    with pytest.raises(ConfigError, match=r"20 m high; UrbanMacro .* at heights of 1.5 to 13 m"):
        Radio(placement=Disc(radius_m=300.0, ue_height_m=20.0)).channel(0, ["a"])
    near = Radio(path_loss=macro_36814(), placement=Circle(radius_m=5.0)).channel(0, ["a"])
    np.testing.assert_array_equal(near.distance_m, [35.0])
    with pytest.raises(ConfigError, match="direction must be 'up' or 'down', got 'uplink'"):
        near.bps(ONE, 1e6, 0, "uplink")  # type: ignore[arg-type]


def test_the_page_on_the_radio_shows_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "radio.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(block, {})
    assert len(capsys.readouterr().out.split("]")) == 4  # three vectors
    for module in (room, devices, availability):
        missing = [name for name in module.__all__ if f"`{name}" not in page and name != "Radio"]
        assert not missing

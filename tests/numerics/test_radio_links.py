"""What a signal-to-noise ratio comes to: rates, fading, bands, packets; against closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from radios import radio_of
from scipy import special, stats

from roundelay.errors import ConfigError
from roundelay.simulation.network.draws import Floats, client_keys, exponentials
from roundelay.simulation.network.radio import (
    ConstantErrors,
    CqiTable,
    Direction,
    Gap,
    Radio,
    RateMap,
    Rayleigh,
    Rician,
    Shannon,
    Truncated,
    Waterfall,
    outage_probability,
    packets,
    rates,
)
from roundelay.simulation.network.radio import band as band_file
from roundelay.simulation.network.radio.band import lambert_excess, shannon_band_hz
from roundelay.simulation.network.radio.fading import NS
from roundelay.simulation.network.radio.rates import CQI_TABLE, LTE_THRESHOLDS_DB, MCS_TABLE, NR_THRESHOLDS_DB

Planting = Callable[[pytest.MonkeyPatch], None]
CLIENTS = [f"c{n}" for n in range(2000)]
DIRECTIONS: tuple[Direction, ...] = ("up", "down")
EVERYBODY = np.arange(len(CLIENTS))

# ---- rate maps ------------------------------------------------------------------------------------------------------

CQI_PRINTED = (
    0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152,
    5.5547,
)  # fmt: skip
MCS_PRINTED = (
    0.2344, 0.3066, 0.3770, 0.4902, 0.6016, 0.7402, 0.8770, 1.0273, 1.1758, 1.3262, 1.3281, 1.4766, 1.6953, 1.9141,
    2.1602, 2.4063, 2.5703, 2.5664, 2.7305, 3.0293, 3.3223, 3.6094, 3.9023, 4.2129, 4.5234, 4.8164, 5.1152, 5.3320,
    5.5547,
)  # fmt: skip


def check_tables() -> None:
    for table, printed in ((rates.CQI_TABLE, CQI_PRINTED), (rates.MCS_TABLE, MCS_PRINTED)):
        half_up = [math.floor(rates.efficiency(*row) * 1e4 + 0.5) / 1e4 for row in table]
        assert half_up == list(printed)
    assert len(LTE_THRESHOLDS_DB) == 15
    assert len(NR_THRESHOLDS_DB) == 11


def test_the_tables_are_those_of_ts_38214() -> None:
    check_tables()


TABLES: dict[str, Planting] = {
    "a typing error": lambda patch: patch.setattr(rates, "MCS_TABLE", (*MCS_TABLE[:15], (4, 631), *MCS_TABLE[16:])),
    "a dropped row": lambda patch: patch.setattr(rates, "MCS_TABLE", (*MCS_TABLE[:17], *MCS_TABLE[18:])),
    "rates of 1000": lambda patch: patch.setattr(rates, "efficiency", lambda bits, rate: bits * rate / 1000),
}


@pytest.mark.parametrize("plant", TABLES.values(), ids=TABLES)
def test_the_check_of_tables_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_tables()


def linear(*decibels: float) -> Floats:
    return 10 ** (np.array(decibels) / 10)


def test_rate_maps_at_known_ratios() -> None:
    np.testing.assert_allclose(Shannon().efficiency(np.array([0.0, 1.0, 3.0, 1023.0])), [0, 1, 2, 10])
    np.testing.assert_allclose(Gap(gap_db=10 * math.log10(2)).efficiency(np.array([2.0, 6.0, 1e9])), [1, 2, 5.5547])
    got = Truncated().efficiency(linear(-10.01, -9.99, 40.0))
    np.testing.assert_allclose(got, [0.0, 0.4 * math.log2(1 + 10**-0.999), 2.0])
    got = Truncated(attenuation=0.6, max_efficiency=4.4).efficiency(linear(10.0, 40.0))
    np.testing.assert_allclose(got, [0.6 * math.log2(11), 4.4])
    got = CqiTable().efficiency(linear(-6.8, -6.6, 0.21, 22.69, 22.71, 99))
    np.testing.assert_allclose(got, [0, *(rates.efficiency(*CQI_TABLE[n]) for n in (0, 3, 13, 14, 14))])
    got = CqiTable(thresholds="nr").efficiency(linear(-2.5, -2.4, 18.3, 18.4, 99))
    np.testing.assert_allclose(got, [0, *(rates.efficiency(*CQI_TABLE[n]) for n in (3, 12, 13, 13))])
    np.testing.assert_allclose(rates.gap_db_of(5e-5), 10 * math.log10(5.53), atol=0.01)


def test_no_link_exceeds_shannon_and_all_ascend() -> None:
    snr = linear(*np.linspace(-30, 50, 4001))
    shannon = Shannon().efficiency(snr)
    for rate in (
        Gap(),
        Truncated(),
        Truncated(attenuation=0.6, max_efficiency=4.4),
        CqiTable(),
        CqiTable(thresholds="nr"),
    ):
        got = rate.efficiency(snr)
        assert np.all(got <= shannon), rate
        assert np.all(np.diff(got) >= 0), rate


MAPS = [
    Shannon(), Gap(), Truncated(), Truncated(attenuation=0.6, max_efficiency=4.4, min_snr_db=-2.0), CqiTable(),
    CqiTable(thresholds="nr"),
]  # fmt: skip
SNR = linear(*np.linspace(-25, 35, 241))
CEILINGS = (math.inf, 30.0, 1.0, 0.25)


def check_narrowing() -> None:
    """The contract: the rate is that of the best part of the band, by trying many, and more band is never slower."""
    shares = np.concatenate([[1.0], 10 ** -np.linspace(0, 4, 4001)])
    for rate in MAPS:
        for most in CEILINGS:
            ceiling = np.full_like(SNR, most)
            got = rate.narrowed(SNR, ceiling)
            tried = shares * rate.efficiency(np.minimum(SNR[:, None] / shares, most))
            np.testing.assert_allclose(got, tried.max(axis=1), rtol=3e-3, err_msg=f"{rate} {most}")
            assert np.all(got >= tried.max(axis=1) * (1 - 1e-12)), (rate, most)
            bands_hz = 1e6 / SNR[::-1]  # in descending order of SNR, so ascending
            assert np.all(np.diff(bands_hz * rate.narrowed(1e6 / bands_hz, ceiling)) >= -1e-9), (rate, most)


def check_inverse() -> None:
    """The contract: a rate fits into the band that it is said to need, and into none that is smaller."""
    rng = np.random.default_rng(0)
    snr_hz = 10 ** rng.uniform(4, 9, 400)
    for rate in MAPS:
        for most in CEILINGS:
            ceiling = np.full_like(snr_hz, most)
            wanted = 10 ** rng.uniform(3, 7, 400)
            bands = rate.band_hz(wanted, snr_hz, ceiling)
            within = np.isfinite(bands)
            carried = bands[within] * rate.narrowed(snr_hz[within] / bands[within], ceiling[within])
            np.testing.assert_allclose(carried, wanted[within], rtol=1e-9)
            for share in (0.999, 0.5):
                less = bands[within] * share
                assert np.all(less * rate.narrowed(snr_hz[within] / less, ceiling[within]) < wanted[within])
            widest = 1e15 * rate.narrowed(snr_hz / 1e15, ceiling)
            np.testing.assert_array_equal(within, widest >= wanted * (1 - 1e-12))
            assert np.all(rate.band_hz(np.zeros(400), snr_hz, ceiling) == 0)


def test_a_ue_uses_the_best_part_of_its_band() -> None:
    check_narrowing()


def test_the_band_that_a_rate_needs_under_any_rate_map() -> None:
    check_inverse()


def the_highest_row(patch: pytest.MonkeyPatch) -> None:
    for table in (rates._LTE, rates._NR):
        slopes = np.zeros_like(table.slopes)
        for row in range(len(table.thresholds)):
            slopes[row, row + 1 :] = table.steps[-1] / table.thresholds[-1]
        changed = rates._Table(table.thresholds, table.steps, slopes)
        patch.setattr(rates, "_LTE" if table is rates._LTE else "_NR", changed)


def narrowed_beyond_the_ceiling(patch: pytest.MonkeyPatch) -> None:
    for kind in (Truncated, CqiTable):
        right = kind.narrowed
        patch.setattr(
            kind, "narrowed", lambda self, snr, ceiling, right=right: right(self, snr, np.full_like(snr, math.inf))
        )


def the_whole_band(patch: pytest.MonkeyPatch) -> None:
    for kind in (Truncated, CqiTable):
        patch.setattr(kind, "narrowed", lambda self, snr, ceiling: self.efficiency(np.minimum(snr, ceiling)))


@pytest.mark.parametrize("plant", [the_highest_row, narrowed_beyond_the_ceiling, the_whole_band])
def test_the_check_of_narrowing_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_narrowing()


def without_the_gap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Gap, "band_hz", Shannon.band_hz)


def without_the_ceiling(patch: pytest.MonkeyPatch) -> None:
    right = CqiTable.band_hz
    patch.setattr(
        CqiTable,
        "band_hz",
        lambda self, bps, snr_hz, ceiling: right(self, bps, snr_hz, np.full_like(ceiling, math.inf)),
    )


@pytest.mark.parametrize("plant", [without_the_gap, without_the_ceiling])
def test_the_check_of_the_inverse_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_inverse()


class Half:
    """A user's own rate map, which knows of nothing but efficiencies."""

    def efficiency(self, snr: Floats) -> Floats:
        return 0.5 * Shannon().efficiency(snr)


@pytest.mark.parametrize("rate", [*MAPS, Half()], ids=lambda rate: type(rate).__name__)
def test_a_channel_answers_for_both_directions_and_any_rate_map(rate: RateMap) -> None:
    radio = radio_of(5.0, fading=Rayleigh(), rate=rate)
    radio = Radio(**{**{name: getattr(radio, name) for name in Radio.__dataclass_fields__}, "overhead": 0.25})
    channel = radio.channel(1, CLIENTS)
    for direction in DIRECTIONS:
        wanted = np.full(len(CLIENTS), 2e5)
        bands = channel.band_hz(EVERYBODY, wanted, 2, direction)
        within = np.isfinite(bands)
        assert within.mean() > 0.5
        np.testing.assert_allclose(channel.bps(EVERYBODY[within], bands[within], 2, direction), 2e5, rtol=1e-8)
        assert np.all(channel.bps(EVERYBODY[within], bands[within] * 0.99, 2, direction) < 2e5)
        assert np.all(channel.band_hz(EVERYBODY, 0 * wanted, 2, direction) == 0)


def test_what_a_channel_keeps_of_a_block_changes_nothing() -> None:
    """It is asked for some, for all and for some again, in several blocks, forwards and backwards."""
    radio = radio_of(10.0, fading=Rician())
    kept, few = radio.channel(1, CLIENTS), np.array([7, 3, 1999])
    for block in (0, 1, 0, 5, 5, 1):
        for direction in DIRECTIONS:
            fresh = radio.channel(1, CLIENTS).bps(few, 1e5, block, direction)
            np.testing.assert_array_equal(kept.bps(few, 1e5, block, direction), fresh)
            np.testing.assert_array_equal(kept.bps(EVERYBODY, 1e5, block, direction)[few], fresh)
            np.testing.assert_array_equal(kept.bps(few, 1e5, block, direction), fresh)


# ---- fading ---------------------------------------------------------------------------------------------------------


def bps_of_blocks(radio: Radio, num_blocks: int, num_clients: int = 2000) -> Floats:
    channel = radio.channel(1, CLIENTS[:num_clients])
    return np.stack([channel.bps(EVERYBODY[:num_clients], 1e6, block, "up") for block in range(num_blocks)])


def ergodic(mean_snr: float) -> float:
    return math.log2(math.e) * math.exp(1 / mean_snr) * float(special.exp1(1 / mean_snr))


def check_ergodic() -> None:
    """The contract: Shannon's mean over Rayleigh fading, log2(e) e^(1/g) E1(1/g), to 1 %."""
    for snr_db, expected in ((0.0, 0.8603), (10.0, 2.9065), (20.0, 5.8840)):
        assert abs(ergodic(10 ** (snr_db / 10)) - expected) < 1e-4
        got = bps_of_blocks(radio_of(snr_db, fading=Rayleigh()), 200).mean() / 1e6
        assert abs(got / expected - 1) < 0.01


def check_outage() -> None:
    """The contract: P[R > B log2(1 + g X)] = 1 - exp(-(2^(R/B) - 1)/g), and so often a block is worse."""
    outage = float(packets.outage_probability(2e6, 1e6, np.array([10.0]))[0])
    assert abs(outage - 0.2592) < 1e-4
    worse = np.mean(bps_of_blocks(radio_of(10.0, fading=Rayleigh()), 100) < 2e6)
    assert abs(worse - outage) < 4.5 * math.sqrt(outage * (1 - outage) / 200_000)


def test_the_mean_rate_under_rayleigh_fading() -> None:
    check_ergodic()


def test_outage() -> None:
    check_outage()


def amplitude(patch: pytest.MonkeyPatch) -> None:
    gains = Rayleigh.gains
    patch.setattr(Rayleigh, "gains", lambda self, keys, block, lane: np.sqrt(gains(self, keys, block, lane)))


def mean_two(patch: pytest.MonkeyPatch) -> None:
    gains = Rayleigh.gains
    patch.setattr(Rayleigh, "gains", lambda self, keys, block, lane: 2 * gains(self, keys, block, lane))


def same_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rayleigh, "gains", lambda self, keys, block, lane: np.full(len(keys), exponentials(keys[:1], 0)[0]))


def nats(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shannon, "efficiency", lambda self, snr: np.log1p(snr))


def in_decibels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shannon, "efficiency", lambda self, snr: np.log2(1 + np.maximum(10 * np.log10(snr), 0)))


def two_sided(patch: pytest.MonkeyPatch) -> None:
    """Noise of N0/2 in the whole band."""
    patch.setattr("roundelay.simulation.network.radio.radio.THERMAL_DBM_HZ", -177.01)


@pytest.mark.parametrize("plant", [amplitude, mean_two, same_for_ever, nats, in_decibels, two_sided])
def test_the_check_of_mean_rates_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_ergodic()


def e_for_two(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packets, "outage_probability", lambda rate, band, snr: -np.expm1(-np.expm1(rate / band) / snr))


def rate_in_bytes(patch: pytest.MonkeyPatch) -> None:
    whole = outage_probability
    patch.setattr(packets, "outage_probability", lambda rate, band, snr: whole(rate / 8, band, snr))


@pytest.mark.parametrize("plant", [e_for_two, rate_in_bytes, amplitude, nats])
def test_the_check_of_outage_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_outage()


def test_gains_have_their_distributions() -> None:
    keys = client_keys(2, CLIENTS, "fading")
    assert stats.kstest(Rayleigh().gains(keys, 3, 0), "expon").pvalue > 1e-3
    for k_db in (-20.0, 0.0, 9.0):
        k = 10 ** (k_db / 10)
        gains = np.concatenate([Rician(k_db=k_db).gains(keys, block, 1) for block in range(50)])
        variance = (1 + 2 * k) / (1 + k) ** 2
        assert abs(gains.mean() - 1) < 4.5 * math.sqrt(variance / len(gains))
        assert stats.kstest(2 * (k + 1) * gains, "ncx2", args=(2, 2 * k)).pvalue > 1e-3
    assert Rician(k_db=90.0).gains(keys, 3, 0).std() < 1e-3


def test_directions_fade_apart_or_together_as_the_duplex_has_it() -> None:
    fdd = radio_of(10.0, fading=Rayleigh())
    tdd = Radio(**{**{name: getattr(fdd, name) for name in Radio.__dataclass_fields__}, "duplex": "tdd"})
    together, apart = (radio.channel(1, CLIENTS) for radio in (tdd, fdd))
    both = [together.gains(EVERYBODY, 4, direction) for direction in ("up", "down")]
    np.testing.assert_array_equal(*both)
    both = [apart.gains(EVERYBODY, 4, direction) for direction in ("up", "down")]
    assert abs(np.corrcoef(both)[0, 1]) < 4.5 / math.sqrt(len(CLIENTS))
    np.testing.assert_array_equal(both[0], together.gains(EVERYBODY, 4, "up"))


def check_transfer() -> None:
    """The contract: 5 Mbit over 1 MHz at 10 dB, with blocks of 5 ms, take about S / E[R] = 1.7203 s."""
    radio = radio_of(10.0, fading=Rayleigh(coherence_time_s=0.005))
    blocks = bps_of_blocks(radio, 600, num_clients=300)
    block_s = (radio.fading.block_ns or 0) / NS
    sent = np.cumsum(blocks * block_s, axis=0)
    whole = np.argmax(sent >= 5e6, axis=0)  # the block in which the last bit goes
    before = sent[whole, np.arange(300)] - blocks[whole, np.arange(300)] * block_s
    times_s = whole * block_s + (5e6 - before) / blocks[whole, np.arange(300)]
    expected = 5e6 / (1e6 * ergodic(10.0))
    assert abs(expected - 1.7203) < 1e-4
    assert abs(times_s.mean() / expected - 1) < 0.01
    assert times_s.std() < 0.1  # hundreds of blocks even each other out


def test_a_transfer_over_many_blocks() -> None:
    check_transfer()


def bytes_for_bits(patch: pytest.MonkeyPatch) -> None:
    efficiency = Shannon.efficiency
    patch.setattr(Shannon, "efficiency", lambda self, snr: efficiency(self, snr) / 8)


def mebihertz(patch: pytest.MonkeyPatch) -> None:
    efficiency = Shannon.efficiency
    patch.setattr(Shannon, "efficiency", lambda self, snr: efficiency(self, snr) * 2**20 / 1e6)


def block_in_ms(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rayleigh, "block_ns", property(lambda self: round(self.coherence_time_s * 1e6)))


def one_block_for_ever(patch: pytest.MonkeyPatch) -> None:
    gains = Rayleigh.gains
    patch.setattr(Rayleigh, "gains", lambda self, keys, block, lane: gains(self, keys, 0, lane))


@pytest.mark.parametrize("plant", [bytes_for_bits, mebihertz, block_in_ms, one_block_for_ever, nats])
def test_the_check_of_transfers_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, FloatingPointError, RuntimeWarning)):
        check_transfer()


# ---- the band that a rate needs -------------------------------------------------------------------------------------


def bisected(rate_bps: float, snr_hz: float) -> float:
    low, high = 0.0, 1.0
    while high * math.log2(1 + snr_hz / high) < rate_bps:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.log2(1 + snr_hz / middle) < rate_bps else (low, middle)
    return high


def check_band() -> None:
    """The contract: Lambert's W gives the band that bisection gives, to 1e-9."""
    rng = np.random.default_rng(0)
    snr_hz = 10 ** rng.uniform(3, 11, 300)
    rate_bps = snr_hz / math.log(2) * np.concatenate([rng.uniform(1e-5, 0.999, 200), 10 ** rng.uniform(-9, -5, 100)])
    expected = [bisected(rate, snr) for rate, snr in zip(rate_bps.tolist(), snr_hz.tolist(), strict=True)]
    np.testing.assert_allclose(band_file.shannon_band_hz(rate_bps, snr_hz), expected, rtol=1e-9)


def test_the_band_of_a_rate_is_that_of_bisection() -> None:
    check_band()
    channel = radio_of(10.0, fading=Rayleigh()).channel(1, CLIENTS)
    bands = channel.band_hz(EVERYBODY, np.full(len(CLIENTS), 5e5), 3, "up")
    reached = np.isfinite(bands)
    assert 0.9 < reached.mean() < 1
    np.testing.assert_allclose(channel.bps(EVERYBODY[reached], bands[reached], 3, "up"), 5e5, rtol=1e-9)


BANDS: dict[str, Planting] = {
    "the other branch of W": lambda patch: patch.setattr(band_file, "lambert_excess", lambda g: 2 * (1 - g)),
    "nats": lambda patch: patch.setattr(
        band_file, "shannon_band_hz", lambda rate, snr: shannon_band_hz(rate / math.log(2), snr)
    ),
    "bytes": lambda patch: patch.setattr(
        band_file, "shannon_band_hz", lambda rate, snr: shannon_band_hz(rate / 8, snr)
    ),
    "one step of Newton's": lambda patch: patch.setattr(band_file, "_STEPS", 1),
}


@pytest.mark.parametrize("plant", BANDS.values(), ids=BANDS)
def test_the_check_of_bands_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_band()


def test_lamberts_w_and_its_ends() -> None:
    g = np.concatenate([10.0 ** -np.arange(1, 300, 7), np.linspace(0.01, 0.99, 99)])
    np.testing.assert_allclose(lambert_excess(g), -special.lambertw(-g * np.exp(-g), -1).real - g, rtol=1e-9)
    near = np.array([1e-3, 1e-6, 1e-9])  # towards the branch point, t = 2 (1 - g) + O((1 - g)^2)
    np.testing.assert_allclose(lambert_excess(1 - near), 2 * near, rtol=2e-3)
    reachable = 1e6 / math.log(2)
    got = shannon_band_hz(
        np.array([0.0, 0.999 * reachable, reachable, 2 * reachable, 1.0]), np.array([1e6] * 4 + [0.0])
    )
    assert got[0] == 0
    assert got[1] > 1e8
    assert list(got[2:]) == [math.inf] * 3


# ---- packets --------------------------------------------------------------------------------------------------------


def check_waterfall() -> None:
    """The contract: at 10 dB and a threshold of 0.023 dB, q = .2342, and so many packets are lost under fading."""
    model = Waterfall()
    closed = float(model.mean_probability(np.array([10.0]))[0])
    assert abs(closed - 0.2342) < 1e-4
    for mean_snr in (0.1, 1.0, 10.0, 1000.0):
        z = 2 * math.sqrt(10**0.0023 / mean_snr)
        np.testing.assert_allclose(model.mean_probability(np.array([mean_snr])), 1 - z * special.k1(z), rtol=1e-6)
    gains = np.concatenate([exponentials(client_keys(1, CLIENTS, "fading"), block) for block in range(100)])
    assert abs(model.probability(10 * gains).mean() - closed) < 0.004
    np.testing.assert_array_equal(model.probability(np.array([0.0, np.inf])), [1.0, 0.0])


def test_packets_lost_under_rayleigh_fading() -> None:
    check_waterfall()


def threshold_as_linear(patch: pytest.MonkeyPatch) -> None:
    lost = Waterfall.mean_probability
    low = Waterfall(threshold_db=10 * math.log10(0.023))
    patch.setattr(Waterfall, "mean_probability", lambda self, snr: lost(low, snr))


def k0_for_k1(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(packets.torch.special, "modified_bessel_k1", packets.torch.special.modified_bessel_k0)


def ratio_inverted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Waterfall, "probability", lambda self, snr: -np.expm1(-snr / 10 ** (self.threshold_db / 10)))


@pytest.mark.parametrize("plant", [threshold_as_linear, k0_for_k1, ratio_inverted])
def test_the_check_of_packets_catches(plant: Planting, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_waterfall()


def test_a_loss_that_does_not_depend_on_the_channel() -> None:
    with pytest.raises(ConfigError, match="nothing would ever arrive"):
        ConstantErrors(loss=1.0)
    np.testing.assert_array_equal(ConstantErrors(loss=0.25).probability(np.array([0.1, 10.0])), [0.25, 0.25])

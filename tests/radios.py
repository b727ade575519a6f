"""Radios of known signal-to-noise ratio, for several tests."""

import math

from roundelay.simulation.network.radio import Circle, Fading, LogDistance, NoFading, Radio, RateMap, Shannon

LOSS_DB = 110.0
STILL, SHANNON = NoFading(), Shannon()


def radio_of(snr_db: float, bandwidth_hz: float = 1e6, fading: Fading = STILL, rate: RateMap = SHANNON) -> Radio:
    """Return a radio whose uplink has this mean SNR in its whole band, for every UE; the downlink has it too."""
    noise_dbm = -174 + 10 * math.log10(bandwidth_hz)
    power_dbm = snr_db + LOSS_DB + noise_dbm
    return Radio(
        path_loss=LogDistance(loss_1km_db=LOSS_DB, slope_db=37.6), placement=Circle(radius_m=1000.0), fading=fading,
        rate=rate, shadowing=False, bandwidth_hz=bandwidth_hz, ue_power_dbm=power_dbm, bs_power_dbm=power_dbm,
        ue_noise_figure_db=0.0, bs_noise_figure_db=0.0,
    )  # fmt: skip

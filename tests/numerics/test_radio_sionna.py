"""The radio beside Sionna's, which others maintain; skipped where the extra ``sionna`` is not installed."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roundelay.simulation.network.radio import UrbanMacro, UrbanMicro, rates
from roundelay.simulation.network.radio.pathloss import PathLoss

pytestmark = [
    pytest.mark.skipif(find_spec("sionna") is None, reason="needs Sionna to compare with (pip install sionna-no-rt)"),
    pytest.mark.filterwarnings("default"),  # of another project's own imports
]

DISTANCES_M = np.array([20.0, 60.0, 100.0, 300.0, 1000.0, 4000.0])
CARRIERS_GHZ = (0.8, 3.5, 28.0)


def scenario_of(model: PathLoss, carrier_ghz: float, seen: bool) -> Any:  # Any: of a package that may not be there
    from sionna.phy.channel.tr38901 import PanelArray, umi_scenario
    from sionna.phy.channel.tr38901.uma_scenario import UMaScenario

    antenna = PanelArray(
        num_rows_per_panel=1, num_cols_per_panel=1, polarization="single", polarization_type="V",
        antenna_pattern="omni", carrier_frequency=carrier_ghz * 1e9,
    )  # fmt: skip
    kind = UMaScenario if isinstance(model, UrbanMacro) else umi_scenario.UMiScenario
    scenario = kind(carrier_ghz * 1e9, "low", antenna, antenna, "uplink", precision="double", device="cpu")
    n, double = len(DISTANCES_M), torch.float64
    ues = torch.zeros(1, n, 3, dtype=double)
    ues[0, :, 0], ues[0, :, 2] = torch.from_numpy(DISTANCES_M), 1.5
    station = torch.tensor([[[0.0, 0.0, model.bs_height_m]]], dtype=double)
    still, outdoors = torch.zeros(1, n, 3, dtype=double), torch.zeros(1, n, dtype=torch.bool)
    scenario.set_topology(ues, station, still, torch.zeros(1, 1, 3, dtype=double), still, outdoors, los=seen)
    return scenario


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("model", [UrbanMacro(), UrbanMicro()], ids=["macro", "micro"])
def test_path_loss_sight_and_scatter_are_those_of_sionna(model: PathLoss, seen: bool) -> None:
    heights = np.full(len(DISTANCES_M), 1.5)
    for carrier_ghz in CARRIERS_GHZ:
        scenario = scenario_of(model, carrier_ghz, seen)
        got = model.loss_db(DISTANCES_M, heights, carrier_ghz, np.full(len(heights), seen))
        # Sionna takes the exact speed of light, which moves the break point: 0.006 dB beyond it
        np.testing.assert_allclose(got, scenario.basic_pathloss.numpy().ravel(), atol=0.01)
        np.testing.assert_allclose(model.sight(DISTANCES_M), scenario.los_probability.numpy().ravel(), rtol=1e-9)
        numbers = scenario._params_los if seen else scenario._params_nlos
        assert model.scatter(seen).sigma_db == pytest.approx(float(numbers["sigmaSF"]))
        assert model.scatter(seen).correlation_m == numbers["corrDistSF"]


def test_the_thresholds_of_nr_are_those_of_its_block_error_rates() -> None:
    import sionna

    path = Path(str(sionna.__file__)).parent / "sys" / "bler_tables" / "PUSCH_table1.json"
    tables = json.loads(path.read_text())["category"]["0"]["index"]["1"]["MCS"]
    for row, expected_db in zip(rates.CQI_TABLE[3:14], rates.NR_THRESHOLDS_DB, strict=True):
        table = tables[str(rates.MCS_TABLE.index(row))]
        snr_db = np.array(table["SNR_db"])
        logs = np.log10(np.maximum(table["CBS"]["2000"]["BLER"], 1e-6))  # 0 errors seen: fewer than that
        after = int(np.argmax(logs < -1))
        share = (-1 - logs[after - 1]) / (logs[after] - logs[after - 1])
        assert round(snr_db[after - 1] + share * (snr_db[after] - snr_db[after - 1]), 2) == expected_db

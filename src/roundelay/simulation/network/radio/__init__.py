"""The radio of one cell: who stands where, what reaches the other side, and at which rate.

A job file finds the parts by the names in ``__all__``. Decibels, dBm, metres and hertz at the edge, linear SI units
inside; a bit is a bit, and a megabit is 1,000,000 of them. What happens to a UE follows from the seed, its name and the
number of the fading block, whoever else is in the cell.
"""

from roundelay.simulation.network.radio.fading import Fading as Fading
from roundelay.simulation.network.radio.fading import NoFading, Rayleigh, Rician
from roundelay.simulation.network.radio.packets import ConstantErrors, Waterfall
from roundelay.simulation.network.radio.packets import PacketErrors as PacketErrors
from roundelay.simulation.network.radio.packets import outage_probability as outage_probability
from roundelay.simulation.network.radio.pathloss import LogDistance, UrbanMacro, UrbanMicro, macro_36814, pico_36814
from roundelay.simulation.network.radio.pathloss import PathLoss as PathLoss
from roundelay.simulation.network.radio.placement import Circle, Disc, Positioned, Square
from roundelay.simulation.network.radio.placement import Placement as Placement
from roundelay.simulation.network.radio.power import FullPower, OpenLoop
from roundelay.simulation.network.radio.power import PowerControl as PowerControl
from roundelay.simulation.network.radio.radio import Channel as Channel
from roundelay.simulation.network.radio.radio import Direction as Direction
from roundelay.simulation.network.radio.radio import Radio
from roundelay.simulation.network.radio.radio import noise_dbm as noise_dbm
from roundelay.simulation.network.radio.rates import CqiTable, Gap, Shannon, Truncated
from roundelay.simulation.network.radio.rates import Narrowing as Narrowing
from roundelay.simulation.network.radio.rates import RateMap as RateMap

__all__ = [
    "Circle",
    "ConstantErrors",
    "CqiTable",
    "Disc",
    "FullPower",
    "Gap",
    "LogDistance",
    "NoFading",
    "OpenLoop",
    "Positioned",
    "Radio",
    "Rayleigh",
    "Rician",
    "Shannon",
    "Square",
    "Truncated",
    "UrbanMacro",
    "UrbanMicro",
    "Waterfall",
    "macro_36814",
    "pico_36814",
]

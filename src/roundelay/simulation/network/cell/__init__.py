"""The cell: flows that share a band, as a machine of events in whole nanoseconds."""

from roundelay.simulation.network.cell.backhaul import Backhaul
from roundelay.simulation.network.cell.cell import Cell, Flown
from roundelay.simulation.network.cell.minmax import min_max_bands
from roundelay.simulation.network.cell.rates import Fixed, Invertible, Links, PerHertz, Rates
from roundelay.simulation.network.cell.sharing import Dedicated, EqualShare, Fifo, MinMax, ResourceBlocks, Sharing

__all__ = [
    "Backhaul",
    "Cell",
    "Dedicated",
    "EqualShare",
    "Fifo",
    "Fixed",
    "Flown",
    "Invertible",
    "Links",
    "MinMax",
    "PerHertz",
    "Rates",
    "ResourceBlocks",
    "Sharing",
    "min_max_bands",
]

"""Pictures of a partition, of runs and of what their network did, as PNG or SVG by the file's suffix.

matplotlib's object interface only: no window, no global figure, nothing to close; equal numbers give equal SVG files.
"""

from roundelay.report.plots.cell_map import Place, plot_cell
from roundelay.report.plots.clients import plot_clients
from roundelay.report.plots.costs import plot_costs
from roundelay.report.plots.detections import plot_detections
from roundelay.report.plots.gantt import plot_gantt
from roundelay.report.plots.partition import plot_partition, plot_split
from roundelay.report.plots.rounds import plot_rounds
from roundelay.report.plots.staleness import plot_staleness

__all__ = [
    "Place",
    "plot_cell",
    "plot_clients",
    "plot_costs",
    "plot_detections",
    "plot_gantt",
    "plot_partition",
    "plot_rounds",
    "plot_split",
    "plot_staleness",
]

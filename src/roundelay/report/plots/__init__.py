"""Pictures of a partition, of runs and of what their network did, as PNG or SVG by the file's suffix.

matplotlib's object interface only: no window, no global figure, nothing to close; equal numbers give equal SVG files.
"""

from roundelay.report.plots.partition import plot_partition, plot_split
from roundelay.report.plots.rounds import plot_rounds

__all__ = ["plot_partition", "plot_rounds", "plot_split"]

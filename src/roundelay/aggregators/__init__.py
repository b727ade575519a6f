"""Aggregation rules: what a round's updates come to when some of their senders may be hostile.

A rule is any function from ``Updates`` to one vector; a job's default is none of these but the mean of ``fold.py``,
which streams. Rules need every update at once: a round holds cohort x model values (``gathered_bytes`` in the run's
table). They work on blocks of columns, so the peak stays near that. They count each client once: how many examples a
client claims is part of what it may lie about.

A job file finds them by the names in ``__all__``; the other names here are for the framework, and for rules of your
own.

Shapes, in every file: n clients, D values, B values of a block; f counts hostile clients.
"""

from roundelay.aggregators.arithmetic import combined as combined
from roundelay.aggregators.arithmetic import distances_to as distances_to
from roundelay.aggregators.arithmetic import in_order as in_order
from roundelay.aggregators.arithmetic import median as median
from roundelay.aggregators.arithmetic import products as products
from roundelay.aggregators.arithmetic import squared_distances as squared_distances
from roundelay.aggregators.arithmetic import weighted as weighted
from roundelay.aggregators.clipping import CentredClipping, NormBounding
from roundelay.aggregators.fltrust import FLTrust
from roundelay.aggregators.krum import Krum, MultiKrum
from roundelay.aggregators.mean import Mean
from roundelay.aggregators.medians import CoordinateMedian, GeometricMedian, TrimmedMean
from roundelay.aggregators.mixing import Bucketing, NearestNeighbourMixing
from roundelay.aggregators.protocol import Guaranteed as Guaranteed
from roundelay.aggregators.protocol import Rooted as Rooted
from roundelay.aggregators.protocol import Rule as Rule
from roundelay.aggregators.protocol import Updates as Updates
from roundelay.aggregators.protocol import root_of as root_of
from roundelay.aggregators.protocol import shortfall as shortfall
from roundelay.aggregators.robust import Robust

__all__ = [
    "Bucketing",
    "CentredClipping",
    "CoordinateMedian",
    "FLTrust",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NormBounding",
    "Robust",
    "TrimmedMean",
]

"""roundelay: one federated learning framework, from a laptop's simulation to real devices, with the same bits.

import roundelay as rd
"""

from importlib.metadata import version

from roundelay import aggregators, algorithms, attacks, data, errors, models
from roundelay.aggregators import (
    Bucketing,
    CentredClipping,
    CoordinateMedian,
    FLTrust,
    GeometricMedian,
    Krum,
    Mean,
    MultiKrum,
    NearestNeighbourMixing,
    NormBounding,
    Robust,
    TrimmedMean,
    Updates,
)
from roundelay.algorithms import FedAvg, FedProx
from roundelay.algorithms.protocol import Algorithm, Fit, Fitted, Reply
from roundelay.data import Data, FederatedData
from roundelay.data.partition import IID, Dirichlet, FromFile, Natural, QuantitySkew, Replicate, Shards
from roundelay.data.split import Split
from roundelay.federation import Stopping
from roundelay.fold import Total, Uplink
from roundelay.guard import Guard
from roundelay.job import Evaluation, Job
from roundelay.learner import Constant, Context, Cosine, Learner, LocalSGD, Step
from roundelay.messages import FLModel, Task
from roundelay.report.plots import plot_split
from roundelay.run import History, Round
from roundelay.simulation.settings import Simulation
from roundelay.tracking.run_folder import Tracking
from roundelay.workflows import Buffered, Cyclic, Hierarchical, Rounds

__version__ = version("roundelay")

__all__ = [
    "IID",
    "Algorithm",
    "Bucketing",
    "Buffered",
    "CentredClipping",
    "Constant",
    "Context",
    "CoordinateMedian",
    "Cosine",
    "Cyclic",
    "Data",
    "Dirichlet",
    "Evaluation",
    "FLModel",
    "FLTrust",
    "FedAvg",
    "FedProx",
    "FederatedData",
    "Fit",
    "Fitted",
    "FromFile",
    "GeometricMedian",
    "Guard",
    "Hierarchical",
    "History",
    "Job",
    "Krum",
    "Learner",
    "LocalSGD",
    "Mean",
    "MultiKrum",
    "Natural",
    "NearestNeighbourMixing",
    "NormBounding",
    "QuantitySkew",
    "Replicate",
    "Reply",
    "Robust",
    "Round",
    "Rounds",
    "Shards",
    "Simulation",
    "Split",
    "Step",
    "Stopping",
    "Task",
    "Total",
    "Tracking",
    "TrimmedMean",
    "Updates",
    "Uplink",
    "aggregators",
    "algorithms",
    "attacks",
    "data",
    "errors",
    "models",
    "plot_split",
]  # fmt: skip

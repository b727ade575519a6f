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
from roundelay.algorithms import (
    IFCA,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedNova,
    FedProx,
    FedYogi,
    QFedAvg,
    Scaffold,
)
from roundelay.algorithms.protocol import Algorithm, Fit, Fitted, Losses, Reply
from roundelay.data import Data, FederatedData
from roundelay.data.partition import IID, Dirichlet, FromFile, Natural, QuantitySkew, Replicate, Shards
from roundelay.data.split import Split
from roundelay.federation import Stopping
from roundelay.fold import Total, Uplink
from roundelay.guard import Guard
from roundelay.history import History, Round
from roundelay.job import Evaluation, Job
from roundelay.learner import Constant, Context, Cosine, Learner, LocalSGD, Step
from roundelay.messages import FLModel, Task
from roundelay.privacy import CentralDP
from roundelay.report.plots import plot_split
from roundelay.simulation import network
from roundelay.simulation.network.network import Network
from roundelay.simulation.settings import Simulation
from roundelay.tracking.run_folder import Tracking
from roundelay.workflows import Buffered, CrossSite, Cyclic, Hierarchical, Rounds
from roundelay.workflows.server import Aggregate, GlobalModel, Result, Server
from roundelay.world import Deployment

__version__ = version("roundelay")

__all__ = [
    "IFCA",
    "IID",
    "Aggregate",
    "Algorithm",
    "Bucketing",
    "Buffered",
    "CentralDP",
    "CentredClipping",
    "Constant",
    "Context",
    "CoordinateMedian",
    "Cosine",
    "CrossSite",
    "Cyclic",
    "Data",
    "Deployment",
    "Dirichlet",
    "Ditto",
    "Evaluation",
    "FLModel",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedYogi",
    "FederatedData",
    "Fit",
    "Fitted",
    "FromFile",
    "GeometricMedian",
    "GlobalModel",
    "Guard",
    "Hierarchical",
    "History",
    "Job",
    "Krum",
    "Learner",
    "LocalSGD",
    "Losses",
    "Mean",
    "MultiKrum",
    "Natural",
    "NearestNeighbourMixing",
    "Network",
    "NormBounding",
    "QFedAvg",
    "QuantitySkew",
    "Replicate",
    "Reply",
    "Result",
    "Robust",
    "Round",
    "Rounds",
    "Scaffold",
    "Server",
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
    "network",
    "plot_split",
]  # fmt: skip

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
from roundelay.data.partition import IID, ClassMixture, Dirichlet, FromFile, Natural, QuantitySkew, Replicate, Shards
from roundelay.data.split import Split
from roundelay.federation import Stopping
from roundelay.fold import Total, Weighting
from roundelay.guard import Guard
from roundelay.history import History, Round
from roundelay.job import Evaluation, Job
from roundelay.learner import Constant, Context, Cosine, Learner, LocalSGD, Step
from roundelay.load import Load
from roundelay.messages import FLModel, Task
from roundelay.privacy import CentralDP
from roundelay.report.plots import plot_split
from roundelay.simulation import network
from roundelay.simulation.loads import Busy
from roundelay.simulation.network.network import Network
from roundelay.simulation.settings import Simulation
from roundelay.stages.codecs import (
    BF16,
    DRIVE,
    EDEN,
    FP8,
    FP16,
    FP32,
    QSGD,
    STC,
    Codec,
    Int8,
    RandK,
    Sign,
    TernGrad,
    TopK,
)
from roundelay.stages.downlink import Downlink
from roundelay.stages.triggers import Always, Lag, MaxSilence, SendOnDelta, Trigger
from roundelay.stages.uplink import Uplink
from roundelay.tracking.run_folder import Tracking
from roundelay.workflows import Buffered, CrossSite, Cyclic, Hierarchical, Rounds
from roundelay.workflows.readiness import Readiness
from roundelay.workflows.server import Aggregate, GlobalModel, Result, Server
from roundelay.world import Deployment

__version__ = version("roundelay")

__all__ = [
    "BF16",
    "DRIVE",
    "EDEN",
    "FP8",
    "FP16",
    "FP32",
    "IFCA",
    "IID",
    "QSGD",
    "STC",
    "Aggregate",
    "Algorithm",
    "Always",
    "Bucketing",
    "Buffered",
    "Busy",
    "CentralDP",
    "CentredClipping",
    "ClassMixture",
    "Codec",
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
    "Downlink",
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
    "Int8",
    "Job",
    "Krum",
    "Lag",
    "Learner",
    "Load",
    "LocalSGD",
    "Losses",
    "MaxSilence",
    "Mean",
    "MultiKrum",
    "Natural",
    "NearestNeighbourMixing",
    "Network",
    "NormBounding",
    "QFedAvg",
    "QuantitySkew",
    "RandK",
    "Readiness",
    "Replicate",
    "Reply",
    "Result",
    "Robust",
    "Round",
    "Rounds",
    "Scaffold",
    "SendOnDelta",
    "Server",
    "Shards",
    "Sign",
    "Simulation",
    "Split",
    "Step",
    "Stopping",
    "Task",
    "TernGrad",
    "TopK",
    "Total",
    "Tracking",
    "Trigger",
    "TrimmedMean",
    "Updates",
    "Uplink",
    "Weighting",
    "aggregators",
    "algorithms",
    "attacks",
    "data",
    "errors",
    "models",
    "network",
    "plot_split",
]  # fmt: skip

"""Federated algorithms, one file per paper. A job file finds them by the names that are exported here."""

from roundelay.algorithms.fedavg import FedAvg, FedProx
from roundelay.algorithms.feddyn import FedDyn
from roundelay.algorithms.fednova import FedNova
from roundelay.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from roundelay.algorithms.ifca import IFCA
from roundelay.algorithms.personal import Ditto
from roundelay.algorithms.qfedavg import QFedAvg
from roundelay.algorithms.scaffold import Scaffold

__all__ = [
    "IFCA",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedYogi",
    "QFedAvg",
    "Scaffold",
]

"""Federated algorithms, one file per paper. A job file finds them by the names that are exported here."""

from roundelay.algorithms.fedavg import FedAvg, FedProx

__all__ = ["FedAvg", "FedProx"]

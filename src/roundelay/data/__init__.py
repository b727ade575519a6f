"""Data: what a learner reads, who holds what, and where it comes from."""

from roundelay.data.ecg import heartbeats
from roundelay.data.examples import Data, Examples, MapExamples, TensorExamples, as_examples
from roundelay.data.federated import FederatedData
from roundelay.data.images import cifar10, digits, mnist
from roundelay.data.partition import (
    IID,
    Dirichlet,
    FromFile,
    Natural,
    Partitioner,
    QuantitySkew,
    Replicate,
    Shards,
)
from roundelay.data.split import Split
from roundelay.data.windows import WindowExamples

__all__ = [
    "IID",
    "Data",
    "Dirichlet",
    "Examples",
    "FederatedData",
    "FromFile",
    "MapExamples",
    "Natural",
    "Partitioner",
    "QuantitySkew",
    "Replicate",
    "Shards",
    "Split",
    "TensorExamples",
    "WindowExamples",
    "as_examples",
    "cifar10",
    "digits",
    "heartbeats",
    "mnist",
]

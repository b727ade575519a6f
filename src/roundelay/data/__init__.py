"""Data: what a learner reads, who holds what, and where it comes from."""

from roundelay.data.examples import Data, Examples, MapExamples, TensorExamples, as_examples
from roundelay.data.federated import FederatedData
from roundelay.data.images import cifar10, digits, mnist
from roundelay.data.ncctg import lung
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
from roundelay.data.tabular import csv_by_site
from roundelay.data.text import shakespeare

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
    "as_examples",
    "cifar10",
    "csv_by_site",
    "digits",
    "lung",
    "mnist",
    "shakespeare",
]

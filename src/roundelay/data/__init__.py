"""Data: what a learner reads, who holds what, and where it comes from."""

from roundelay.data.augment import Compose, HorizontalFlip, Normalise, RandomCrop
from roundelay.data.client_tables import client_table, write_client_table
from roundelay.data.ecg import heartbeats
from roundelay.data.examples import Data, Examples, MapExamples, TensorExamples, as_examples
from roundelay.data.federated import FederatedData
from roundelay.data.ids import NumberedIds
from roundelay.data.images import (
    PixelExamples,
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    femnist,
    from_tables,
    hugging_face,
    image_folder,
    mnist,
)
from roundelay.data.ncctg import lung
from roundelay.data.partition import (
    IID,
    ClassMixture,
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
from roundelay.data.windows import WindowExamples

__all__ = [
    "IID",
    "ClassMixture",
    "Compose",
    "Data",
    "Dirichlet",
    "Examples",
    "FederatedData",
    "FromFile",
    "HorizontalFlip",
    "MapExamples",
    "Natural",
    "Normalise",
    "NumberedIds",
    "Partitioner",
    "PixelExamples",
    "QuantitySkew",
    "RandomCrop",
    "Replicate",
    "Shards",
    "Split",
    "TensorExamples",
    "WindowExamples",
    "as_examples",
    "cifar10",
    "cifar100",
    "client_table",
    "csv_by_site",
    "digits",
    "fashion_mnist",
    "femnist",
    "from_tables",
    "heartbeats",
    "hugging_face",
    "image_folder",
    "lung",
    "mnist",
    "shakespeare",
    "write_client_table",
]

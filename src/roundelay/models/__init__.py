"""The small reference networks of the examples, tests and benchmarks: plain modules that return logits."""

from roundelay.models.beat_cnn import BeatCNN
from roundelay.models.cnn import CNN
from roundelay.models.lenet import LeNet
from roundelay.models.linear import Logistic
from roundelay.models.mlp import MLP
from roundelay.models.small_cnn import SmallCNN

__all__ = ["CNN", "MLP", "BeatCNN", "LeNet", "Logistic", "SmallCNN"]

"""The small reference networks of the examples, tests and benchmarks: plain modules that return logits, detectors; and
adapters for a model of your own.
"""

from roundelay.models.beat_cnn import BeatCNN
from roundelay.models.char_lstm import CharLSTM
from roundelay.models.cnn import CNN
from roundelay.models.grid_detector import GridDetector
from roundelay.models.lenet import LeNet
from roundelay.models.linear import Logistic
from roundelay.models.lora import LoRALinear, lora, merge_lora
from roundelay.models.loss_dict import LossDictDetector, torchvision_detector
from roundelay.models.mlp import MLP
from roundelay.models.small_cnn import SmallCNN

__all__ = [
    "CNN",
    "MLP",
    "BeatCNN",
    "CharLSTM",
    "GridDetector",
    "LeNet",
    "LoRALinear",
    "Logistic",
    "LossDictDetector",
    "SmallCNN",
    "lora",
    "merge_lora",
    "torchvision_detector",
]

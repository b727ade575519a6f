"""What happens on a client's own data: local training, evaluation, and the protocol by which a user's own loop replaces
them.

A job file finds schedules and measures by the names in ``__all__``; the other names here are for the framework, and for
learners of your own.
"""

from roundelay.learner.detection import CocoAP, VocAP, detection_loss
from roundelay.learner.evaluation import Measured as Measured
from roundelay.learner.evaluation import Measures as Measures
from roundelay.learner.evaluation import Metric as Metric
from roundelay.learner.evaluation import Whole as Whole
from roundelay.learner.evaluation import accuracy
from roundelay.learner.evaluation import evaluate as evaluate
from roundelay.learner.function import FunctionLearner
from roundelay.learner.function import LocalFunction as LocalFunction
from roundelay.learner.function import Weights as Weights
from roundelay.learner.local_sgd import LocalSGD
from roundelay.learner.local_sgd import accumulation as accumulation
from roundelay.learner.losses import WeightedCrossEntropy
from roundelay.learner.measures import AUC, MacroF1
from roundelay.learner.protocol import Augment as Augment
from roundelay.learner.protocol import Context as Context
from roundelay.learner.protocol import Learner as Learner
from roundelay.learner.protocol import LossFunction as LossFunction
from roundelay.learner.rates import ClassRates
from roundelay.learner.schedules import Constant, Cosine, Step
from roundelay.learner.sequences import NextToken, sequence_cross_entropy

__all__ = [
    "AUC",
    "ClassRates",
    "CocoAP",
    "Constant",
    "Cosine",
    "FunctionLearner",
    "LocalSGD",
    "MacroF1",
    "NextToken",
    "Step",
    "VocAP",
    "WeightedCrossEntropy",
    "accuracy",
    "detection_loss",
    "sequence_cross_entropy",
]

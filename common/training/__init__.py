"""Training and evaluation: the loop, distillation, several GPUs."""

from common.training.comparison import mean_difference, paired_difference
from common.training.evaluation import Evaluation, evaluate, evaluate_images
from common.training.loop import TRAINING_ERRORS, EpochLog, TrainingSettings, train

__all__ = [
    "TRAINING_ERRORS",
    "EpochLog",
    "Evaluation",
    "TrainingSettings",
    "evaluate",
    "evaluate_images",
    "mean_difference",
    "paired_difference",
    "train",
]

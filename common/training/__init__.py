"""Training and evaluation: the loop, distillation, several GPUs."""

from common.training.evaluation import evaluate
from common.training.loop import EpochLog, TrainingSettings, train

__all__ = ["EpochLog", "TrainingSettings", "evaluate", "train"]

"""Training and evaluation: loop, losses, distillation, metrics, several GPUs."""

from common.training.loop import EpochLog, TrainingSettings, train
from common.training.metrics import evaluate

__all__ = ["EpochLog", "TrainingSettings", "evaluate", "train"]

"""What is learnt of data without training: the moments of each layer, and BatchNorm's statistics."""

from common.calibration.batchnorm import recalibrate_bn
from common.calibration.moments import calibrate

__all__ = ["calibrate", "recalibrate_bn"]

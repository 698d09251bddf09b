"""Learn from data without training: the moments of each layer, and the statistics of BatchNorm."""

from common.calibration.batchnorm import recalibrate_bn
from common.calibration.moments import calibrate

__all__ = ["calibrate", "recalibrate_bn"]

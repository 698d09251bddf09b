"""Learn from data without training: moments, refitted factors, and the statistics of BatchNorm."""

from common.calibration.batchnorm import recalibrate_bn
from common.calibration.moments import calibrate
from common.calibration.refitting import refit

__all__ = ["calibrate", "recalibrate_bn", "refit"]

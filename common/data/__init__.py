"""Data sets as one ``DataBundle``: train, calibration, validation and test, disjoint and fixed by the seed."""

from common.data.bundle import DataBundle
from common.data.loading import DATASETS, load_data

__all__ = ["DATASETS", "DataBundle", "load_data"]

"""Data sets as ``DataBundle``: disjoint splits for training, calibration, validation and test, fixed by a seed.

``DATASETS``, ``TASKS`` and ``METRICS`` are the registries of data sets, of the tasks that networks learn and of the
metrics that judge them. Each entry is defined in one file. Importing this package loads no data library.
"""

from common.data.batching import BatchDataset, Splits
from common.data.bundle import DataBundle
from common.data.image_tensors import SplitSizes, tensor_splits
from common.data.loading import LoadOptions, load_data
from common.data.normalization import Normalization
from common.data.registry import DATASETS, DataSet, ReadSettings
from common.data.tasks import METRICS, TASKS, Metric, Task

# Messages and help texts list the data sets in this order.
# isort: off
import common.data.digits
import common.data.mnist
import common.data.cifar10
import common.data.imagefolder
import common.data.coco
import common.data.phantoms  # noqa: F401
# isort: on

__all__ = [
    "DATASETS",
    "METRICS",
    "TASKS",
    "BatchDataset",
    "DataBundle",
    "DataSet",
    "LoadOptions",
    "Metric",
    "Normalization",
    "ReadSettings",
    "SplitSizes",
    "Splits",
    "Task",
    "load_data",
    "tensor_splits",
]

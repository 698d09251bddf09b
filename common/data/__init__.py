"""Data sets as one ``DataBundle``: train, calibration, validation and test, disjoint and fixed by the seed.

``DATASETS`` maps a name to what the suite knows of a data set, one file a data set; ``TASKS`` and ``METRICS`` do the
same for what networks learn and are judged by. Importing this package loads no data library.
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

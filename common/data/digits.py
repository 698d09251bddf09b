"""scikit-learn's handwritten digits: real, small, and available without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from common.data.batching import Splits
from common.data.image_tensors import SplitSizes, tensor_splits
from common.data.normalization import Normalization
from common.data.registry import DATASETS, DataSet, ReadSettings
from common.data.splits import split_indices

TEST_IMAGES = 360
CLASSES = tuple("0123456789")
SIZES = SplitSizes(validation=240, calibration=160)


def load_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``(N, 8, 8)`` in uint8 and labels ``(N,)``: those of training, then those of the test split.

    The data set has no official test split, so ``seed`` draws 360 of the 1,797 images.
    """
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    parts = split_indices(len(images), {"test": TEST_IMAGES}, seed)
    train, test = parts["train"], parts["test"]
    return images[train], labels[train], images[test], labels[test]


def read(settings: ReadSettings) -> Splits:
    """Read the digits."""
    return tensor_splits("digits", load_digits(settings.split_seed), CLASSES, SIZES, settings)


DATASETS.add(DataSet("digits", "1,797 digits from scikit-learn, 8 x 8", read, Normalization((0.3053,), (0.3760,))))

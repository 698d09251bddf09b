"""scikit-learn's handwritten digits: real, small, and there on every machine."""

from __future__ import annotations

import sklearn.datasets
import torch
from torch import Tensor

from common.data.splits import split_indices

TEST_IMAGES = 360


def load_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 8, 8)`` in uint8 and labels ``(N,)``: those to learn and choose from, then those of the test split.

    The set has no official test split, so 360 of the 1,797 images are drawn by ``seed``.
    """
    digits = sklearn.datasets.load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    parts = split_indices(len(images), {"test": TEST_IMAGES}, seed)
    train, test = parts["train"], parts["test"]
    return images[train], labels[train], images[test], labels[test]

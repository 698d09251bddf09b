"""What a user names on the command line or in a notebook: a trained network, and the data to shrink it with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data import DataBundle, LoadOptions, load_data
from common.data.normalization import check_normalization
from common.environment import default_device
from common.functions import named_function, names_function
from common.models import find_network
from common.models.sources import source_of
from common.network.batches import Batches, inputs_of
from common.network.outputs import describe
from common.shrink.weights import load_weights
from common.training.first_pass import check_network


@dataclass(frozen=True)
class Examples:
    """Inputs to shrink a network with.

    Attributes:
        batches: input tensors, or pairs of inputs and targets, for calibration.
        data: the splits with their targets, by which networks are judged; None if there are no targets.
    """

    batches: Batches
    data: DataBundle | None = None

    @property
    def task(self) -> str | None:
        """Name of the task that the targets belong to; None without targets."""
        return self.data.task if self.data else None

    def example(self) -> Tensor:
        """Return one input ``(1, C, H, W)``."""
        return inputs_of(next(iter(self.batches)))[:1].cpu()


def load_examples(
    dataset: str,
    root: str | None = None,
    image_size: int | None = None,
    *,
    images: int = 512,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
    **options: Unpack[LoadOptions],
) -> Examples:
    """Load the data that a user names.

    Args:
        dataset: name of a registered data set, or ``module:function``. The function is called without arguments and
            returns a :class:`common.data.DataBundle`; or two or three loaders, for training, validation and test; or
            one loader of inputs, if there are no targets.
        root: see :func:`common.data.load_data`, as for the arguments below. Loaders of the user's make their own
            batches.
        image_size: height and width, in pixels.
        images: number of images for calibration, at most ``limit``. Where the calibration split has fewer, training
            images follow.
        batch_size: images in a batch.
        limit: maximum number of images of each split.
        seed: of the order of the training images.
        download: whether to download a registered data set into ``root`` if it is missing there.
        options: see :class:`common.data.LoadOptions`.

    Raises:
        ValueError: an argument is not allowed, the function returns anything else, or a loader's batches are
            unsuitable.
        FileNotFoundError: there is no such data set.
    """
    if images < 2:
        raise ValueError(f"images={images}: it must be at least 2, of which one is held out")
    images = min(images, limit or images)
    data: DataBundle
    if names_function(dataset):
        found = named_function("dataset", dataset)()
        if isinstance(found, list) and found and all(isinstance(each, DataLoader) for each in found):
            found = tuple(found)
        if not isinstance(found, tuple | DataBundle):
            return Examples(_first(_checked(dataset, found), images))
        data = found if isinstance(found, DataBundle) else _bundle(dataset, found)
    else:
        data = load_data(
            dataset, root, image_size, batch_size=batch_size, seed=seed, limit=limit, download=download, **options
        )
    data.shuffle(seed)
    return Examples(_first(_statistics(data), images), data)


def _bundle(dataset: str, loaders: tuple[Any, ...]) -> DataBundle:
    """Return the bundle of a user's loaders."""
    if not 2 <= len(loaders) <= 3:
        raise ValueError(
            f"dataset={dataset!r} returned {len(loaders)} loaders; it must be (train, validation) or (train, "
            "validation, test)"
        )
    return DataBundle.from_loaders(*loaders, name=dataset)


def _checked(dataset: str, loader: Any) -> Iterable[object]:
    """Return a loader of inputs; raise a ValueError if it is none."""
    if isinstance(loader, Iterable) and not isinstance(loader, Tensor | Mapping | str):
        return loader
    raise ValueError(
        f"dataset={dataset!r} returned {describe(loader)}; it must be a DataBundle, a tuple of loaders (train, "
        "validation, test), or one loader of inputs"
    )


def _statistics(data: DataBundle) -> Iterator[object]:
    """Yield the calibration batches, and then those training batches that are not among them."""
    yield from data.calibration
    if data.calibration.dataset is not data.train.dataset:  # loaders of the user's may share one data set
        yield from data.train


def _first(batches: Iterable[object], images: int) -> list[Any]:
    """Return the first batches, with at most ``images`` inputs in all."""
    found: list[Any] = []
    left = images
    for batch in batches:
        size = len(inputs_of(batch))
        found.append(batch if size <= left else _cut(batch, left))
        left -= size
        if left <= 0:
            break
    if not found:
        raise ValueError("dataset: its loader gives no batch to calibrate on")
    return found


def _cut(batch: object, size: int) -> object:
    """Return the first ``size`` inputs of a batch, with their targets if it has some."""
    return batch[:size] if isinstance(batch, Tensor) else tuple(part[:size] for part in batch)  # type: ignore[attr-defined]


def has_weights(network: str | None, weights: str | None, pretrained: bool = False) -> bool:
    """Whether the network that a user names, as for :func:`load_network`, has trained weights."""
    return weights is not None or pretrained or (network is not None and source_of(network)[0].has_own_weights)


def load_network(
    network: str | None,
    weights: str | None,
    examples: Examples,
    *,
    pretrained: bool = False,
    trained: bool = True,
    seed: int = 0,
    device: torch.device | None = None,
) -> nn.Module:
    """Return the dense network that a user names, in evaluation mode.

    Args:
        network: see :func:`common.models.find_network`; None if ``weights`` is a file of this suite, which names it.
        weights: file for :func:`common.shrink.weights.load_weights`; None if the network has trained weights already.
        examples: the data. The network must fit it.
        pretrained: whether to download published weights instead.
        trained: whether the network must have trained weights.
        seed: of weights that no file replaces.
        device: where it shall be; None takes this machine's default.

    Raises:
        ValueError: the network is unknown, has no trained weights, or does not fit them or the data.
        FileNotFoundError: there is no such file of weights.
        ConnectionError: published weights cannot be downloaded.
    """
    torch.manual_seed(seed)
    dense: nn.Module | None = None
    if network is not None:
        if trained and not has_weights(network, weights, pretrained):
            raise ValueError(
                f"network={network!r}: its weights would be random; give weights, or pretrained to download some"
            )
        dense = find_network(network, examples.data.num_classes if examples.data else None, pretrained)
    if weights is not None:
        dense = load_weights(dense, weights)
    if dense is None:
        raise ValueError("network=None: give a network, or weights that name one (see common.compression)")
    dense = dense.to(device or default_device()).eval()
    if examples.data is not None:
        check_normalization(dense, examples.data.normalization)
        check_network(dense, examples.data, training=False)
    return dense

"""Image folders in ImageNet's layout, read batch by batch.

The root folder holds ``train/<class>/`` and ``val/<class>/``. If it also holds ``test/<class>/``, that is the test
split; otherwise half of ``val/`` is. A folder of ``<class>/`` alone is divided, each class alike.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.annotations import shorten
from common.data.batching import BatchDataset, Splits
from common.data.images import IMAGE_KINDS, open_image
from common.data.normalization import IMAGENET, Normalization
from common.data.registry import DATASETS, DataSet, ReadSettings, root_of
from common.data.splits import divided_by_class, split_indices, subset
from common.network.batches import Batch

Files = list[tuple[str, int]]
"""Paths and class numbers."""
Others = Counter[tuple[str, str]]
"""Class and file extension of files that are not images -> their number."""

CALIBRATION_IMAGES = 512
SHARES = {"validation": 0.15, "test": 0.15}
"""What a folder without ``train/`` and ``val/`` gives to each split; training gets the rest."""
MOST_BROKEN = 0.05
"""Maximum share of a split's files that may be broken."""
NAMED = 10
"""Maximum number of broken files to name, in each process that reads."""


class ImageFiles(BatchDataset):
    """Images that are read from their files batch by batch.

    A broken file must not end an epoch after hours. So it is left out of its batch and named on stderr. Reading fails
    once more than 5% of the files are found to be broken.

    Args:
        files: paths.
        labels: ``(N,)``, int64.
        image_size: S. Images are cropped as in the evaluation of torchvision's weights: the shorter side is resized to
            256 / 224 S, and the central S x S pixels are used.
        normalization: of the pixels.
        augment: whether to crop images as in the training of these weights: a random part of 8% to 100% of the area
            is resized to S x S, and half of the images are mirrored.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Tensor,
        image_size: int,
        normalization: Normalization,
        augment: bool = False,
    ) -> None:
        # One block of bytes, since a list of a million objects would be copied into every worker process.
        self._files = np.array([os.fsencode(path) for path in files])
        self.labels, self.normalization, self.augment = labels, normalization, augment
        self.image_size = image_size
        self._broken = torch.zeros(len(files), dtype=torch.bool).share_memory_()  # shared by all workers
        self._transform = _transform(image_size, augment)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Return inputs ``(N, 3, S, S)`` in float32 and targets ``(N,)`` of the files that can be read.

        Raises:
            ValueError: more than 5% of all files are broken, or all of two or more in ``indices``.
        """
        images: list[Tensor] = []
        read: list[int] = []
        for index in indices:
            try:
                image = open_image(self.path(index)).convert("RGB")
            except OSError as error:
                self._leave_out(index, error)
                continue
            images.append(self._transform(image))
            read.append(index)
        if not images:
            if len(indices) > 1:
                raise ValueError(f"none of {len(indices)} images can be read, {self.path(indices[0])} among them")
            images = [torch.empty(0, 3, self.image_size, self.image_size)]
            return images[0], self.labels[:0]
        return self.normalization(torch.stack(images).float() / 255), self.labels[read]

    def path(self, index: int) -> Path:
        """Return the path of one file."""
        return Path(os.fsdecode(bytes(self._files[index])))

    @property
    def broken(self) -> list[Path]:
        """The files found to be broken so far."""
        return [self.path(index) for index in self._broken.nonzero().flatten().tolist()]

    def _leave_out(self, index: int, error: OSError) -> None:
        """Note a broken file; raise a ValueError once there are too many."""
        if not self._broken[index]:
            self._broken[index] = True
            count = int(self._broken.sum())
            if count <= NAMED:
                last = "; further ones are not named" if count == NAMED else ""
                print(f"left out: {error} ({count} of {len(self)} so far{last})", file=sys.stderr, flush=True)
        if int(self._broken.sum()) > MOST_BROKEN * len(self):
            names = ", ".join(str(path) for path in self.broken[:3])
            raise ValueError(
                f"more than {MOST_BROKEN:.0%} of {len(self)} images are missing or broken, {names} among them"
            )


def _transform(size: int, augment: bool) -> Callable[[Image.Image], Tensor]:
    """Return the transform from an image to a tensor ``(3, size, size)`` in uint8."""
    from common.torchvision_compat import torchvision

    v2 = torchvision.transforms.v2
    steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
    if augment:
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    transform: Callable[[Image.Image], Tensor] = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def imagefolder_splits(root: Path, settings: ReadSettings) -> Splits:
    """Read the file names of the splits.

    Calibration has 512 training images, or a tenth if there are fewer than 5,120. Lines on stderr state if half of
    ``val/`` is the test split, or if a folder of classes was divided, and name files of unknown kinds and classes
    without an image in ``val/`` or ``test/``.

    Raises:
        ValueError: there is only one class; no image of a class in ``train/`` can be read; or ``val/`` or ``test/``
            has a class that ``train/`` lacks.
        FileNotFoundError: ``train/`` or ``val/`` has no class folders, a class in ``train/`` has no image, or a folder
            holds no images.
    """
    whole = not any((root / name).exists() for name in ("train", "val", "test"))
    folder = root if whole else root / "train"
    classes = _class_names(folder)
    if not classes or not (whole or _class_names(root / "val")):
        raise FileNotFoundError(
            f"data_root={str(root)!r} does not hold class folders: train/<class>/ and val/<class>/ are needed, or "
            "<class>/ alone"
        )
    if len(classes) == 1:
        raise ValueError(f"{folder} has one class folder, {classes[0]!r}; a classifier needs two or more")

    def dataset(files: Files, indices: Tensor, augment: bool = False) -> ImageFiles:
        chosen = [files[index] for index in indices[: settings.limit].tolist()]
        labels = torch.tensor([label for _, label in chosen])
        paths = [path for path, _ in chosen]
        return ImageFiles(paths, labels, settings.image_size, settings.normalization, augment)

    files = _files(folder, classes, need_all=True)
    if whole:
        divided = _divided(root, files, classes, settings.split_seed)
        learned, validation, test = divided["train"], (files, divided["validation"]), (files, divided["test"])
    else:
        learned = torch.arange(len(files))
        validation, test = _validation_and_test(root, classes, settings)
    calibration = max(2, min(CALIBRATION_IMAGES, len(learned) // 10))
    parts = split_indices(len(learned), {"calibration": calibration}, settings.split_seed)
    return Splits(
        dataset(files, learned[parts["train"]], settings.augment),
        dataset(files, learned[parts["calibration"]], settings.augment),
        dataset(*validation),
        dataset(*test),
        classes,
    )


def _divided(root: Path, files: Files, classes: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return the indices of each split of a folder that is not divided yet; a line on stderr says so.

    Raises:
        ValueError: a class has too few images for all splits.
    """
    counts = Counter(label for _, label in files)
    least = min(counts, key=counts.__getitem__)
    if counts[least] <= len(SHARES):
        raise ValueError(
            f"{root} has no train/ and val/, so each class is divided among training, validation and test, but "
            f"{classes[least]} has {counts[least]} images; add some, or divide the folder yourself"
        )
    parts = divided_by_class([label for _, label in files], SHARES, seed)
    shown = ", ".join(f"{len(parts[name])} for {name}" for name in ("train", *SHARES))
    print(
        f"{root} has no train/ and val/: each class is divided by split_seed, {shown}. If a network was trained on "
        "more of these images, its metrics here are too good",
        file=sys.stderr,
    )
    return parts


def _validation_and_test(
    root: Path, classes: Sequence[str], settings: ReadSettings
) -> tuple[tuple[Files, Tensor], tuple[Files, Tensor]]:
    """Return the files and the indices of those to use, for validation and for test."""
    limit, seed = settings.limit, settings.split_seed
    validation = _files(root / "val", classes)
    if _class_names(root / "test"):
        test = _files(root / "test", classes)
        chosen, tested = (subset(len(files), limit, seed) for files in (validation, test))
        mixed = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
        # A search may evaluate on the first part of validation, which must hold more than the first classes.
        return (validation, chosen[mixed]), (test, tested)
    halves = split_indices(len(validation), {"test": len(validation) // 2}, seed)
    print(f"{root} has no test/<class>/: half of val/, drawn by split_seed, is the test split", file=sys.stderr)
    return (validation, halves["train"]), (validation, halves["test"])


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders in order; empty if ``folder`` does not exist."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))


def _files(folder: Path, classes: Sequence[str], need_all: bool = False) -> Files:
    """Return every image below the class folders, in order, with the number of its class.

    Args:
        folder: folder of the class folders.
        classes: names of the class folders.
        need_all: whether every class must have an image that can be read. Otherwise a line on stderr names the classes
            that have none.

    Raises:
        ValueError: there is a class folder of another name, or with ``need_all`` no image of a class can be read.
        FileNotFoundError: there are fewer than two images, or with ``need_all`` a class has none.
    """
    unknown = sorted(set(_class_names(folder)) - set(classes))
    if unknown:
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which train/ lacks")
    others: Others = Counter()
    numbers = {name: label for label, name in enumerate(classes)}
    files = _list_images(folder, numbers, others)
    counts = Counter(label for _, label in files)
    empty = [name for name, label in numbers.items() if not counts[label]]
    if empty and need_all:
        held = [f"{count} {kind}" for (name, kind), count in others.most_common() if name == empty[0]]
        more = f"; nor do {shorten(empty[1:])}" if empty[1:] else ""
        raise FileNotFoundError(
            f"{folder / empty[0]} holds no image of a known kind ({', '.join(IMAGE_KINDS)}), it holds "
            f"{shorten(held) or 'nothing'}{more}; add images, or remove the folder of a class that has none"
        )
    if len(files) < 2:
        raise FileNotFoundError(f"{folder}/<class>/ holds {len(files)} images; at least 2 are needed")
    if need_all:
        _check_readable(folder, files, classes)
    if others:
        listed = [f"{count} {kind} in {name}" for (name, kind), count in others.most_common()]
        print(f"imagefolder: {folder.name}/ holds files that are left out: {shorten(listed)}", file=sys.stderr)
    if empty:
        what = "a class" if len(empty) == 1 else f"{len(empty)} classes"
        print(f"imagefolder: {folder.name}/ has no image of {what} in train/: {shorten(empty)}", file=sys.stderr)
    return files


def _list_images(folder: Path, numbers: dict[str, int], others: Others) -> Files:
    """Return the images below the class folders; count all other files in ``others``."""
    from common.torchvision_compat import torchvision

    def is_image(path: str) -> bool:
        name, (_, kind) = os.path.basename(path), os.path.splitext(path.lower())  # noqa: PTH119, PTH122  # faster
        if name.startswith("."):
            return False
        if kind not in IMAGE_KINDS:
            others[Path(path).relative_to(folder).parts[0], kind or "without an ending"] += 1
        return kind in IMAGE_KINDS

    make_dataset = torchvision.datasets.folder.make_dataset
    files: Files = make_dataset(folder, numbers, is_valid_file=is_image, allow_empty=True)
    return files


def _check_readable(folder: Path, files: Files, classes: Sequence[str]) -> None:
    """Raise a ValueError unless an image of every class can be read."""
    faults: dict[int, str] = {}
    whole: set[int] = set()
    for path, label in files:
        if label not in whole:
            try:
                open_image(path)
                whole.add(label)
            except OSError as error:
                faults.setdefault(label, str(error))
    for label in faults.keys() - whole:
        raise ValueError(f"{folder / classes[label]}: none of its images can be read ({faults[label]})")


def read(settings: ReadSettings) -> Splits:
    """Read an image folder."""
    return imagefolder_splits(root_of(settings), settings)


DATASETS.add(
    DataSet(
        "imagefolder",
        "your own image folders in ImageNet's layout",
        read,
        IMAGENET,
        image_size=224,
        augment=True,
        layout="train/<class>/ and val/<class>/, or <class>/ alone",
        in_memory=False,
    )
)

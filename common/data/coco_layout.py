"""Find the parts of a COCO set: each in its own folder, or in the official layout."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from common.files import is_file

ANNOTATIONS = "_annotations.coco.json"
NAMES = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
"""Part -> the possible names of its folder or file."""
_OFFICIAL = re.compile(r"instances_((train|valid|val|validation|test)[-_]?\d*)\.json")


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Attributes:
        name: name of its folder or file, e.g. ``val2017``.
        annotations: path of the annotation file.
        folders: folders that may hold its images, the most likely first.
    """

    name: str
    annotations: Path
    folders: tuple[Path, ...]

    def image_folder(self, files: list[str]) -> Path:
        """Return the first folder that holds one of these files; if none does, the first folder."""
        return next(
            (folder for name in files for folder in self.folders if is_file(folder / name)),
            self.folders[0],
        )


def find_parts(root: Path) -> dict[str, Part]:
    """Find the parts ``train``, ``valid`` and, if it exists, ``test``.

    Args:
        root: folder with ``train/``, ``valid/`` (or ``val/``, ``validation/``) and ``test/``, each with its images and
            ``_annotations.coco.json``; or with ``annotations/instances_train2017.json`` etc. and folders of images
            ``train2017/`` etc.

    Raises:
        FileNotFoundError: there is no annotation file for ``train`` or ``valid``.
        ValueError: a part has two annotation files.
    """
    found: dict[str, list[Part]] = defaultdict(list)
    for part, names in NAMES.items():
        for folder in (root / name for name in names):
            if (folder / ANNOTATIONS).is_file():
                found[part].append(Part(folder.name, folder / ANNOTATIONS, (folder,)))
    if not found:
        for path in sorted((root / "annotations").glob("instances_*.json")):
            if match := _OFFICIAL.fullmatch(path.name):
                part = next(part for part, names in NAMES.items() if match[2] in names)
                found[part].append(Part(match[1], path, _official_folders(root, match[1], match[2])))
    for part, several in found.items():
        if len(several) > 1:
            files = " and ".join(str(one.annotations.relative_to(root)) for one in several)
            raise ValueError(f"data_root={str(root)!r} holds {files}, all for {part}; keep only one of them")
    _check_complete(root, set(found))
    return {part: several[0] for part, several in found.items()}


def _official_folders(root: Path, name: str, plain: str) -> tuple[Path, ...]:
    """Return the folders that may hold the images of ``name``, e.g. ``train2017``; ``plain`` lacks the year."""
    similar = sorted(folder for folder in root.glob(f"{plain}*") if folder.is_dir())
    names = dict.fromkeys((root / name, root / "images" / name, *similar, root / "images" / plain))
    return (*names, root / "images", root)


def _check_complete(root: Path, found: set[str]) -> None:
    """Raise a FileNotFoundError unless ``train`` and ``valid`` are found."""
    missing = [part for part in ("train", "valid") if part not in found]
    if not missing:
        return
    if len(missing) == 2 and (others := sorted((root / "annotations").glob("*.json"))):
        names = ", ".join(path.name for path in others[:3])
        raise FileNotFoundError(
            f"data_root={str(root)!r} does not hold a COCO set: annotations/ holds {names}; files called "
            "instances_train*.json and instances_val*.json are needed"
        )
    names = ", ".join(str(root / part / ANNOTATIONS) for part in missing)
    raise FileNotFoundError(
        f"data_root={str(root)!r} does not hold a COCO set: {names} is missing (also read are val/ and validation/, "
        "and annotations/instances_train*.json and instances_val*.json)"
    )

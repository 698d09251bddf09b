"""Import torchvision even if its compiled operators do not load.

PyPI's torchvision wheel contains operators compiled for the CUDA build of torch. A CPU-only torch cannot load them.
``import torchvision`` then fails with ``operator torchvision::nms does not exist``, because it registers shapes for
operators that were never declared. This module declares the two schemas first, so that the import succeeds. The suite
never calls these operators (they serve object detection). If the operators load, this module only imports torchvision.
All code of the suite imports torchvision from here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _operators_load() -> bool:
    """Whether torchvision's compiled library loads into the installed torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; run `pip install -r requirements.txt`")
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


if not _operators_load():
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            torch.library.define(f"torchvision::{_name}", _SIGNATURE)

import torchvision  # noqa: E402
import torchvision.transforms.v2  # noqa: E402

__all__ = ["torchvision"]

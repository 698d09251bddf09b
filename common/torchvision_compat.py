"""Imports torchvision, also where its wheel was built for another torch and brings no compiled operators.

PyPI's torchvision wheel holds operators compiled for the CUDA build of torch. Beside a CPU-only torch they cannot
be loaded, and then ``import torchvision`` stops with ``operator torchvision::nms does not exist``, because it
registers shapes for operators that were never declared. Declaring the two schemas first lets the import pass.
Nothing in this suite calls those operators (they serve object detection). Where torchvision is whole, this module
does nothing but import it. Everything here that needs torchvision imports it from this module.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _operators_load() -> bool:
    """Whether the compiled library beside torchvision can be loaded into this torch."""
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

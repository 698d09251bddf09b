"""ONNX Runtime with weights and activations of 8 bits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from common.deploy.onnx_files import export_onnx
from common.latency.runtimes.base import RUNTIMES
from common.latency.runtimes.onnxruntime import OnnxSession


class OnnxRuntimeInt8(OnnxSession):
    """Every network is exported in int8, the baseline too. The batch that is timed shows the activations' ranges.

    Ranges do not change the time. A file to deploy needs more data, see :func:`common.deploy.export_onnx`. Operations
    are fused with the steps between float32 and int8, so none is timed in isolation.
    """

    name = "onnxruntime_int8"
    title = "ONNX Runtime int8"

    def check(self, device: torch.device) -> None:
        """Do nothing if the device is the processor.

        Raises:
            ValueError: it is another one.
        """
        if device.type != "cpu":
            raise ValueError(f"device={device.type!r}: int8 files run on the processor; allowed: cpu")

    def export(self, model: nn.Module, folder: str, x: Tensor) -> Path:
        """Write the file for batches of the size of ``x``."""
        path = Path(folder) / "timed.onnx"
        return export_onnx(model, path, x, dynamic_batch=False, precision="int8", batches=[x])


RUNTIMES.add(OnnxRuntimeInt8())

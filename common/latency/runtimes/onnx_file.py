"""Runtimes that run a network from the ONNX file that it is exported to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from common.deploy.exportable import exportable
from common.deploy.onnx_files import export_onnx
from common.latency.runtimes.base import Runtime


class OnnxFile(Runtime):
    """The network is exported with its BatchNorm folded and its factors merged, see :mod:`common.deploy`."""

    merges_factors = True

    def accept(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """``x`` as a batch. All networks are checked before the first export, which takes seconds.

        Raises:
            ValueError: a network or ``x`` is of a kind that no ONNX file holds.
        """
        batches = [exportable(network, x)[1] for network in networks]
        return x.reshape(batches[0].shape)

    def export(self, model: nn.Module, folder: str, x: Tensor) -> Path:
        """Write the file for batches of the size of ``x``."""
        return export_onnx(model, Path(folder) / "timed.onnx", x, dynamic_batch=False)

    def memory_format(self, x: Tensor) -> str:
        """Always ``contiguous``; inside, the runtime may lay tensors out in another way."""
        return "contiguous"

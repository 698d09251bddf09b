"""Compile ONNX files with OpenVINO, with this suite's options. The package is optional."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import openvino


def openvino_model(path: str | Path, threads: int | None = None) -> openvino.CompiledModel:
    """Compile an ONNX file for the processor. ``openvino_model(path)(x.numpy())[0]`` are its outputs.

    OpenVINO's own default computes in bfloat16 where the processor can. Here it computes in float32, one request at a
    time, and leaves its threads on any core.

    Args:
        path: an ONNX file.
        threads: number of threads of each operator; None for as many as PyTorch uses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``threads`` is below 1.
        RuntimeError: OpenVINO is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r}: it must be at least 1")
    return compiled_openvino(str(path), {"INFERENCE_NUM_THREADS": threads or torch.get_num_threads()})


def compiled_openvino(model: str | bytes, options: Mapping[str, Any]) -> openvino.CompiledModel:
    """Compile an ONNX file or its content, with further options of OpenVINO.

    Raises:
        RuntimeError: OpenVINO is not installed.
    """
    check_openvino()
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,
    }
    return core.compile_model(core.read_model(model), "CPU", {**settings, **options})


def check_openvino() -> None:
    """Raise unless the package is installed.

    Raises:
        RuntimeError: it is not.
    """
    if find_spec("openvino") is None:
        raise RuntimeError(
            "runtime='openvino' needs the package openvino, which is not installed; run: pip install openvino"
        )

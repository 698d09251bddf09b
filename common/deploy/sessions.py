"""ONNX Runtime sessions with this suite's options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import onnxruntime

# onnxruntime takes seconds to import. The functions that need it import it, so that the whole suite does not wait for
# it.


def onnx_session(
    path: str | Path, threads: int | None = None, device: torch.device | str | None = None
) -> onnxruntime.InferenceSession:
    """Open a session for one network at a time on this machine.

    Operators run one after the other, each on all threads, with all graph optimisations. During a run the threads
    actively wait for work. They stop when the run ends, so other work gets the cores.

    Args:
        path: an ONNX file.
        threads: of each operator; None takes as many as PyTorch uses.
        device: ``cpu`` or ``cuda``; None takes the GPU if there is one and ``onnxruntime-gpu`` is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``threads`` is below 1, or ``device`` is ``cuda`` and this ONNX Runtime cannot use it.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r}: it must be at least 1")
    kind = torch.device(device).type if device is not None else "cuda" if _has_cuda() else "cpu"
    check_provider(kind)
    providers = ["CUDAExecutionProvider"] if kind == "cuda" else []
    providers.append("CPUExecutionProvider")
    return onnxruntime.InferenceSession(str(path), session_options(threads), providers=providers)


def check_provider(device: torch.device | str) -> None:
    """Do nothing if ONNX Runtime can run networks on ``device``.

    Raises:
        ValueError: it cannot.
    """
    if torch.device(device).type == "cuda" and not _has_cuda():
        raise ValueError(
            "device='cuda': ONNX Runtime needs a GPU and the package onnxruntime-gpu for it; allowed here: cpu"
        )


def _has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """The options of every session here, see :func:`onnx_session`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors alone; its warnings are about optimisations that do not apply
    return options

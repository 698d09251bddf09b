"""ONNX Runtime sessions with this suite's options."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.validation import is_whole

if TYPE_CHECKING:
    import onnxruntime

INPUT, OUTPUT = "input", "output"
"""Names of a file's only input and output."""

# onnxruntime takes seconds to import. So only the functions that need it import it.

_sessions: weakref.WeakSet[Any] = weakref.WeakSet()
_kept: list[Any] = []
"""Sessions that a forked process holds to its end, see :func:`_keep_sessions`."""


def _keep_sessions() -> None:
    """Hold the parent's sessions in a forked process, such as one that loads data.

    Their threads do not exist there. The end of a session would wait for them forever.
    """
    _kept.extend(_sessions)


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_keep_sessions)


def onnx_session(
    path: str | Path, threads: int | None = None, device: torch.device | str | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file in ONNX Runtime. The session assumes that no other network runs at the same time.

    Operators run one after the other, each on all threads, with all graph optimisations. During a run, idle threads
    wait actively for work. They stop when the run ends, so that other programs get the cores.

    Args:
        path: an ONNX file.
        threads: number of threads of each operator; None for as many as PyTorch uses.
        device: ``cpu`` or ``cuda``; None for the GPU if there is one and ``onnxruntime-gpu`` is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``threads`` is below 1, this ONNX Runtime cannot use ``device``, or the file holds no network.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file")
    if threads is not None and not (is_whole(threads) and threads >= 1):
        raise ValueError(f"threads={threads!r}: it must be a whole number of at least 1")
    kind = torch.device(device).type if device is not None else "cuda" if _has_cuda() else "cpu"
    check_provider(kind)
    providers = ["CUDAExecutionProvider"] if kind == "cuda" else []
    providers.append("CPUExecutionProvider")
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=providers)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common class
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"path={str(path)!r}: ONNX Runtime cannot open it: {first}") from error
    _sessions.add(session)
    return session


class OnnxNetwork(nn.Module):
    """An ONNX file that is called like the network that it holds, e.g. by :func:`common.training.evaluate`."""

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        self.session = onnx_session(path, threads, "cpu")
        self.place = nn.Parameter(torch.empty(0))  # shows the device for inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of ``x``."""
        return torch.from_numpy(self.session.run(None, {INPUT: x.numpy()})[0])


def check_provider(device: torch.device | str) -> None:
    """Raise unless ONNX Runtime can run networks on ``device``.

    Raises:
        ValueError: it cannot.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={kind!r}: ONNX Runtime runs networks on cpu or cuda here")
    if kind == "cuda" and not _has_cuda():
        raise ValueError(
            "device='cuda': ONNX Runtime needs a GPU and the package onnxruntime-gpu for it; allowed here: cpu"
        )


def _has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Return the options of every session, see :func:`onnx_session`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only; its warnings are about optimisations that do not apply
    return options

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from common.deploy import onnx_session


def square(path: Path) -> Path:
    """Write an ONNX file whose only operation is large enough for several threads."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256, 256]) for name in ("input", "output")]
    node = helper.make_node("MatMul", ["input", "input"], ["output"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_end_a_session_whose_threads_it_lacks(tmp_path: Path) -> None:
    """A process that loads data is forked; its garbage collection ended a session of the parent's, and hung."""
    gc.collect()
    gc.disable()
    try:
        cycle: list[Any] = [onnx_session(square(tmp_path / "square.onnx"), threads=3)]
        cycle[0].run(None, {"input": np.zeros((256, 256), np.float32)})
        time.sleep(0.2)  # until its threads wait for work
        cycle.append(cycle)
        del cycle
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
    finally:
        gc.enable()
    for _ in range(600):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked process waits for threads that it does not have")
